package tuf

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestNull has proposals of someone who has no key.
func TestNull(t *testing.T) {
	const begin = `{"signatures":[],"signed":{"_type":"targets","spec_version":"1.0.31","version":2,` +
		`"expires":"2040-01-01T00:00:00Z",`
	for _, text := range []string{begin + `"targets":{"v1":null}}}`, begin + `"targets":{},"delegations":null}}`,
		`{"signatures":[],"signed":null}`, `null`} {
		_, err := ReadProposal("x", map[string][]byte{"2.tags.json": []byte(text)})
		if failure.From(err).Kind != failure.Denied {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func (w *world) file(m *targetsFile, signers ...*Signer) []byte {
	w.t.Helper()
	var ids []string
	for _, s := range signers {
		ids = append(ids, s.ID)
	}
	_, err := sign(w.t.Context(), m, ids, signers)
	w.must(err)
	data, err := encode(m)
	w.must(err)
	return data
}

// pushed adds a proposal of files that anyone could push.
func (w *world) pushed(files map[string][]byte) (*Proposal, error) {
	w.proposals++
	p, err := ReadProposal(fmt.Sprintf("%04d", w.proposals), files)
	if err == nil {
		w.pending = append(w.pending, p)
	}
	return p, err
}

// delegate publishes the delegation alice, one of whose keys has to sign.
func (w *world) delegate(s ...*Signer) {
	w.t.Helper()
	r := RoleKeys{Threshold: 1}
	for _, k := range s {
		r.Keys = append(r.Keys, k.Key)
	}
	w.propose(w.view().AmendDelegations(w.t.Context(), w.pending,
		Delegation{Name: "alice", Paths: []string{"r-*"}, RoleKeys: r}, []*Signer{w.targets}))
	if held := w.publish(); len(held) > 0 {
		w.t.Fatal(held)
	}
}

// many sets many tags.
func many(prefix string, n int) (c Change) {
	for i := range n {
		c.Set = append(c.Set, target(fmt.Sprintf("%s%d", prefix, i)))
	}
	return c
}

// succinct delegates to bins with one key.
func succinct(prefix string, s *Signer) *metadata.Delegations {
	return &metadata.Delegations{Keys: map[string]*metadata.Key{s.ID: s.signed}, SuccinctRoles: &metadata.SuccinctRoles{
		KeyIDs: []string{s.ID}, Threshold: 1, BitLength: bits, NamePrefix: prefix}}
}

// TestForeignBins has a delegation name the bins of another role as its own.
func TestForeignBins(t *testing.T) {
	w := newWorld(t)
	alice := newSigner(t)
	w.delegate(alice)
	w.propose(w.view().Amend(t.Context(), w.pending, Tags, many("v", 700), []*Signer{w.targets}))
	w.publish()
	top := metadata.Targets(expiry(day))
	top.Signed.Delegations = succinct("tags-bin", alice)
	files := map[string][]byte{"1.alice.json": w.file(top, alice)}
	for _, bin := range top.Signed.Delegations.SuccinctRoles.GetRoles() {
		b := metadata.Targets(expiry(day))
		b.Signed.Version = 2
		files["2."+bin+".json"] = w.file(b, alice)
	}
	_, err := w.pushed(files)
	w.must(err)
	w.publish()
	w.publish()
	if _, err := w.resolve("v1"); err != nil {
		t.Error(err)
	}
}

// TestNoBins has a delegation without files propose a split without bins.
func TestNoBins(t *testing.T) {
	w := newWorld(t)
	alice := newSigner(t)
	w.delegate(alice)
	top := metadata.Targets(expiry(day))
	top.Signed.Delegations = succinct("alice-bin", alice)
	_, err := w.pushed(map[string][]byte{"1.alice.json": w.file(top, alice)})
	w.must(err)
	w.propose(w.view().Amend(t.Context(), w.pending, Tags, many("v", 3), []*Signer{w.targets}))
	w.publish()
	if _, err := w.resolve("v1"); err != nil {
		t.Error(err)
	}
}

// TestRevokedBins takes one of the keys of a split role away, and another one stays.
func TestRevokedBins(t *testing.T) {
	w := newWorld(t)
	alice, bob, carol := newSigner(t), newSigner(t), newSigner(t)
	w.delegate(alice, bob)
	w.propose(w.view().Amend(t.Context(), w.pending, "alice", many("r-", 700), []*Signer{alice}))
	w.publish()
	w.propose(w.view().AmendDelegations(w.t.Context(), w.pending, Delegation{Name: "alice", Paths: []string{"r-*"},
		RoleKeys: RoleKeys{Keys: []*Key{alice.Key, carol.Key}, Threshold: 1}}, []*Signer{w.targets}))
	if held := strings.Join(w.publish(), " "); !strings.Contains(held, "alice: its file is not signed by its new keys") {
		t.Error(held)
	}
	v := w.view()
	top, err := v.role(t.Context(), "alice")
	w.must(err)
	bin := binOf(top, "r-evil")
	old, err := v.role(t.Context(), bin)
	w.must(err)
	m := metadata.Targets(expiry(day))
	m.Signed.Version = old.Signed.Version + 1
	m.Signed.Targets = old.Signed.Targets
	m.Signed.Targets["r-evil"] = &metadata.TargetFiles{Length: 5, Hashes: metadata.Hashes{"sha256": make([]byte, 32)}}
	_, err = w.pushed(map[string][]byte{fmt.Sprintf("%d.%s.json", m.Signed.Version, bin): w.file(m, bob)})
	w.must(err)
	w.publish()
	_, err = w.resolve("r-evil")
	if ids := delegatedKeys(w.view().trusted.Targets[Targets], "alice").ids; err == nil && !slices.Contains(ids, bob.ID) {
		t.Error("a key that was removed signs a bin")
	}
	all, err := w.view().Renew(t.Context(), w.pending, []*Signer{carol}, true)
	w.must(err)
	for _, a := range all {
		w.propose(a, nil)
	}
	if held := w.publish(); len(held) > 0 {
		t.Error(held)
	}
	top, err = w.view().role(t.Context(), "alice")
	w.must(err)
	if _, err = w.resolve("r-1"); err != nil || slices.Contains(delegatedKeys(top, bin).ids, bob.ID) {
		t.Error("after the new key has signed:", err)
	}
}

// TestCosignForeignBins has one key of two propose the change of the other, in bins of its own.
func TestCosignForeignBins(t *testing.T) {
	w := newWorld(t)
	good, evil := newSigner(t), newSigner(t)
	w.propose(w.view().AmendDelegations(w.t.Context(), w.pending, Delegation{Name: "alice", Paths: []string{"r-*"},
		RoleKeys: RoleKeys{Keys: []*Key{good.Key, evil.Key}, Threshold: 2}}, []*Signer{w.targets}))
	w.publish()
	top := metadata.Targets(expiry(day))
	top.Signed.Delegations = succinct("alice-bin", evil)
	files := map[string][]byte{"1.alice.json": w.file(top, evil)}
	want := Change{Set: []Target{target("r-1")}}
	all, err := want.items()
	w.must(err)
	for _, bin := range top.Signed.Delegations.SuccinctRoles.GetRoles() {
		b := metadata.Targets(expiry(day))
		b.Signed.Targets, err = inBin(all, top, bin).targets()
		w.must(err)
		files["1."+bin+".json"] = w.file(b, evil)
	}
	_, err = w.pushed(files)
	w.must(err)
	a, err := w.view().Amend(t.Context(), w.pending, "alice", want, []*Signer{good})
	w.must(err)
	if len(a.Files) > 1 {
		t.Error("signs the bins of one key", a.Lacking)
	}
}

// TestSplitThenOthers has a split role before another one.
// TestSplitThenOthers has a role that is split before another one.
func TestSplitThenOthers(t *testing.T) {
	w := newWorld(t)
	alice := newSigner(t)
	w.delegate(alice)
	w.propose(w.view().Amend(t.Context(), w.pending, Tags, many("v", 700), []*Signer{w.targets}))
	w.propose(w.view().Amend(t.Context(), w.pending, "alice", Change{Set: []Target{target("r-1")}}, []*Signer{alice}))
	w.publish()
	for _, tag := range []string{"v1", "r-1"} {
		if _, err := w.resolve(tag); err != nil {
			t.Error(tag, err)
		}
	}
}

// TestLongWhenEncoded has a file that is longer as it is published than as it was proposed.
func TestLongWhenEncoded(t *testing.T) {
	w := newWorld(t)
	alice := newSigner(t)
	w.delegate(alice)
	m := metadata.Targets(expiry(day))
	m.Signed.UnrecognizedFields = map[string]any{"x": strings.Repeat("<", 900<<10)}
	data := []byte(strings.ReplaceAll(string(w.file(m, alice)), `\u003c`, "<"))
	_, err := w.pushed(map[string][]byte{"1.alice.json": data})
	w.must(err)
	w.publish()
	for name, data := range w.published {
		if len(data) > maxTargets {
			t.Errorf("%s has %d bytes", name, len(data))
		}
	}
}

// TestFastForward has a key use up the versions of its role.
func TestFastForward(t *testing.T) {
	w := newWorld(t)
	alice := newSigner(t)
	w.delegate(alice)
	m := metadata.Targets(expiry(day))
	m.Signed.Version = 999999999
	_, err := w.pushed(map[string][]byte{"999999999.alice.json": w.file(m, alice)})
	w.must(err)
	w.publish()
	a, err := w.view().Amend(t.Context(), w.pending, "alice", Change{Set: []Target{target("r-1")}}, []*Signer{alice})
	w.must(err)
	_, err = w.pushed(a.Files)
	w.must(err)
	w.publish()
	if _, err := w.resolve("r-1"); err != nil {
		t.Error(err)
	}
}

// TestWorthlessSignatures has someone without a key propose the content of another proposal again and again.
func TestWorthlessSignatures(t *testing.T) {
	w := newWorld(t)
	a, err := w.view().Amend(t.Context(), nil, Tags, Change{Set: []Target{target("v1")}}, []*Signer{w.targets})
	w.must(err)
	good, err := ReadProposal("good", a.Files)
	w.must(err)
	for i := range maxSignatures + 1 {
		m := *good.roles[Tags]
		m.Signatures = []metadata.Signature{{KeyID: w.targets.ID, Signature: []byte{byte(i), byte(i >> 8)}}}
		data, err := encode(&m)
		w.must(err)
		_, err = w.pushed(map[string][]byte{"2.tags.json": data})
		w.must(err)
	}
	w.pending = append(w.pending, good)
	w.publish()
	if _, err := w.resolve("v1"); err != nil {
		t.Error(err)
	}
}

// TestPendingRoot has a root that cannot be published yet, since its targets keys have signed nothing. Changes by the
// published keys go on.
func TestPendingRoot(t *testing.T) {
	w := newWorld(t)
	root, err := w.view().Root().Next(map[string]RoleKeys{Targets: one(newSigner(t))})
	w.must(err)
	w.must(root.SignAny(t.Context(), []*Signer{w.root}))
	data, err := root.Encode()
	w.must(err)
	_, err = w.pushed(map[string][]byte{root.Name(): data})
	w.must(err)
	alice := newSigner(t)
	a, err := w.view().AmendDelegations(t.Context(), nil, Delegation{Name: "alice", Paths: []string{"r-*"},
		RoleKeys: one(alice)}, []*Signer{w.targets})
	w.propose(a, err)
	w.publish()
	if w.view().delegation("alice") == nil {
		t.Error("the delegation is not published")
	}
}

// TestTimestampWithoutSnapshot has a stolen timestamp key sign a timestamp that names no snapshot.
func TestTimestampWithoutSnapshot(t *testing.T) {
	w := newWorld(t)
	m := metadata.Timestamp(expiry(day))
	m.Signed.Version, m.Signed.Meta = 2, map[string]*metadata.MetaFiles{}
	_, err := sign(t.Context(), m, []string{w.timestamp.ID}, []*Signer{w.timestamp})
	w.must(err)
	w.published["timestamp.json"], err = encode(m)
	w.must(err)
	if _, err := w.resolve("v1"); err == nil || failure.From(err).Kind != failure.Denied {
		t.Error(err)
	}
}

// TestRootOfOtherPublisher has a root with a timestamp key that the publisher does not have. The publisher goes on under
// the root before it.
func TestRootOfOtherPublisher(t *testing.T) {
	w := newWorld(t)
	root, err := w.view().Root().Next(map[string]RoleKeys{Timestamp: one(newSigner(t))})
	w.must(err)
	w.must(root.SignAny(t.Context(), []*Signer{w.root}))
	data, err := root.Encode()
	w.must(err)
	_, err = w.pushed(map[string][]byte{root.Name(): data})
	w.must(err)
	w.propose(w.view().Amend(t.Context(), nil, Tags, Change{Set: []Target{target("v1")}}, []*Signer{w.targets}))
	if held := strings.Join(w.publish(), "; "); !strings.Contains(held, "the publisher lacks its snapshot or timestamp keys") {
		t.Error(held)
	}
	if _, err := w.resolve("v1"); err != nil {
		t.Error(err)
	}
}
