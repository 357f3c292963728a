package broker

import (
	"bytes"
	"context"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// voids are ranges of entries that permit nothing: [first, end).
type voids [][2]int64

func (v voids) has(index int64) bool {
	for _, one := range v {
		if one[0] <= index && index < one[1] {
			return true
		}
	}
	return false
}

// voided returns which entries permit nothing, as entries of the signed log say.
func (b *Broker) voided(ctx context.Context, first, covered int64) (voids, error) {
	var all, void voids
	err := b.options.Store.Entries(ctx, first, covered, func(index int64, entry []byte) error {
		if !bytes.Contains(entry, []byte(`"type":"`+voided+`"`)) {
			return nil
		}
		e, err := decodeEvent(entry)
		if err == nil && e.Type == voided {
			all = append(all, [2]int64{e.Index, index})
		}
		return err
	})
	for _, one := range slices.Backward(all) { // later ones can make it void
		if !void.has(one[1]) {
			void = append(void, one)
		}
	}
	return void, err
}

// recover ends what was under way when the broker stopped: intents without an outcome are lost, and what would permit
// something, without a checkpoint, is void.
func (b *Broker) recover() error {
	batch := &store.Batch{First: b.state.Size}
	d := &decision{state: b.state, b: b, now: b.clock.now(b.state.Last), batch: batch}
	if err := d.loseAll(); err != nil {
		return err
	}
	if err := d.void(b.published.Load().Size, batch.First); err != nil {
		return err
	}
	if b.replica != nil && len(batch.Entries) == 0 { // replicas follow no log without a seal: this makes the first one
		return b.write(noTurn{b.options.Store}, batch)
	}
	return b.save(noTurn{b.options.Store}, batch)
}

// void logs of entries that no checkpoint covers, and that are not known to be this process's, that they permit
// nothing. Otherwise they would, once one covers them.
func (d *decision) void(first, end int64) error {
	found := false
	var requests []string
	epochs := map[string]bool{} // requests for a new epoch that has begun
	err := d.b.options.Store.Entries(context.Background(), first, end, func(_ int64, entry []byte) error {
		e, err := decodeEvent(entry)
		if err != nil {
			return err
		}
		alive := d.Requests[e.Request]
		found = found || e.Permits() || e.Type == intended && alive != nil && alive.Bare
		epochs[e.Request] = epochs[e.Request] || e.What == ChangeEpoch
		if e.Permits() && e.Request != "" && alive == nil && !epochs[e.Request] {
			requests = append(requests, e.Request)
		}
		return nil
	})
	if err != nil || !found {
		return err
	}
	if err := d.event(Event{Type: voided, Index: first}); err != nil {
		return err
	}
	for id, r := range d.Requests { // approvals may have been among them
		if len(r.Votes) > 0 || r.State == brokerapi.Pending {
			d.refresh(id)
		}
	}
	for _, id := range requests {
		d.finish(id, brokerapi.Expired, "the broker stopped before the log had a signed checkpoint of it: try again")
	}
	return nil
}

// loseAll ends the intents whose outcome nobody knows.
func (d *decision) loseAll() error {
	for _, r := range d.Requests {
		if r.State != brokerapi.Signing || d.alive(r) {
			continue
		}
		if err := d.event(Event{Type: lost, Request: r.ID, Key: r.Key, Payload: r.Payload}); err != nil {
			return err
		}
		d.finish(r.ID, brokerapi.Lost, "the broker stopped before it knew whether the module had signed")
	}
	return nil
}

// alive reports whether somebody fulfils the intent of a request.
func (d *decision) alive(r *request) bool {
	others := d.b.replica
	if others == nil || r.Replica == others.turn {
		return d.b.live[r.ID]
	}
	return slices.Contains(others.alive, r.Replica)
}
