package broker

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// maxTurnWait is how long a replica waits for its turn.
const maxTurnWait = 10 * time.Second

// noTurn is the turn of a broker that has its store for itself, and of those that only read.
type noTurn struct{ store store.Store }

// Head returns nil.
func (noTurn) Head() *store.Head { return nil }

// Commit commits a batch.
func (t noTurn) Commit(ctx context.Context, batch *store.Batch) error {
	return t.store.Commit(ctx, batch)
}

// End does nothing.
func (noTurn) End() {}

// turn has the state be what is durable, and keeps it so until the turn ends: nobody else adds to the log. For readers
// it only has the state be what is durable now.
func (b *Broker) turn(readers bool) (store.Turn, error) {
	if b.replica == nil {
		return noTurn{b.options.Store}, b.settle()
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxTurnWait)
	defer cancel()
	if err := b.resettle(ctx); err != nil {
		return nil, err
	}
	r := b.replica
	select {
	case <-r.moved: // it is followed now
	default:
	}
	if readers {
		head, err := r.Store.Head(ctx)
		if err == nil {
			_ = r.check(b.clock.now(time.Time{}), head.Now) // reading is allowed with any clock
			err = b.follow(ctx, head)
		}
		return noTurn{b.options.Store}, err
	}
	number := r.number.Load()
	if number == 0 {
		return nil, errNotJoined()
	}
	began := time.Now()
	turn, err := r.Store.Turn(ctx, number)
	b.metrics.turn.Observe(time.Since(began).Seconds())
	if errors.Is(err, store.ErrDead) {
		b.died(number)
		return nil, errNotJoined()
	}
	if err != nil {
		return nil, err
	}
	err = r.check(b.clock.now(time.Time{}), turn.Head().Now)
	if err == nil {
		err = b.follow(ctx, turn.Head())
	}
	if err != nil {
		turn.End()
		return nil, err
	}
	r.turn = number
	r.lose = r.lose || !slices.Equal(r.alive, turn.Head().Replicas)
	r.alive = turn.Head().Replicas
	return turn, nil
}

// loseDead ends, in a turn, the intents of replicas that are dead. It returns the requests whose intents they were.
func (b *Broker) loseDead(turn store.Turn, batch *store.Batch, now time.Time) []string {
	if turn.Head() == nil || !b.replica.lose || b.sealed.Load() {
		return nil
	}
	d := &decision{state: b.state, b: b, now: now, batch: batch}
	if err := d.loseAll(); err != nil {
		slog.Error("cannot end what a dead replica was signing", "error", err)
		return d.names
	}
	b.replica.lose = false
	return d.names
}

// check fails when the time of this machine differs from the store's, a moment before. A clock that jumps is no reason:
// the watch goes on as before, as it does for a clock that the store's follows.
func (r *replica) check(own, now time.Time) error {
	skew := own.Sub(now)
	if skew.Abs() <= MaxClockSkew {
		r.skewed.Store(0)
		return nil
	}
	if r.skewed.Swap(int64(skew)) == 0 {
		slog.Error("the clock of this machine is not the database's: nothing is decided here", "by", skew)
	}
	return failure.New(failure.Unavailable, "the clock of this replica of the broker differs from the database's by %s",
		skew.Round(time.Second)).WithHint("set the clocks of both machines right, and start the replica again")
}

// follow takes what other replicas have added to the log into account.
func (b *Broker) follow(ctx context.Context, head *store.Head) error {
	if head.Size < b.state.Size {
		return b.distrust(older)
	}
	entries := make([][]byte, 0, head.Size-b.state.Size)
	var events []*Event
	if head.Size > b.state.Size {
		err := b.options.Store.Entries(ctx, b.state.Size, head.Size, func(index int64, entry []byte) error {
			e, err := decodeEvent(entry)
			if err != nil {
				return failure.New(failure.Internal, "cannot read entry %d of the log: %w", index, err).
					WithHint("was it written by a newer version?")
			}
			entries, events = append(entries, entry), append(events, e)
			return nil
		})
		if err != nil {
			return err
		}
	}
	grown, _ := b.tree.Append(entries)
	if grown.Size() != head.Size || !hmac.Equal(head.Seal, b.seal(grown)) {
		return b.distrust(forked)
	}
	if newest := b.published.Load(); len(entries) > 0 && (newest == nil || newest.Size >= b.state.Size) {
		b.ahead.Store(int64(b.clock.clock.Boot()))
	}
	var names []string
	for _, e := range events {
		if e.Type == snapshot {
			b.snapped = e.Index
		}
		b.state.apply(e, true)
		if e.Request != "" {
			names = append(names, e.Request)
			delete(b.rows, e.Request)
		}
	}
	b.tree = grown
	b.durable.Store(head.Size)
	if head.Version != b.replica.version {
		if err := b.readPublished(ctx, head.Size); err != nil {
			return err
		}
		b.replica.version = head.Version
	}
	if len(events) > 0 {
		b.adopt()
	}
	b.waiters.wake(names)
	return nil
}

// seal returns what a replica shows by that it has added entries, all those of a tree.
func (b *Broker) seal(t *translog.Tree) []byte {
	root := t.Root()
	mac := hmac.New(sha256.New, b.replica.Key)
	fmt.Fprintf(mac, "seal/v1\n%s\n%d\n%x\n", b.options.Log.Origin, t.Size(), root[:])
	return mac.Sum(nil)
}

// readPublished takes the newest checkpoint from the store, if it is newer than the one that is known.
func (b *Broker) readPublished(ctx context.Context, size int64) error {
	note, err := b.options.Store.Checkpoint(ctx)
	if err != nil || note == nil {
		return err
	}
	c, err := b.verify(note)
	if err != nil {
		return err
	}
	if newest := b.published.Load(); newest == nil || c.Size > newest.Size {
		if root, err := b.rootAt(ctx, c.Size, size); err != nil || root != c.Root {
			return errors.Join(b.distrust(forked), err)
		}
		if err := writeFile(b.options.Log.File, note); err != nil {
			return err
		}
		b.published.Store(&published{Checkpoint: c, note: note})
		b.adopt()
	}
	if len(b.witnesses.all) > 0 && !b.Leads() {
		return b.loadCosigned(ctx)
	}
	return nil
}

// distrust has the broker decide nothing any more: the log in the store is not the one that it has followed.
func (b *Broker) distrust(why string) error {
	if !b.sealed.Swap(true) {
		slog.Error("the broker decides nothing any more", "reason", why)
	}
	b.readOnly.Store(&why)
	return failure.New(failure.Unavailable, "the broker decides nothing: %s", why).
		WithHint("see the page on operating a broker; start it again once the database is the right one")
}

// resettle reads the state again after a turn of this replica has failed. It takes a turn, as it is decided only then
// what of the one before is durable.
func (b *Broker) resettle(ctx context.Context) error {
	u := b.unsettled
	if u == nil {
		return nil
	}
	number := b.replica.number.Load()
	if number == 0 {
		return errNotJoined()
	}
	turn, err := b.replica.Store.Turn(ctx, number)
	if errors.Is(err, store.ErrDead) {
		b.died(number)
		return errNotJoined()
	}
	if err != nil {
		return err
	}
	head := turn.Head()
	turn.End() // reading the log can take longer than a turn
	if head.Size < u.first {
		return b.distrust(older)
	}
	if root, err := b.rootAt(ctx, u.first, head.Size); err != nil || root != u.trees[0].Root() {
		return errors.Join(b.distrust(forked), err)
	}
	if err := b.reload(ctx, 0); err != nil {
		return err
	}
	u.durable = false
	if grown := u.trees[1]; b.state.Size >= grown.Size() {
		root, err := b.rootAt(ctx, grown.Size(), b.state.Size)
		if err != nil {
			return err
		}
		u.durable = root == grown.Root()
	}
	b.unsettled = nil
	b.replica.lose = true
	return nil
}
