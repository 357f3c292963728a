package broker

import (
	"bytes"
	"context"
	"os"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// begin makes the first entry of the log, with the policy and the config as their files are. A checkpoint outside of
// the database says that there was a log before.
func (b *Broker) begin() error {
	if _, err := os.Stat(b.options.Log.File); err == nil {
		return failure.New(failure.Conflict, "the database is empty, but %s has a checkpoint of its log", b.options.Log.File).
			WithHint("restore the database; to begin a new log, move the checkpoint's file away")
	}
	p, err := policy.Parse(b.options.Policy)
	if err != nil {
		return err
	}
	named := func(name string) bool {
		return slices.ContainsFunc(p.Groups(), func(g policy.Group) bool {
			return slices.ContainsFunc(g.Members, func(m policy.Person) bool { return m.Name == name })
		})
	}
	b.state, b.tree = newState(b.options.Limits.Requests.Per), emptyTree()
	batch := &store.Batch{Documents: [][]byte{b.options.Policy, b.options.Config}}
	d := &decision{state: b.state, b: b, now: b.clock.now(time.Time{}), batch: batch}
	err = d.event(Event{Type: opened, Origin: b.options.Log.Origin, Policy: hashOf(b.options.Policy),
		Config: hashOf(b.options.Config)})
	if err == nil {
		err = d.first(b.options.First, named)
	}
	if err != nil {
		return err
	}
	return b.save(noTurn{b.options.Store}, batch)
}

// signFirst signs the checkpoint of a log that has its first entries alone, unless there is one.
func (b *Broker) signFirst(ctx context.Context) error {
	if _, err := os.Stat(b.options.Log.File); err == nil {
		return nil
	}
	size := int64(1 + len(b.options.First))
	err := b.options.Store.Entries(ctx, 0, size, func(index int64, entry []byte) error {
		e, err := decodeEvent(entry)
		if err != nil || !b.isFirst(ctx, index, e) {
			return failure.New(failure.Conflict, "cannot begin the log: the database has another policy, config or first approver "+
				"than the files").WithHint("nothing was signed with it: move the database away, and start the broker again")
		}
		return nil
	})
	if err != nil {
		return err
	}
	tree, err := translog.NewTree(ctx, size, b.tiles)
	if err != nil {
		return err
	}
	note, err := b.options.Log.Sign(ctx, translog.Checkpoint{Origin: b.options.Log.Origin, Size: size, Root: tree.Root()})
	if err != nil {
		return failure.From(err).WithHint("the broker begins its log with a first checkpoint: its key must be within reach")
	}
	if err := writeFile(b.options.Log.File, note); err != nil {
		return err
	}
	return b.options.Store.Commit(ctx, &store.Batch{First: size, Checkpoint: note})
}

// isFirst reports whether an entry is the one with which the files begin the log, at an index.
func (b *Broker) isFirst(ctx context.Context, index int64, e *Event) bool {
	if index == 0 {
		return e.Type == opened && e.Policy == hashOf(b.options.Policy) && e.Config == hashOf(b.options.Config)
	}
	p := b.options.First[index-1]
	if e.Approver != b.personID(p.Name) {
		return false
	}
	if p.Credential == nil {
		return e.Type == invited && e.Invitation == p.Invitation
	}
	c, err := b.credential(ctx, e.Credential)
	return err == nil && e.Type == enrolled && c.Approver == e.Approver && c.Kind == p.Credential.Kind &&
		bytes.Equal(c.Public, p.Credential.Public) && c.Passkey == nil
}

func emptyTree() *translog.Tree {
	t, err := translog.NewTree(context.Background(), 0, nil)
	if err != nil {
		panic(err) // an empty tree reads nothing
	}
	return t
}
