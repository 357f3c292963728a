package tuf

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// seen is what someone has read: what was published and proposed at that moment.
type seen struct {
	view    *View
	pending []*Proposal
}

// task is a change that someone signs: it reads, proposes, reads again, and is done when nothing is lacking.
type task struct {
	role   string
	signer *Signer
	change Change
	read   *seen
	done   bool
}

// random has people sign, in an order that chance decides.
type random struct {
	*world
	chance  *rand.Rand
	signers map[string]*Signer // by role
	tasks   []*task
	reader  *seen // of the publisher, between reading and writing
	signed  map[string]string
	removed map[string]string // tag -> role
	tags    int
}

func (r *random) look() *seen {
	s := &seen{view: r.view()}
	for _, p := range r.pending { // proposals are read anew each time
		again, err := ReadProposal(p.ID, r.filesOf(p))
		r.must(err)
		s.pending = append(s.pending, again)
	}
	return s
}

func (r *random) filesOf(p *Proposal) map[string][]byte {
	files := map[string][]byte{}
	for role, data := range p.raw {
		version := int64(0)
		if role == Root {
			version = p.root.Signed.Version
		} else {
			version = p.roles[role].Signed.Version
		}
		files[fileName(role, version)] = data
	}
	return files
}

// begin has someone sign a new tag, or remove one that is signed.
func (r *random) begin() {
	roles := slices.Sorted(maps.Keys(r.signers))
	role := roles[r.chance.IntN(len(roles))]
	t := &task{role: role, signer: r.signers[role]}
	own := slices.DeleteFunc(slices.Sorted(maps.Keys(r.signed)), func(tag string) bool { return r.signed[tag] != role })
	if len(own) > 0 && r.chance.IntN(4) == 0 {
		t.change.Remove = []string{own[r.chance.IntN(len(own))]}
		delete(r.signed, t.change.Remove[0])
	} else {
		r.tags++
		t.change.Set = []Target{target(fmt.Sprintf("%s-%d", role, r.tags))}
	}
	r.tasks = append(r.tasks, t)
}

// step has someone go on.
func (r *random) step(t *task) {
	r.t.Helper()
	if t.read == nil {
		t.read = r.look()
		return
	}
	published, proposed, err := t.read.view.Has(r.t.Context(), t.read.pending, t.role, t.change)
	r.must(err)
	if published || proposed {
		t.done = true
		for _, set := range t.change.Set {
			r.signed[set.Tag] = t.role
		}
		for _, tag := range t.change.Remove {
			r.removed[tag] = t.role
		}
		return
	}
	a, err := t.read.view.Amend(r.t.Context(), t.read.pending, t.role, t.change, []*Signer{t.signer})
	t.read = nil
	if errors.Is(err, ErrPending) {
		return // wait for the publisher
	}
	r.propose(a, err)
}

// publisher reads, or writes what follows from what it has read.
func (r *random) publisher() {
	r.t.Helper()
	if r.reader == nil {
		r.reader = r.look()
		return
	}
	made, err := r.reader.view.Publish(r.t.Context(), r.reader.pending, []*Signer{r.snapshot, r.timestamp}, false)
	r.must(err)
	r.reader = nil
	if made.Files != nil {
		next := memory(maps.Clone(made.Files))
		for _, name := range made.Keep {
			next[name] = r.published[name]
		}
		r.published = next
	}
	r.pending = slices.DeleteFunc(r.pending, func(p *Proposal) bool { return slices.Contains(made.In, p.ID) })
}

// TestRandomOrder has many people sign at the same time, in an order that chance decides. Whatever it is, each change
// that someone was told of as proposed is published, and nothing else.
func TestRandomOrder(t *testing.T) {
	seeds := uint64(12)
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := &random{world: newWorld(t), chance: rand.New(rand.NewPCG(seed, 0)), signers: map[string]*Signer{},
				signed: map[string]string{}, removed: map[string]string{}}
			r.signers[Tags] = r.targets
			for _, name := range []string{"alice", "bob"} {
				r.signers[name] = newSigner(t)
				r.propose(r.view().AmendDelegations(t.Context(), r.pending, Delegation{Name: name, Paths: []string{name + "-*"},
					RoleKeys: one(r.signers[name])}, []*Signer{r.targets}))
				r.publish()
			}
			for range 150 {
				waiting := slices.DeleteFunc(slices.Clone(r.tasks), func(t *task) bool { return t.done })
				switch n := r.chance.IntN(10); {
				case n < 2 && len(waiting) < 6:
					r.begin()
				case n < 4:
					r.publisher()
				case len(waiting) > 0:
					r.step(waiting[r.chance.IntN(len(waiting))])
				}
			}
			for steps := 0; ; steps++ { // let everyone finish
				i := slices.IndexFunc(r.tasks, func(t *task) bool { return !t.done })
				if i < 0 {
					break
				}
				if steps > 500 {
					t.Fatal("it does not end")
				}
				r.step(r.tasks[i])
				if r.chance.IntN(3) == 0 {
					r.publisher()
				}
			}
			for range 4 {
				r.publisher()
			}
			if len(r.pending) > 0 {
				t.Errorf("%d proposals are left", len(r.pending))
			}
			listed, err := r.view().List(t.Context())
			r.must(err)
			for tag, role := range r.signed {
				if !slices.ContainsFunc(listed, func(l Target) bool { return l.Tag == tag && l.Role == role }) {
					t.Errorf("tag %s of %s is lost", tag, role)
				}
			}
			for tag := range r.removed {
				if _, err := r.resolve(tag); err == nil || failure.From(err).Kind != failure.Denied {
					t.Errorf("removed tag %s: %v", tag, err)
				}
			}
			if len(listed) != len(r.signed) {
				t.Errorf("%d tags are listed, %d were signed", len(listed), len(r.signed))
			}
		})
	}
}
