package broker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// publishInterval is how often a checkpoint is signed, at most, while the log grows.
const publishInterval = 500 * time.Millisecond

// published is a checkpoint.
type published struct {
	translog.Checkpoint
	note []byte
}

// publish signs checkpoints until the broker ends.
func (b *Broker) publish() {
	tick := time.NewTicker(cmp.Or(b.options.publishEvery, publishInterval))
	defer tick.Stop()
	failed := false
	for {
		select {
		case <-tick.C:
		case <-b.urgent:
		case <-b.running.Done():
			return
		}
		err := b.publishNow(b.running)
		switch {
		case err != nil && b.running.Err() == nil:
			if !failed {
				slog.Error("cannot sign the log", "error", err)
			}
			failed = true
		case err == nil && failed:
			slog.Info("the log is signed again")
			failed = false
		}
	}
}

// publishNow signs the tree that is durable, unless its checkpoint is there. The file has it before the store: the
// store is never without entries that the file says it has.
func (b *Broker) publishNow(ctx context.Context) error {
	if newest := b.published.Load(); newest != nil && newest.Size == b.durable.Load() {
		return nil
	}
	if b.sealed.Load() || !b.Leads() {
		return nil
	}
	ctx = context.WithValue(ctx, finishing{}, true)
	var unsigned translog.Checkpoint
	err := b.do(ctx, func(d *decision) error { // the tree is the sequencer's: before this batch, it is durable
		unsigned = translog.Checkpoint{Origin: b.origin(), Size: b.tree.Size(), Root: b.tree.Root()}
		d.confirm()
		return nil
	})
	if err != nil {
		return err
	}
	note, err := b.options.Log.Sign(ctx, unsigned)
	if b.replica != nil {
		b.replica.unable.Store(err != nil)
	}
	if err != nil {
		return err
	}
	if again, err := b.verify(note); err != nil || again != unsigned {
		return errors.Join(failure.New(failure.Internal, "the log's key made a signature that does not verify"), err)
	}
	if newest := b.published.Load(); newest != nil && newest.Size > unsigned.Size { // another replica's
		return nil
	}
	if err := writeFile(b.options.Log.File, note); err != nil {
		if b.replica != nil { // another one can have a disk
			b.replica.unable.Store(true)
		}
		return err
	}
	return b.do(ctx, func(d *decision) error {
		if newest := b.published.Load(); newest != nil && newest.Size > unsigned.Size {
			return nil
		}
		d.batch.Checkpoint = note
		b.published.Store(&published{Checkpoint: unsigned, note: note})
		return nil
	})
}

// verify returns a checkpoint of this log, of any epoch.
func (b *Broker) verify(note []byte) (translog.Checkpoint, error) {
	origin, _, _ := strings.Cut(string(note), "\n")
	if rest, ours := strings.CutPrefix(origin, b.options.Log.Origin); !ours || rest != "" && rest[0] != '/' {
		return translog.Checkpoint{}, failure.New(failure.Denied, "the checkpoint is of the log %.100q, not of %q", origin,
			b.options.Log.Origin).WithHint("check log.origin")
	}
	v, err := translog.NewVerifier(origin, b.options.Log.Public)
	if err != nil {
		return translog.Checkpoint{}, err
	}
	return translog.Open(note, []*translog.Verifier{v})
}

// checkPublished fails when the log is too far ahead of its newest checkpoint.
func (b *Broker) checkPublished(size int64) error {
	newest := b.published.Load()
	if newest == nil {
		return failure.New(failure.Unavailable, "the log has no checkpoint yet").WithHint("try again in a second")
	}
	behind := size - newest.Size
	late := behind > 0 && b.clock.clock.Boot()-time.Duration(b.ahead.Load()) > b.options.Log.MaxUnpublished
	if late || behind > b.options.Log.MaxUnpublishedEntries {
		return failure.New(failure.Unavailable, "the log's key is unavailable: %d entries have no checkpoint", behind).
			WithHint("see why the broker cannot sign the log: its key must be within reach")
	}
	return nil
}

// covered waits until a checkpoint covers an entry.
func (b *Broker) covered(ctx context.Context, index int64) error {
	if b.sealed.Load() { // no checkpoint is signed before a new epoch begins
		return nil
	}
	for {
		if newest := b.published.Load(); newest != nil && newest.Size > index {
			return nil
		}
		select {
		case b.urgent <- struct{}{}:
		default:
		}
		select {
		case <-ctx.Done():
			return failure.New(failure.Timeout, "no checkpoint of the log covers the change yet: %w", context.Cause(ctx)).
				WithHint("see why the broker cannot sign the log")
		case <-b.running.Done():
			return errStopping()
		case <-time.After(10 * time.Millisecond):
		}
	}
}
