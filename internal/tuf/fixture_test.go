package tuf

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// memory is a set of files.
type memory map[string][]byte

func (m memory) Read(_ context.Context, name string, _ int64) ([]byte, error) {
	data, ok := m[name]
	if !ok {
		return nil, failure.New(failure.NotFound, "there is no %s", name)
	}
	return data, nil
}

// newSigner returns a signer with a key in memory.
func newSigner(t testing.TB) *Signer {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	k, err := NewKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &Signer{Key: k, sign: func(_ context.Context, data []byte) ([]byte, error) {
		sum := sha256.Sum256(data)
		return ecdsa.SignASN1(rand.Reader, private, sum[:])
	}}
}

// world is a repository with its keys, and what is published and proposed.
type world struct {
	t                                  testing.TB
	root, targets, snapshot, timestamp *Signer
	pin                                []byte
	published                          memory
	pending                            []*Proposal
	proposals                          int
	dir                                string // of the publisher
}

func one(s *Signer) RoleKeys { return RoleKeys{Keys: []*Key{s.Key}, Threshold: 1} }

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, root: newSigner(t), targets: newSigner(t), snapshot: newSigner(t), timestamp: newSigner(t),
		dir: t.TempDir()}
	root, err := NewRoot(one(w.root), one(w.targets), one(w.snapshot), one(w.timestamp))
	w.must(err)
	w.must(root.Sign(t.Context(), []*Signer{w.root}))
	w.pin, err = root.Encode()
	w.must(err)
	first, err := Begin(t.Context(), root, []*Signer{w.targets, w.snapshot, w.timestamp})
	w.must(err)
	w.published = memory(first.Files)
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// view returns what those who sign see.
func (w *world) view() *View {
	w.t.Helper()
	v, err := Client{Root: w.pin, Dir: w.t.TempDir(), Expired: true}.Update(w.t.Context(), w.published)
	w.must(err)
	return v
}

// propose adds a proposal of files.
func (w *world) propose(a *Amended, err error) *Proposal {
	w.t.Helper()
	w.must(err)
	w.proposals++
	p, err := ReadProposal(fmt.Sprintf("%04d", w.proposals), a.Files)
	w.must(err)
	w.pending = append(w.pending, p)
	return p
}

// publish publishes what can be, and returns why the rest is held.
func (w *world) publish() []string {
	w.t.Helper()
	v, err := Client{Root: w.pin, Dir: w.dir, Expired: true}.Update(w.t.Context(), w.published)
	w.must(err)
	made, err := v.Publish(w.t.Context(), w.pending, []*Signer{w.snapshot, w.timestamp}, false)
	w.must(err)
	if made.Files != nil {
		next := memory(maps.Clone(made.Files))
		for _, name := range made.Keep {
			if next[name] = w.published[name]; next[name] == nil {
				w.t.Fatalf("the publication keeps %s, which is not published", name)
			}
		}
		w.published = next
	}
	w.pending = slices.DeleteFunc(w.pending, func(p *Proposal) bool { return slices.Contains(made.In, p.ID) })
	return made.Held
}

// target returns a target for a tag.
func target(tag string) Target {
	return Target{Tag: tag, Digest: digest.FromString(tag), Size: 1000}
}

// resolve returns what a new client sees of a tag.
func (w *world) resolve(tag string) (Target, error) {
	w.t.Helper()
	v, err := Client{Root: w.pin, Dir: w.t.TempDir()}.Update(w.t.Context(), w.published)
	if err != nil {
		return Target{}, err
	}
	return v.Resolve(w.t.Context(), tag)
}
