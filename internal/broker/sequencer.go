package broker

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/telemetry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// maxBatch is the largest number of decisions that are made durable together.
const maxBatch = 256

// job is a decision that waits for the sequencer.
type job struct {
	ctx    context.Context
	reads  bool // it adds nothing
	decide func(*decision) error
	done   chan error
}

// decision is what a job may do: look at the state, and add events, which are applied to it at once. A job checks all
// that can fail before it adds its first event.
type decision struct {
	*state
	ctx   context.Context //nolint:containedctx // of the job, for its trace
	b     *Broker
	now   time.Time
	batch *store.Batch
	names []string // of the requests that it changes
}

// do has the sequencer take a decision, and returns once it is durable.
func (b *Broker) do(ctx context.Context, decide func(*decision) error) (err error) {
	ctx, span := telemetry.Start(ctx, "commit")
	defer func() { span.End(kindOf(err)) }()
	return b.ask(&job{ctx: ctx, decide: decide, done: make(chan error, 1)})
}

// look has the sequencer read the state as it is durable.
func (b *Broker) look(ctx context.Context, read func(*decision)) error {
	return b.ask(&job{ctx: ctx, reads: true, decide: func(d *decision) error { read(d); return nil },
		done: make(chan error, 1)})
}

// ask has the sequencer do a job.
func (b *Broker) ask(j *job) error {
	ctx := j.ctx
	if b.running.Err() != nil && ctx.Value(finishing{}) == nil {
		return errStopping()
	}
	select {
	case b.jobs <- j:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-b.quit:
		return errStopping()
	}
	select { // the sequencer answers as soon as the store does
	case err := <-j.done:
		return err
	case <-b.ended:
		return errStopping()
	}
}

// kindOf returns the kind of a failure, or "" for none.
func kindOf(err error) string {
	if err == nil {
		return ""
	}
	return failure.From(err).Kind.String()
}

// finishing marks the context of a job of a request that has begun: it is done even when the broker stops.
type finishing struct{}

// sequence takes decisions until the broker ends.
func (b *Broker) sequence() {
	var moved <-chan struct{} // others may have added to the log
	if b.replica != nil {
		moved = b.replica.moved
	}
	for {
		var batch []*job
		select {
		case first := <-b.jobs:
			batch = append(batch, first)
		case <-moved: // it is followed in any case
		case <-b.quit:
			return
		}
		for more := true; more && len(batch) < maxBatch; {
			select {
			case next := <-b.jobs:
				batch = append(batch, next)
			default:
				more = false
			}
		}
		b.commit(batch)
	}
}

// commit takes the decisions of a batch, makes them durable, and answers.
func (b *Broker) commit(jobs []*job) {
	turn, err := b.turn(!slices.ContainsFunc(jobs, func(j *job) bool { return !j.reads }))
	if err != nil {
		for _, j := range jobs {
			j.done <- err
		}
		return
	}
	defer turn.End()
	batch := &store.Batch{First: b.state.Size}
	now := b.now(turn)
	errs := make([]error, len(jobs))
	names := b.loseDead(turn, batch, now)
	for i, j := range jobs {
		if j.ctx.Value(finishing{}) == nil {
			if errs[i] = context.Cause(j.ctx); errs[i] == nil && b.running.Err() != nil {
				errs[i] = errStopping() // nothing is added to the log behind its last checkpoint
			}
			if errs[i] != nil {
				continue
			}
		}
		d := &decision{state: b.state, ctx: j.ctx, b: b, now: now, batch: batch}
		errs[i] = j.decide(d)
		names = append(names, d.names...)
	}
	err = b.save(turn, batch)
	if err == nil {
		b.adopt()
		b.snapshot()
	}
	if err != nil {
		for _, id := range names {
			delete(b.live, id)
		}
	}
	for i, j := range jobs {
		if errs[i] == nil {
			errs[i] = err
		}
		j.done <- errs[i]
	}
	b.waiters.wake(names)
}

// now returns the time of the decisions of a turn: replicas go by the store's clock.
func (b *Broker) now(turn store.Turn) time.Time {
	now := b.time()
	if head := turn.Head(); head != nil {
		now = head.Now.UTC()
	}
	if now.Before(b.state.Last) {
		return b.state.Last
	}
	return now
}

// time returns the time of this moment: what replicas say of a request does not depend on which of them is asked.
func (b *Broker) time() time.Time {
	now := b.clock.now(time.Time{})
	if b.replica != nil {
		now = now.Add(time.Duration(b.replica.behind.Load()))
	}
	return now
}

// save commits a batch. When that fails, the state is read from the store again: it must be what is durable.
func (b *Broker) save(turn store.Turn, batch *store.Batch) error {
	counts := b.counts
	b.counts = nil
	if len(batch.Entries) == 0 && batch.Checkpoint == nil && len(batch.Requests) == 0 && len(batch.Meta) == 0 &&
		len(batch.Notices) == 0 && len(batch.Erased) == 0 {
		return nil
	}
	err := b.write(turn, batch)
	if err == nil {
		b.metrics.count(counts)
		return nil
	}
	slog.Error("cannot write to the store", "error", err)
	clear(b.rows)
	unknown := errors.Is(err, store.ErrUnknown)
	grown, _ := b.tree.Append(batch.Entries)
	b.unsettled = &unsettled{unknown: unknown, first: batch.First,
		own: batch.First + int64(len(batch.Entries)), trees: []*translog.Tree{b.tree, grown}}
	if u := b.unsettled; b.replica != nil {
		ctx, cancel := context.WithTimeout(context.Background(), maxTurnWait)
		defer cancel()
		if again := b.resettle(ctx); again != nil || !u.durable {
			return err
		}
		b.metrics.count(counts)
		return nil
	}
	if b.settle() == nil && unknown && b.state.Size == batch.First+int64(len(batch.Entries)) {
		b.metrics.count(counts)
		return nil
	}
	return err
}

// write commits a batch with the tiles of its entries.
func (b *Broker) write(turn store.Turn, batch *store.Batch) error {
	grown, changed := b.tree.Append(batch.Entries)
	for _, t := range changed {
		batch.Tiles = append(batch.Tiles, store.Tile{Level: t.Level, Index: t.Index, Hashes: t.Hashes})
	}
	if b.replica != nil {
		batch.Seal = b.seal(grown)
	}
	began := time.Now()
	err := turn.Commit(context.Background(), batch)
	b.metrics.commit.Observe(time.Since(began).Seconds())
	b.metrics.batch.Observe(float64(len(batch.Entries)))
	if err == nil {
		if newest := b.published.Load(); newest == nil || newest.Size >= batch.First {
			b.ahead.Store(int64(b.clock.clock.Boot()))
		}
		b.tree = grown
		b.durable.Store(b.state.Size)
		return nil
	}
	b.metrics.failed.Inc()
	return err
}

// unsettled says that a transaction has failed, and that the state has not been read again since.
type unsettled struct {
	unknown bool  // nobody knows whether it is durable
	late    bool  // callers were told that it failed
	durable bool  // all of it, as a replica has found
	first   int64 // entries before it
	own     int64 // entries that this process has added, and that callers were not told to have failed
	// trees are those that the log can have, of entries of this process. Another one has entries of somebody else.
	trees []*translog.Tree
}

// settledMeta is the name in Meta of what is written so that a transaction is durable: what was read before is, then.
const settledMeta = "settled"

// maxTrees is the largest number of trees that the log is known to be able to have.
const maxTrees = 256

// settle reads the state again after a transaction has failed. If it is unknown whether that is durable, it writes to
// the store: what is read is durable only once another transaction is, and what is not can then not come back.
func (b *Broker) settle() error {
	u := b.unsettled
	if u == nil {
		return nil
	}
	err := b.reload(context.Background(), u.own, u.trees...)
	if err == nil && u.unknown {
		batch := &store.Batch{First: b.state.Size, Meta: map[string][]byte{settledMeta: {1}}}
		d := &decision{state: b.state, b: b, now: b.clock.now(b.state.Last), batch: batch}
		if u.late {
			err = d.loseAll() // intents whose callers were told that they failed
		}
		if err == nil && u.late {
			err = d.void(max(u.own, b.published.Load().Size), batch.First)
		}
		if err == nil {
			if grown, _ := b.tree.Append(batch.Entries); len(batch.Entries) > 0 {
				u.trees = append(u.trees, grown)
			}
			if len(u.trees) > maxTrees {
				u.trees = slices.Delete(u.trees, 2, 3) // the oldest of those that a later attempt was to make
			}
			err = b.write(noTurn{b.options.Store}, batch)
		}
		if err == nil {
			b.metrics.count(b.counts)
		}
		b.counts = nil
	}
	if err != nil {
		u.late, u.own = true, u.first
		slog.Error("cannot read the store again", "error", err)
		return err
	}
	b.unsettled = nil
	return nil
}

// event adds an event to the log, and applies it.
func (d *decision) event(e Event) error {
	if d.b.sealed.Load() && !d.ofEpoch(&e) {
		return failure.New(failure.Unavailable, "nothing is added to the log: %s", *d.b.readOnly.Load()).
			WithHint("restore them with 'hsm-broker restore FILE LOG', or run 'hsm-broker log new-epoch'")
	}
	e.Time = d.now.UTC().Format(eventTime)
	entry, err := e.Encode()
	if err != nil {
		return err
	}
	d.batch.Entries = append(d.batch.Entries, entry)
	// An event of this process counts before a checkpoint covers it, as nobody else could have added it. Those that
	// change what is in force wait for one: see adopt.
	if t, ok := d.transition(&e); ok {
		d.b.counts = append(d.b.counts, t)
	}
	d.apply(&e, true)
	if e.Request != "" {
		d.names = append(d.names, e.Request)
	}
	return nil
}

// ofEpoch reports whether an event begins a new epoch, voids entries before it, or is about the request for one:
// nothing else is added to a log that lacks entries.
func (d *decision) ofEpoch(e *Event) bool {
	r := d.Requests[e.Request]
	return e.Type == epochBegun || e.Type == voided || e.What == ChangeEpoch || r != nil && r.What == ChangeEpoch
}

// confirm has what the job has read be durable when it returns, also on the standby that commits wait for: nothing may
// be released by what another replica has committed without a confirmation.
func (d *decision) confirm() {
	if d.b.replica != nil {
		d.meta(settledMeta, []byte{1})
	}
}

// document keeps a document by its SHA-256, once in a batch.
func (d *decision) document(data []byte) {
	same := func(other []byte) bool { return len(other) > 0 && len(data) > 0 && &other[0] == &data[0] }
	if !slices.ContainsFunc(d.batch.Documents, same) {
		d.batch.Documents = append(d.batch.Documents, data)
	}
}

// documentOf keeps a document of a request by its SHA-256, as long as the request is kept.
func (d *decision) documentOf(request string, data []byte) {
	d.batch.RequestDocuments = append(d.batch.RequestDocuments, store.RequestDocument{Request: request, Data: data})
}

// check fails while nothing may be signed.
func (d *decision) check() error {
	if why := d.b.readOnly.Load(); why != nil {
		hint := "follow 'Disasters' in the page on operating a broker"
		if *why == newConfig {
			hint = "run 'hsm-broker config apply' as an administrator, or start the broker with the config in force"
		}
		return failure.New(failure.Unavailable, "the broker signs nothing: %s", *why).WithHint(hint)
	}
	return d.b.checkPublished(d.Size)
}
