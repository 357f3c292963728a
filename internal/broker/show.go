package broker

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Policy returns the policy in force.
func (b *Broker) Policy() *brokerapi.Policy {
	now := b.inForce.Load()
	source := now.policy.Source()
	return &brokerapi.Policy{Policy: string(source), SHA256: now.digest, Since: now.since, Index: now.index}
}

// Keys returns the keys of the policy in force.
func (b *Broker) Keys() []*policy.Key { return b.inForce.Load().policy.Keys() }

// Key returns a key of the policy in force, and nil if there is none of this name.
func (b *Broker) Key(name string) *policy.Key { return b.inForce.Load().policy.Key(name) }

// Blocked reports whether a key is blocked.
func (b *Broker) Blocked(name string) bool {
	_, is := (*b.blocked.Load())[name]
	return is
}

// Log returns where the log is read.
func (b *Broker) Log() translog.Source {
	return translog.Source{Tile: b.tiles, Entries: b.options.Store.Entries,
		Checkpoint: func(context.Context) ([]byte, error) {
			return b.newestNote(), nil
		}}
}

// Parts returns the state of the broker's own parts.
func (b *Broker) Parts(ctx context.Context) []brokerapi.Part {
	log, clock, signing := part("log", b.checkPublished(b.durable.Load())), part("clock", nil), part("signing", nil)
	if jump := b.clock.frozen(time.Time{}); jump != 0 {
		clock.Ready, clock.Needed = false, false
		clock.Detail = fmt.Sprintf("it has jumped by %s: time locks stay closed", jump)
	}
	if why := b.readOnly.Load(); why != nil {
		signing.Ready, signing.Detail = false, *why
	}
	var parts []brokerapi.Part
	if b.replica == nil {
		parts = append(parts, part("store", storeFailure(b.options.Store.Size(ctx))))
	} else {
		parts = b.replicaParts()
	}
	reached := parts[0].Ready
	parts = append(parts, log, clock, signing)
	approvers := brokerapi.Part{Name: "approvers", Ready: true}
	if reached { // the sequencer waits for the store
		if err := b.look(ctx, func(d *decision) { approvers.Detail = d.stuck() }); err != nil {
			approvers.Detail = failure.From(err).What
		}
	} else {
		approvers.Detail = "the store is away"
	}
	approvers.Ready = approvers.Detail == ""
	return append(append(parts, approvers), b.witnesses.parts()...)
}

// stuck says that the people whose credentials are enrolled are too few to change anything: nobody could enrol others
// or change the policy. It is "" if they are enough for one of the top-level rules for modify.
func (d *decision) stuck() string {
	in := d.b.inForce.Load()
	rules := in.policy.Rules(policy.Modify, "")
	if len(rules) == 0 { // it is meant
		return ""
	}
	var votes []approval.Vote
	for _, c := range d.Credentials {
		votes = append(votes, approval.Vote{Person: c.Person, Kind: c.Kind, Attested: c.Attested, DeviceBound: c.Device})
	}
	for _, r := range rules {
		lacking := approval.Lacking(in.groups[r], votes)
		if !slices.ContainsFunc(lacking, func(n int) bool { return n > 0 }) {
			return ""
		}
	}
	return "too few people have credentials for the rules for modify: nobody can change the policy, nor who approves"
}

func storeFailure(_ int64, err error) error { return err }

// part returns a part that the broker needs, by why it is not ready.
func part(name string, err error) brokerapi.Part {
	p := brokerapi.Part{Name: name, Ready: err == nil, Needed: true}
	if err != nil {
		p.Detail = failure.From(err).What
	}
	return p
}

// tell keeps what others than the sequencer are told of the state.
func (b *Broker) tell() {
	if told := b.blocked.Load(); told == nil || !maps.Equal(*told, b.state.Blocked) {
		now := maps.Clone(b.state.Blocked)
		b.blocked.Store(&now)
	}
}
