package broker

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// remindEvery is how often people are told again of a request that waits for them.
const remindEvery = 24 * time.Hour

// ripen makes changes as soon as they are allowed, and ends requests whose time is over, until the broker ends.
func (b *Broker) ripen() {
	tick, minute := time.NewTicker(publishInterval), time.NewTicker(sweepInterval)
	defer tick.Stop()
	defer minute.Stop()
	policy := b.inForce.Load()
	for {
		select {
		case <-tick.C:
			if now := b.inForce.Load(); now != policy {
				policy = now
				b.expire()
			}
			b.mature(b.running)
		case <-minute.C:
			b.expire()
		case <-b.running.Done():
			return
		}
	}
}

// mature makes the changes whose approvals are enough and whose time locks are over. Each is verified before it is
// made. A change that cannot be made now is tried again.
func (b *Broker) mature(ctx context.Context) {
	var ready []*proven
	err := b.look(ctx, func(d *decision) {
		if d.Index != b.inForce.Load().index {
			return
		}
		for id := range d.changes {
			what := d.Requests[id].What
			if b.sealed.Load() != (what == ChangeEpoch) || !b.Leads() && what != ChangeConfig && what != ChangeEpoch {
				continue // a replica that was started with another config makes that change
			}
			if p := d.ready(id); p != nil {
				ready = append(ready, p)
			}
		}
	})
	if err != nil {
		return
	}
	for _, p := range ready {
		if err := b.make(ctx, p); err != nil && b.running.Err() == nil {
			slog.Error("cannot make a change that was approved", "request", p.request.ID, "change", p.request.What, "error", err)
		}
	}
}

// ready returns what has to be proven of a change that is allowed at this moment, and nil for one that is not.
func (d *decision) ready(id string) *proven {
	r := d.Requests[id]
	if r == nil || !r.open() || r.Bare || r.What == "" {
		return nil
	}
	if _, dead := d.dead(r); dead || r.What == ChangeConfig && r.Config != hashOf(d.b.options.Config) {
		return nil // the latter when the broker was started with another config again
	}
	chosen, err := d.allowed(r, false)
	if err != nil {
		return nil
	}
	return d.toProve(r, chosen)
}

// make verifies the approvals of a change, makes it, and waits until it counts.
func (b *Broker) make(ctx context.Context, p *proven) error {
	if p.request.Statement != "" {
		if err := b.verifyApprovals(ctx, p, p.request.fits); err != nil {
			return err
		}
	}
	var next *policy.Policy
	if p.request.What == ChangePolicy {
		data, err := b.Document(ctx, p.request.Policy)
		if err == nil {
			next, err = policy.Parse(data)
		}
		if err != nil {
			return err
		}
	}
	index := int64(-1)
	err := b.do(ctx, func(d *decision) error {
		id := p.request.ID
		if d.Index != b.inForce.Load().index || !p.same(d.ready(id)) {
			return nil // it has changed meanwhile, and is looked at again
		}
		r := d.Requests[id]
		if next != nil && !d.covers(r, policy.Compare(b.inForce.Load().policy, next).Modify) {
			return failure.New(failure.Conflict, "the request %s changes what its approvals do not cover", id)
		}
		e := Event{Type: changeEvents[r.What], What: r.What, Request: id, Key: r.Key, Caller: r.Caller,
			Requester: r.Requester,
			Person:    r.Person, Rule: p.chosen[0].rule.Name, RuleDigest: p.chosen[0].name.Digest, Config: r.Config,
			Credential: r.Credential, Statement: r.Statement}
		switch r.What {
		case ChangePolicy:
			e.Policy = r.Policy
		case ChangeEpoch:
			e.Epoch = d.Epoch + 1
			if err := d.voidBefore(); err != nil {
				return err
			}
		}
		if c := r.Enrol; c != nil {
			if d.known(c.Public) {
				return d.endAs(id, brokerapi.Expired, "the key was enrolled meanwhile")
			}
			e.Approver, e.Kind, e.Public, e.Attested, e.Device = c.Person, string(c.Kind), c.Public, c.Attested, c.Device
		}
		index = d.Size
		if err := d.event(e); err != nil {
			return err
		}
		d.finish(id, brokerapi.Signed, "")
		d.notify(NoticeApproved, id)
		return nil
	})
	if err == nil && index >= 0 && p.request.What == ChangeEpoch {
		err = b.unseal(ctx)
	}
	if err == nil && index >= 0 {
		err = b.inEffect(ctx, index)
	}
	if err == nil && index >= 0 && p.request.What == ChangeRemove {
		err = b.discount(ctx, p.request.Credential)
	}
	return err
}

// discount has the rows of requests say what they wait for after a credential was removed.
func (b *Broker) discount(ctx context.Context, credential string) error {
	var ids []string
	err := b.look(ctx, func(d *decision) {
		for id, r := range d.Requests {
			if slices.ContainsFunc(r.Votes, func(v vote) bool { return v.Credential == credential }) {
				ids = append(ids, id)
			}
		}
	})
	if err != nil {
		return err
	}
	return b.inParts(ctx, ids, func(d *decision, id string) error { d.refresh(id); return nil })
}

// covers reports whether the needs of a request have the modify rules of all keys that a change needs.
func (d *decision) covers(r *request, keys []string) bool {
	return !slices.ContainsFunc(keys, func(key string) bool {
		return !slices.ContainsFunc(r.Needs, func(n need) bool { return n.Action == string(policy.Modify) && n.Key == key })
	})
}

// fits reports whether a statement is for a change.
func (r *request) fits(s *approval.Statement) bool {
	p := &s.Predicate
	key := ""
	if p.Key != nil {
		key = p.Key.Name
	}
	change := approval.Change{What: r.What, Config: r.Config, Credential: r.Credential}
	if r.What == ChangePolicy {
		change.Policy = r.Policy
	}
	return p.Change != nil && *p.Change == change && key == r.Key && p.Action == r.Needs[0].Action
}

// endAs ends an open request, and tells why.
func (d *decision) endAs(id string, as brokerapi.State, why string) error {
	if err := d.event(Event{Type: ended, Request: id, Key: d.Requests[id].Key, State: string(as)}); err != nil {
		return err
	}
	d.finish(id, as, why)
	d.notify(map[brokerapi.State]string{brokerapi.Expired: NoticeExpired, brokerapi.Cancelled: NoticeCancelled}[as], id)
	return nil
}

// expire ends requests that are open and whose time is over, and those whose rules have changed. It has people
// reminded of those that wait for them. It is called once in a minute, and when another policy has come into force.
func (b *Broker) expire() {
	if b.sealed.Load() || !b.Leads() {
		return
	}
	var ids []string
	err := b.look(b.running, func(d *decision) {
		for id, r := range d.Requests {
			if d.isOver(r) || d.reminds(r) > 0 {
				ids = append(ids, id)
			}
		}
	})
	if err == nil {
		err = b.inParts(b.running, ids, func(d *decision, id string) error {
			r := d.Requests[id]
			switch {
			case r == nil:
				return nil
			case d.isOver(r):
				return d.endAs(id, brokerapi.Expired, d.whyOver(r))
			}
			d.remind(r)
			return nil
		})
	}
	if err != nil && b.running.Err() == nil {
		slog.Error("cannot end requests that have expired", "error", err)
	}
}

// isOver reports whether a request that is open can never be allowed any more.
func (d *decision) isOver(r *request) bool {
	if !r.open() {
		return false
	}
	_, dead := d.dead(r)
	return dead || r.NotAfter > 0 && d.now.Unix() >= r.NotAfter
}

// whyOver returns why a request is over, for those who look at it.
func (d *decision) whyOver(r *request) string {
	why, _ := d.dead(r)
	if r.NotAfter > 0 && d.now.Unix() >= r.NotAfter {
		why = "it was not used in time"
		if !d.agreed(r) {
			why = "it was not approved in time"
		}
	}
	return why
}

// inParts does something for each of many requests, a few in a transaction: others are decided about meanwhile.
func (b *Broker) inParts(ctx context.Context, ids []string, each func(*decision, string) error) error {
	for part := range slices.Chunk(ids, maxPart) {
		err := b.do(ctx, func(d *decision) error {
			for _, id := range part {
				if err := each(d, id); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// maxPart is the largest number of requests that are changed in one of the transactions of inParts.
const maxPart = 50

// remind has those told again, once a day, for whose approval a request waits.
func (d *decision) remind(r *request) {
	days := d.reminds(r)
	if days == 0 {
		return
	}
	d.b.reminded[r.ID] = days
	if len(d.actors(r)) > 0 {
		d.notifyAs(NoticeReminder, fmt.Sprintf("%s-reminder-%d", r.ID, days), r.ID)
	}
}

// reminds returns the number of days after which people are to be reminded of a request now, and 0 if they are not.
func (d *decision) reminds(r *request) int64 {
	days := int64(d.now.Sub(r.Created) / remindEvery)
	if r.Statement == "" || days < 1 || d.b.options.Notices == nil || !r.open() || d.b.reminded[r.ID] >= days {
		return 0
	}
	return days
}
