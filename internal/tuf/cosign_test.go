package tuf

import (
	"testing"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// TestCosignOnlyOwnContent has others propose the change of someone who signs second, with more in it.
func TestCosignOnlyOwnContent(t *testing.T) {
	w := newWorld(t)
	good, other := newSigner(t), newSigner(t)
	both := RoleKeys{Keys: []*Key{good.Key, other.Key}, Threshold: 2}
	w.propose(w.view().AmendDelegations(t.Context(), w.pending, Delegation{Name: "alice", Paths: []string{"r-*"},
		RoleKeys: both}, []*Signer{w.targets}))
	w.publish()
	want := Change{Set: []Target{target("r-1")}}
	all, err := want.items()
	w.must(err)
	for what, change := range map[string]func(*targetsFile) []*Signer{
		"never expires": func(m *targetsFile) []*Signer {
			m.Signed.Expires = time.Now().AddDate(50, 0, 0)
			return []*Signer{other}
		},
		"expires soon": func(m *targetsFile) []*Signer {
			m.Signed.Expires = time.Now().Add(time.Minute)
			return []*Signer{other}
		},
		"has a field": func(m *targetsFile) []*Signer {
			m.Signed.UnrecognizedFields = map[string]any{"x": "y"}
			return []*Signer{other}
		},
		"nobody signed": func(*targetsFile) []*Signer { return nil },
	} {
		m := metadata.Targets(expiry(targetsLifetime - time.Hour))
		m.Signed.Version = 2
		m.Signed.Targets, err = all.targets()
		w.must(err)
		signers := change(m)
		w.pending = nil
		p, err := w.pushed(map[string][]byte{"2.alice.json": w.file(m, signers...)})
		w.must(err)
		a, err := w.view().Amend(t.Context(), w.pending, "alice", want, []*Signer{good})
		w.must(err)
		made, err := ReadProposal("made", a.Files)
		w.must(err)
		theirs, err := p.content("alice")
		w.must(err)
		if ours, err := made.content("alice"); err != nil || ours == theirs {
			t.Errorf("%s: signed what another made, lacking %d (%v)", what, a.Lacking, err)
		}
	}
}
