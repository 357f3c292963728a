package broker

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
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
	if b.replica.outdated.Load() {
		return nil, errOutdated()
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
	turn, err := r.Store.Turn(ctx, number, b.state.Size)
	b.metrics.turn.Observe(time.Since(began).Seconds())
	if errors.Is(err, store.ErrDead) {
		b.died(number)
		return nil, errNotJoined()
	}
	if err != nil {
		return nil, err
	}
	for turn.Head().Size-b.state.Size > entryPage { // this takes longer than a turn
		turn.End()
		if err = b.follow(ctx, turn.Head()); err == nil {
			turn, err = r.Store.Turn(ctx, number, b.state.Size)
		}
		if err != nil {
			return nil, err
		}
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
	r.behind.Store(int64(-skew))
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

// follow takes what other replicas have added to the log into account. It reads a page at a time, and applies none
// before the seal of all of them has verified.
func (b *Broker) follow(ctx context.Context, head *store.Head) error {
	if head.Size < b.state.Size {
		return b.distrust(older)
	}
	if head.Size-b.state.Size > entryPage { // it takes as long as it takes; each call of the store is bounded
		ctx = context.WithoutCancel(ctx)
	}
	var page [][]byte
	var roots []translog.Hash // at the end of each page
	grown := b.tree
	for grown.Size() < head.Size {
		if page = head.Since; b.state.Size+int64(len(page)) != head.Size { // they are too many, or this is no turn
			var err error
			if page, err = b.page(ctx, grown.Size(), head.Size); err != nil {
				return err
			}
		}
		if len(page) == 0 {
			break
		}
		grown, _ = grown.Append(page)
		roots = append(roots, grown.Root())
	}
	if grown.Size() != head.Size || !hmac.Equal(head.Seal, b.seal(grown)) {
		return b.distrust(forked)
	}
	if newest := b.published.Load(); len(roots) > 0 && (newest == nil || newest.Size >= b.state.Size) {
		b.ahead.Store(int64(b.clock.clock.Boot()))
	}
	for _, root := range roots {
		var err error
		if len(roots) > 1 {
			page, err = b.page(ctx, b.state.Size, head.Size)
		}
		if err == nil {
			err = b.followPage(page, root)
		}
		if err != nil {
			return err
		}
	}
	if head.Version != b.replica.version {
		return b.readPublished(ctx, head)
	}
	return nil
}

// page reads some entries of the log, from an index on.
func (b *Broker) page(ctx context.Context, first, end int64) (entries [][]byte, err error) {
	err = b.options.Store.Entries(ctx, first, min(first+entryPage, end), func(_ int64, entry []byte) error {
		entries = append(entries, entry)
		return nil
	})
	return entries, err
}

// followPage applies entries that follow those of the state, and puts into force what they do. With them, the tree has
// a root.
func (b *Broker) followPage(entries [][]byte, root translog.Hash) error {
	grown, _ := b.tree.Append(entries)
	if grown.Root() != root { // they are not those that were read before
		return b.distrust(forked)
	}
	events := make([]*Event, len(entries))
	for i, entry := range entries {
		var err error
		if events[i], err = decodeEvent(entry); err != nil {
			b.outdate(b.state.Size+int64(i), err)
			return errOutdated()
		}
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
	b.durable.Store(grown.Size())
	b.adopt()
	b.waiters.wake(names)
	return nil
}

// outdate notes that a newer version has written an entry that this one cannot read: as it does not know what was
// decided, the replica decides nothing any more. It leaves the others: see beatOnce.
func (b *Broker) outdate(index int64, err error) {
	if r := b.replica; r != nil && !r.outdated.Swap(true) {
		slog.Error("a newer version has written an entry that this one cannot read: nothing is decided here", "index", index,
			"error", err)
	}
}

// seal returns what a replica shows by that it has added entries, all those of a tree, and has the same pseudonyms as
// the others: whoever changes the secret in the database could have one of them take a person for two.
func (b *Broker) seal(t *translog.Tree) []byte {
	root := t.Root()
	mac := hmac.New(sha256.New, b.replica.Key)
	fmt.Fprintf(mac, "seal/v1\n%s\n%d\n%x\n%x\n", b.options.Log.Origin, t.Size(), root[:], sha256.Sum256(b.secret))
	return mac.Sum(nil)
}

// readPublished takes the newest checkpoint from the store, if it is newer than the one that is known.
func (b *Broker) readPublished(ctx context.Context, head *store.Head) error {
	note, err := b.options.Store.Checkpoint(ctx)
	if err != nil || note == nil {
		return err
	}
	c, err := b.verify(note)
	if err != nil {
		return err
	}
	if c.Size > head.Size {
		return nil // others have published since the head was read: the next one has another version
	}
	if newest := b.published.Load(); newest == nil || c.Size > newest.Size {
		if root, err := b.rootAt(ctx, c.Size, head.Size); unreached(err) {
			return err
		} else if err != nil || root != c.Root {
			return errors.Join(b.distrust(forked), err)
		}
		if err := b.keepPublished(c, note); err != nil { // it is tried again, and does not count until then
			slog.Error("cannot keep the checkpoint of another replica", "error", err)
			return nil
		}
		b.published.Store(&published{Checkpoint: c, note: note})
		b.adopt()
	}
	if len(b.witnesses.all) > 0 && !b.Leads() {
		if err := b.loadCosigned(ctx); err != nil {
			return err
		}
	}
	b.replica.version = head.Version
	return nil
}

// keepPublished has the file outside of the database have the checkpoint of another replica. While nothing is signed
// because of what the file says, one of the same epoch does not replace it: it would take away the evidence. A new
// epoch does, and the old checkpoint is kept beside it.
func (b *Broker) keepPublished(c translog.Checkpoint, note []byte) error {
	if b.sealed.Load() {
		data, err := bound.ReadFile(b.options.Log.File, maxFile)
		if err != nil {
			return nil //nolint:nilerr // without a file, an operator puts one there
		}
		kept, err := b.verify(data)
		if err != nil || b.epochOf(kept) >= b.epochOf(c) {
			return nil //nolint:nilerr // as above
		}
		if err := writeFile(fmt.Sprintf("%s.epoch-%d", b.options.Log.File, b.epochOf(kept)), data); err != nil {
			return err
		}
	}
	return writeFile(b.options.Log.File, note)
}

// epochOf returns the epoch of a checkpoint of this log; 0 if its name has none.
func (b *Broker) epochOf(c translog.Checkpoint) int64 {
	if c.Origin == b.options.Log.Origin {
		return 1
	}
	epoch, _ := strconv.ParseInt(strings.TrimPrefix(c.Origin, b.options.Log.Origin+"/"), 10, 64)
	return epoch
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
	turn, err := b.replica.Store.Turn(ctx, number, math.MaxInt64) // no entries: the log is read afterwards
	if errors.Is(err, store.ErrDead) {
		b.died(number)
		return errNotJoined()
	}
	if err != nil {
		return err
	}
	defer turn.End()
	head := turn.Head()
	if head.Size < u.first {
		return b.distrust(older)
	}
	if u.unknown { // what is read can lack the confirmation of the standby, which that of a later transaction includes
		if err := turn.Commit(ctx, &store.Batch{First: head.Size, Meta: map[string][]byte{settledMeta: {1}}}); err != nil {
			return err
		}
	}
	turn.End()
	ctx = context.WithoutCancel(ctx) // reading the log can take longer than a turn; each call of the store is bounded
	if root, err := b.rootAt(ctx, u.first, head.Size); unreached(err) {
		return err
	} else if err != nil || root != u.trees[0].Root() {
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
	b.waiters.wakeAll() // for what others have added meanwhile
	return nil
}

// unreached reports whether a failure is that the store is not reached, which says nothing of what it has.
func unreached(err error) bool {
	return failure.Is(err, failure.Unavailable) || failure.Is(err, failure.Timeout)
}
