package tuf

import (
	"slices"
	"testing"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// TestCosignOrder has one of two targets keys change the order of delegations together with a change of the other.
func TestCosignOrder(t *testing.T) {
	w := newWorld(t)
	good, evil, alice, bob := newSigner(t), newSigner(t), newSigner(t), newSigner(t)
	both := RoleKeys{Keys: []*Key{good.Key, evil.Key}, Threshold: 2}
	root, err := NewRoot(one(w.root), both, one(w.snapshot), one(w.timestamp))
	w.must(err)
	w.must(root.Sign(t.Context(), []*Signer{w.root}))
	w.pin, err = root.Encode()
	w.must(err)
	first, err := Begin(t.Context(), root, []*Signer{good, evil, w.snapshot, w.timestamp})
	w.must(err)
	w.published = memory(first.Files)
	add := func(name string, s *Signer) {
		w.propose(w.view().AmendDelegations(t.Context(), w.pending, Delegation{Name: name, Paths: []string{"r-*"},
			RoleKeys: one(s)}, []*Signer{good, evil}))
		w.publish()
	}
	add("alice", alice)
	add("bob", bob)
	// the change: a delegation carol. evil swaps alice and bob.
	carol := Delegation{Name: "carol", Paths: []string{"c-*"}, RoleKeys: one(newSigner(t))}
	a, err := w.view().AmendDelegations(t.Context(), nil, carol, []*Signer{evil})
	w.must(err)
	for name, data := range a.Files {
		m, err := parse[metadata.TargetsType](name, data, maxTargets)
		w.must(err)
		slices.Reverse(m.Signed.Delegations.Roles[1:3])
		_, err = w.pushed(map[string][]byte{name: w.file(m, evil)})
		w.must(err)
	}
	made, err := w.view().AmendDelegations(t.Context(), w.pending, carol, []*Signer{good})
	w.must(err)
	w.propose(made, nil)
	w.publish()
	var names []string
	for _, r := range w.view().trusted.Targets[Targets].Signed.Delegations.Roles {
		names = append(names, r.Name)
	}
	if i := slices.Index(names, "bob"); i >= 0 && i < slices.Index(names, "alice") {
		t.Error("swapped", names)
	}
}
