package broker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/renameio/v2"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Replica says that a broker is one of several replicas, which share a store. They do not speak with one another: each
// follows the log in the store, and decides when it has its turn.
type Replica struct {
	Store store.Shared
	// Key is known to the replicas alone, 32 bytes. By it one of them knows which entries another has added.
	Key     []byte
	Name    string // of the machine, for people
	Version string // of the program
}

// replica is what a broker is among the others.
type replica struct {
	Replica
	number atomic.Int64 // 0 while it has not joined the others, or after it was taken for dead
	until  atomic.Int64 // time since boot until which it leads
	unable atomic.Bool  // to sign the log, or to keep the checkpoint
	moved  chan struct{}
	seen   atomic.Pointer[sight]
	behind atomic.Int64 // what is added to the time of this machine to get the store's
	skewed atomic.Int64 // by how much the clock differs from the store's, if that is too much
	// outdated says that the log has entries which only a newer version of the program can read.
	outdated atomic.Bool

	// Of the sequencer alone.
	turn    int64   // its number in this turn
	version int64   // of the head that was read last
	alive   []int64 // in the last turn
	lose    bool    // there may be intents that nobody fulfils
}

// probeEvery is how often a replica that could not sign the log tries whether it can.
const probeEvery = 3 * time.Second

// Leads reports whether this replica leads: it alone signs checkpoints, and does what is done once. A broker that has
// its store for itself leads always.
func (b *Broker) Leads() bool {
	r := b.replica
	return r == nil || int64(b.clock.clock.Boot()) < r.until.Load()
}

// WhileLeading calls run whenever this replica begins to lead, until ctx ends. The context of run ends when it leads no
// more.
func (b *Broker) WhileLeading(ctx context.Context, run func(ctx context.Context)) {
	tick := time.NewTicker(store.BeatEvery / 4)
	defer tick.Stop()
	for ctx.Err() == nil {
		if b.Leads() {
			leading, end := context.WithCancel(ctx)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				run(leading)
			}()
			for running := true; running && b.Leads(); {
				select {
				case <-tick.C:
				case <-ended:
					running = false
				case <-ctx.Done():
					running = false
				}
			}
			end()
			<-ended
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
		}
	}
}

// join adds the broker to the replicas that are alive.
func (b *Broker) join(ctx context.Context) error {
	r := b.replica
	number, err := r.Store.Join(ctx, store.Replica{Name: r.Name, Version: r.Version})
	if err != nil {
		return err
	}
	r.number.Store(number)
	slog.Info("joined the replicas", "number", number)
	return nil
}

// beat tells the others that this replica is alive, until it ends: after all signatures in flight.
func (b *Broker) beat(ctx context.Context) {
	tick := time.NewTicker(store.BeatEvery)
	defer tick.Stop()
	for {
		err := b.beatOnce(ctx)
		if errors.Is(err, store.ErrDead) { // it joins the others at once
			err = b.beatOnce(ctx)
		}
		if err != nil && ctx.Err() == nil {
			slog.Warn("cannot tell the other replicas that this one is alive", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (b *Broker) beatOnce(ctx context.Context) error {
	r := b.replica
	ctx, cancel := context.WithTimeout(ctx, store.DeadAfter)
	defer cancel()
	if r.outdated.Load() { // the others end what it was signing, and one of them leads
		r.until.Store(0)
		b.leave(ctx)
		return nil
	}
	if r.number.Load() == 0 {
		if err := b.join(ctx); err != nil {
			return err
		}
	}
	number, began := r.number.Load(), b.clock.clock.Boot()
	leads, err := r.Store.Beat(ctx, number, b.able())
	switch {
	case errors.Is(err, store.ErrDead):
		b.died(number)
		return err
	case err != nil:
		return err
	case leads:
		if !b.Leads() {
			slog.Info("this replica leads", "number", number)
		}
		r.until.Store(int64(began + store.DeadAfter))
	default:
		r.until.Store(0)
	}
	return nil
}

// able reports whether this replica can do what the one that leads does: one that decides nothing would keep the others
// without checkpoints.
func (b *Broker) able() bool {
	return !b.replica.unable.Load() && !b.sealed.Load() && b.replica.skewed.Load() == 0
}

// died notes that a replica was taken for dead under a number.
func (b *Broker) died(number int64) {
	r := b.replica
	if r.number.CompareAndSwap(number, 0) {
		r.until.Store(0)
		slog.Error("this replica was taken for dead: what it was signing is lost, and it joins the others again", "number",
			number)
	}
}

// probe signs the log's newest checkpoint again while the replica is unable to publish one: it leads again once it can.
func (b *Broker) probe() {
	tick := time.NewTicker(cmp.Or(b.options.publishEvery, probeEvery))
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-b.running.Done():
			return
		}
		if newest := b.published.Load(); b.replica.unable.Load() && newest != nil {
			_, err := b.options.Log.Sign(b.running, newest.Checkpoint)
			if err == nil {
				err = b.tryFile()
			}
			if err == nil {
				b.replica.unable.Store(false)
			}
		}
	}
}

// tryFile fails while the checkpoint's file cannot be written.
func (b *Broker) tryFile() error {
	f, err := renameio.TempFile("", b.options.Log.File)
	if err != nil {
		return err
	}
	defer f.Cleanup() //nolint:errcheck // it is no matter what is left
	if info, err := os.Stat(b.options.Log.File); err == nil && !info.Mode().IsRegular() {
		return errors.New("the checkpoint's file is no file")
	}
	_, err = f.Write(make([]byte, maxFile))
	return err
}

// listen has the sequencer follow the log when others may have added to it.
func (b *Broker) listen() {
	b.replica.Store.Changes(b.running, func() {
		select {
		case b.replica.moved <- struct{}{}:
		default:
		}
	})
}

// leave ends the replica for the others.
func (b *Broker) leave(ctx context.Context) {
	if number := b.replica.number.Swap(0); number != 0 {
		if err := b.replica.Store.Leave(ctx, number); err != nil {
			slog.Warn("cannot tell the other replicas that this one ends", "error", err)
		}
	}
}

// part says whether the replica can decide.
func (r *replica) part() brokerapi.Part {
	p := brokerapi.Part{Name: "replica", Ready: true, Needed: true}
	skew := time.Duration(r.skewed.Load())
	switch {
	case r.outdated.Load():
		p.Ready, p.Detail = false, "a newer version has written an entry of the log that this one cannot read: upgrade it"
	case r.number.Load() == 0:
		p.Ready, p.Detail = false, "the others have taken it for dead, and it has not joined them again"
	case skew != 0:
		p.Ready, p.Detail = false, fmt.Sprintf("its clock differs from the database's by %s", skew.Round(time.Second))
	}
	return p
}

// errNotJoined is the failure of a replica that decides nothing, as the others do not know it.
func errNotJoined() error {
	return failure.New(failure.Unavailable, "this replica of the broker was taken for dead and has not joined again").
		WithHint("try again in a second, or at another replica").WithRetryAfter(soon)
}

// errOutdated is the failure of a replica that cannot read the log any more.
func errOutdated() error {
	return failure.New(failure.Unavailable, "this replica of the broker cannot read entries of a newer version").
		WithHint("try again at another replica, and upgrade this one").WithRetryAfter(soon)
}
