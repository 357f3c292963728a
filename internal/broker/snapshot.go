package broker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"

	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// snapshotEntries is the smallest number of entries between snapshots: so many are read at a start.
const snapshotEntries = 50_000

// snapshotEntry is the name in Meta of the index of the newest snapshot's entry.
const snapshotEntry = "snapshot-entry"

// snapshot makes a snapshot of the state when there are many entries since the last: more than the state has parts, so
// that snapshots cost no more than the entries do. It is encoded while decisions go on, and its entry follows.
func (b *Broker) snapshot() {
	s := b.state
	since := s.Size - b.snapped
	if !b.Leads() || b.snapshotting || since < b.snapshotEvery || since < 4*int64(len(s.Requests)+len(s.Tokens)) {
		return
	}
	b.snapshotting = true
	still := s.clone()
	b.group.Go(func() {
		data, err := json.Marshal(still)
		if err == nil {
			err = b.do(b.running, func(d *decision) error {
				index := d.Size
				if err := d.event(Event{Type: snapshot, Snapshot: hashOf(data), Index: still.Size}); err != nil {
					return err
				}
				d.batch.Snapshot = &store.Snapshot{Size: still.Size, Data: data}
				d.meta(snapshotEntry, strconv.AppendInt(nil, index, 10))
				b.snapped = still.Size
				return nil
			})
		}
		if err != nil && b.running.Err() == nil {
			slog.Error("cannot make a snapshot of the log", "error", err)
		}
		_ = b.do(b.running, func(*decision) error { b.snapshotting = false; return nil })
	})
}

// restore returns the state of the newest snapshot whose entry verifies, or an empty one.
func (b *Broker) restore(ctx context.Context, checkpoint translog.Checkpoint) (*state, error) {
	kept, err := b.options.Store.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	at, err := b.options.Store.Meta(ctx, snapshotEntry)
	if err != nil {
		return nil, err
	}
	index, err := strconv.ParseInt(string(at), 10, 64)
	if kept == nil || err != nil || index >= checkpoint.Size {
		return newState(b.options.Limits.Requests.Per), nil //nolint:nilerr // without an entry a snapshot is none
	}
	var entry []byte
	err = b.options.Store.Entries(ctx, index, index+1, func(_ int64, data []byte) error {
		entry = data
		return nil
	})
	if err != nil {
		return nil, err
	}
	e, err := decodeEvent(entry)
	if err != nil || e.Type != snapshot || e.Snapshot != hashOf(kept.Data) || e.Index != kept.Size {
		slog.Warn("the snapshot in the database is not the one of the log, and all entries are read instead")
		return newState(b.options.Limits.Requests.Per), nil //nolint:nilerr // as it says
	}
	void, err := b.voided(ctx, index+1, checkpoint.Size)
	if err != nil {
		return nil, err
	}
	if void.has(index) { // no checkpoint had covered it when the broker stopped
		return newState(b.options.Limits.Requests.Per), nil
	}
	proof, err := translog.ProveEntry(ctx, b.tiles, checkpoint.Size, index)
	if err == nil {
		err = translog.CheckEntry(proof, checkpoint, index, entry)
	}
	if err != nil {
		return nil, errors.Join(errEdited, err)
	}
	s := newState(b.options.Limits.Requests.Per)
	decoder := json.NewDecoder(bytes.NewReader(kept.Data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(s); err != nil { // a newer version has written it: the entries tell whether that matters
		slog.Warn("the snapshot of the log cannot be read, and all entries are read instead", "error", err)
		return newState(b.options.Limits.Requests.Per), nil
	}
	s.index()
	b.snapped = s.Size
	return s, nil
}
