package tuf

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func TestStory(t *testing.T) {
	w := newWorld(t)
	w.propose(w.view().Amend(t.Context(), w.pending, Tags, Change{Set: []Target{target("v1")}}, []*Signer{w.targets}))
	if _, err := w.resolve("v1"); err == nil || failure.From(err).Kind != failure.Denied {
		t.Errorf("before publication: %v", err)
	}
	if held := w.publish(); len(held) > 0 {
		t.Error(held)
	}
	got, err := w.resolve("v1")
	if want := target("v1"); err != nil || got.Digest != want.Digest || got.Size != want.Size || got.Role != Tags {
		t.Errorf("got %+v, %v", got, err)
	}
	alice := newSigner(t)
	w.propose(w.view().AmendDelegations(t.Context(), w.pending, Delegation{Name: "alice", Paths: []string{"release-*"},
		RoleKeys: one(alice)}, []*Signer{w.targets}))
	// alice can sign before the delegation is published
	w.propose(w.view().Amend(t.Context(), w.pending, "alice", Change{Set: []Target{target("release-1")}},
		[]*Signer{alice}))
	if _, err := w.view().Amend(t.Context(), w.pending, "alice", Change{Set: []Target{target("v2")}},
		[]*Signer{alice}); err == nil || failure.From(err).Kind != failure.Denied {
		t.Errorf("a tag outside of the paths: %v", err)
	}
	if held := w.publish(); len(held) > 0 || len(w.pending) > 0 {
		t.Error(held, w.pending)
	}
	if got, err = w.resolve("release-1"); err != nil || got.Role != "alice" {
		t.Errorf("got %+v, %v", got, err)
	}
	w.propose(w.view().AmendDelegations(t.Context(), w.pending, Delegation{Name: "alice"}, []*Signer{w.targets}))
	w.publish()
	if _, err = w.resolve("release-1"); err == nil || failure.From(err).Kind != failure.Denied {
		t.Errorf("after the removal: %v", err)
	}
}

// TestConcurrentSigners has signers of one role that all read before the first has proposed. Each looks again after its
// proposal, as package tags does.
func TestConcurrentSigners(t *testing.T) {
	w := newWorld(t)
	const signers = 20
	changes, signed := make([]Change, signers), 0
	view := w.view()
	for i := range changes {
		changes[i].Set = []Target{target(fmt.Sprintf("v%d", i))}
		w.propose(view.Amend(t.Context(), nil, Tags, changes[i], []*Signer{w.targets}))
	}
	for again := true; again; {
		again = false
		w.publish()
		for _, c := range changes {
			published, proposed, err := w.view().Has(t.Context(), w.pending, Tags, c)
			if err != nil {
				t.Fatal(err)
			}
			if !published && !proposed {
				w.propose(w.view().Amend(t.Context(), w.pending, Tags, c, []*Signer{w.targets}))
				signed, again = signed+1, true
			}
		}
		if signed > 5*signers {
			t.Fatal("it does not end")
		}
	}
	if held := w.publish(); len(held) > 0 || len(w.pending) > 0 {
		t.Error(held, len(w.pending))
	}
	for _, c := range changes {
		if _, err := w.resolve(c.Set[0].Tag); err != nil {
			t.Error(err)
		}
	}
	t.Logf("%d more signatures", signed)
}

func TestSplit(t *testing.T) {
	w := newWorld(t)
	var c Change
	for i := range 700 {
		c.Set = append(c.Set, target(fmt.Sprintf("v%d", i)))
	}
	a, err := w.view().Amend(t.Context(), nil, Tags, c, []*Signer{w.targets})
	w.propose(a, err)
	if len(a.Files) != 33 {
		t.Errorf("%d files", len(a.Files))
	}
	if held := w.publish(); len(held) > 0 {
		t.Error(held)
	}
	a, err = w.view().Amend(t.Context(), nil, Tags, Change{Set: []Target{target("new")}, Remove: []string{"v5"}},
		[]*Signer{w.targets})
	w.propose(a, err)
	if len(a.Files) > 2 {
		t.Errorf("%d files", len(a.Files))
	}
	if held := w.publish(); len(held) > 0 || len(w.pending) > 0 {
		t.Error(held, len(w.pending))
	}
	for _, tag := range []string{"v0", "v699", "new"} {
		if got, err := w.resolve(tag); err != nil || got.Role != Tags {
			t.Errorf("%+v, %v", got, err)
		}
	}
	if _, err := w.resolve("v5"); err == nil {
		t.Error("a removed tag resolves")
	}
	list, err := w.view().List(t.Context())
	if err != nil || len(list) != 700 {
		t.Errorf("%d tags, %v", len(list), err)
	}
}

func TestRotations(t *testing.T) {
	w := newWorld(t)
	alice := newSigner(t)
	w.propose(w.view().Amend(t.Context(), nil, Tags, Change{Set: []Target{target("v1")}}, []*Signer{w.targets}))
	w.propose(w.view().AmendDelegations(t.Context(), nil, Delegation{Name: "alice", Paths: []string{"r-*"},
		RoleKeys: one(alice)}, []*Signer{w.targets, alice}))
	w.publish()
	w.propose(w.view().Amend(t.Context(), nil, "alice", Change{Set: []Target{target("r-1")}}, []*Signer{alice}))
	w.publish()
	rotate := func(role string, now *Signer, signers ...*Signer) {
		t.Helper()
		v := w.view()
		root, err := v.Root().Next(map[string]RoleKeys{role: one(now)})
		w.must(err)
		w.must(root.SignAny(t.Context(), signers))
		if n := root.Lacking(); n > 0 {
			t.Fatalf("%s: lacks %d", role, n)
		}
		data, err := root.Encode()
		w.must(err)
		a := &Amended{Files: map[string][]byte{}}
		if role == Targets {
			a, err = v.AmendTargetsKeys(t.Context(), root, []*Signer{now})
			w.must(err)
		}
		a.Files[root.Name()] = data
		w.propose(a, nil)
	}
	check := func(what string) {
		t.Helper()
		if held := w.publish(); len(held) > 0 || len(w.pending) > 0 {
			t.Fatal(what, held, len(w.pending))
		}
		for _, tag := range []string{"v1", "r-1"} {
			if _, err := w.resolve(tag); err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	old := w.root
	w.root = newSigner(t)
	rotate(Root, w.root, old, w.root)
	check("root")
	w.targets = newSigner(t)
	rotate(Targets, w.targets, w.root)
	check("targets")
	w.snapshot = newSigner(t)
	rotate(Snapshot, w.snapshot, w.root)
	check("snapshot")
	w.timestamp = newSigner(t)
	rotate(Timestamp, w.timestamp, w.root)
	check("timestamp")
	bob := newSigner(t)
	// without the new key, the delegation's file is not signed: held
	w.propose(w.view().AmendDelegations(t.Context(), nil, Delegation{Name: "alice", Paths: []string{"r-*"},
		RoleKeys: one(bob)}, []*Signer{w.targets}))
	if held := strings.Join(w.publish(), "\n"); !strings.Contains(held, "alice: its file is not signed by its new keys") {
		t.Error(held)
	}
	w.propose(w.view().Amend(t.Context(), w.pending, "alice", Change{}, []*Signer{bob}))
	check("delegation")
	if got := w.view().Root().m.Signed.Version; got != 5 {
		t.Errorf("root version %d", got)
	}
	if names, err := w.view().FileNames(t.Context()); err != nil || !slices.Contains(names, "5.root.json") {
		t.Error(names, err)
	}
}

// TestComeBack has a delegation that was removed, with many tags, come back.
func TestComeBack(t *testing.T) {
	w := newWorld(t)
	alice, again := newSigner(t), newSigner(t)
	delegate := func(s *Signer, signers ...*Signer) {
		t.Helper()
		w.propose(w.view().AmendDelegations(t.Context(), w.pending, Delegation{Name: "alice", Paths: []string{"r-*"},
			RoleKeys: one(s)}, append(signers, w.targets)))
	}
	delegate(alice, alice)
	var c Change
	for i := range 700 {
		c.Set = append(c.Set, target(fmt.Sprintf("r-%d", i)))
	}
	w.propose(w.view().Amend(t.Context(), w.pending, "alice", c, []*Signer{alice}))
	if held := w.publish(); len(held) > 0 {
		t.Fatal(held)
	}
	late := w.propose(w.view().Amend(t.Context(), nil, "alice", Change{Set: []Target{target("r-late")}}, []*Signer{alice}))
	w.pending = nil
	w.propose(w.view().AmendDelegations(t.Context(), nil, Delegation{Name: "alice"}, []*Signer{w.targets}))
	w.pending = append(w.pending, late)
	if held := w.publish(); len(held) > 0 || len(w.pending) > 0 {
		t.Fatal(held, len(w.pending)) // what it has proposed is withdrawn
	}
	delegate(again) // its key is elsewhere
	if held := strings.Join(w.publish(), "\n"); !strings.Contains(held, "alice: it was removed before") {
		t.Error(held)
	}
	w.propose(w.view().Amend(t.Context(), w.pending, "alice", Change{Set: []Target{target("r-new")}}, []*Signer{again}))
	if held := w.publish(); len(held) > 0 || len(w.pending) > 0 {
		t.Fatal(held, len(w.pending))
	}
	if _, err := w.resolve("r-new"); err != nil {
		t.Error(err)
	}
	if _, err := w.resolve("r-1"); err == nil || failure.From(err).Kind != failure.Denied {
		t.Errorf("a tag of before: %v", err)
	}
	w.propose(w.view().Amend(t.Context(), nil, "alice", c, []*Signer{again})) // split again
	if held := w.publish(); len(held) > 0 || len(w.pending) > 0 {
		t.Fatal(held, len(w.pending))
	}
	if _, err := w.resolve("r-1"); err != nil {
		t.Error(err)
	}
}

// TestThreshold has two of three keys sign a delegation, one after the other.
func TestThreshold(t *testing.T) {
	w := newWorld(t)
	keys := []*Signer{newSigner(t), newSigner(t), newSigner(t)}
	d := Delegation{Name: "alice", Paths: []string{"r-*"}, RoleKeys: RoleKeys{Threshold: 2,
		Keys: []*Key{keys[0].Key, keys[1].Key, keys[2].Key}}}
	w.propose(w.view().AmendDelegations(t.Context(), nil, d, []*Signer{w.targets}))
	w.publish()
	together := func(sign func(*Signer) (*Amended, error)) {
		t.Helper()
		for i, want := range []int{1, 0} {
			a, err := sign(keys[i])
			w.propose(a, err)
			if a.Lacking != want {
				t.Errorf("lacks %d signatures, want %d", a.Lacking, want)
			}
			w.publish()
		}
		if len(w.pending) > 0 {
			t.Errorf("%d proposals are left", len(w.pending))
		}
	}
	c := Change{Set: []Target{target("r-1")}}
	together(func(s *Signer) (*Amended, error) {
		return w.view().Amend(t.Context(), w.pending, "alice", c, []*Signer{s})
	})
	if got, err := w.resolve("r-1"); err != nil || got.Role != "alice" {
		t.Error(got, err)
	}
	together(func(s *Signer) (*Amended, error) {
		all, err := w.view().Renew(t.Context(), w.pending, []*Signer{s}, true)
		if err != nil || len(all) != 1 {
			t.Fatal(all, err)
		}
		return all[0], nil
	})
	// one key twice is one signature
	a, err := w.view().Amend(t.Context(), nil, "alice", Change{Set: []Target{target("r-2")}}, []*Signer{keys[2]})
	w.propose(a, err)
	a, err = w.view().Amend(t.Context(), w.pending, "alice", Change{Set: []Target{target("r-2")}}, []*Signer{keys[2]})
	w.propose(a, err)
	if a.Lacking != 1 {
		t.Errorf("lacks %d signatures", a.Lacking)
	}
	w.publish()
	if _, err := w.resolve("r-2"); err == nil {
		t.Error("one of two keys was enough")
	}
}

// TestSignerOf verifies which padding and hash a function signs with, and that keys without a scheme are refused.
func TestSignerOf(t *testing.T) {
	t.Parallel()
	keys := map[string]crypto.PublicKey{}
	for name, curve := range map[string]elliptic.Curve{"SHA-256": elliptic.P256(), "SHA-384": elliptic.P384(),
		"": elliptic.P521()} {
		private, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		keys[name] = private.Public()
	}
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	keys["PSS"] = private.Public()
	for want, public := range keys {
		got := ""
		s, err := NewSignerOf(public, func(_ context.Context, _ []byte, opts crypto.SignerOpts) ([]byte, error) {
			got = opts.HashFunc().String()
			if o, ok := opts.(*rsa.PSSOptions); ok && o.SaltLength == rsa.PSSSaltLengthEqualsHash && o.Hash == crypto.SHA256 {
				got = "PSS"
			}
			return []byte("signature"), nil
		})
		if want == "" {
			if !failure.Is(err, failure.Unsupported) {
				t.Errorf("P-521: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if signature, err := s.Sign(t.Context(), []byte("payload")); err != nil || string(signature) != "signature" ||
			got != want {
			t.Errorf("%s: %q, %v, %s", want, signature, err, got)
		}
	}
}
