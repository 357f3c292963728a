package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// What a change changes.
const (
	ChangePolicy  = "policy"
	ChangeConfig  = "config"
	ChangeBlock   = "block"
	ChangeUnblock = "unblock"
	ChangeEpoch   = "epoch"
)

// Change is a wish to change what is in force.
type Change struct {
	What   string
	Key    string // of block and unblock
	Policy []byte // of policy
}

// Propose makes a request for a change, under the rules of the policy in force. A change that no people have to agree
// to counts when it returns: a signed checkpoint covers it.
func (b *Broker) Propose(ctx context.Context, caller identity.Caller, c Change) (*brokerapi.Request, error) {
	var next *policy.Policy
	if c.What == ChangePolicy {
		var err error
		if next, err = policy.Parse(c.Policy); err != nil {
			return nil, err
		}
	}
	var body *brokerapi.Request
	index := int64(-1)
	err := b.do(ctx, func(d *decision) error {
		var err error
		body, index, err = d.propose(caller, c, next)
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.What == ChangeEpoch {
		if err := b.unseal(ctx, index); err != nil {
			return nil, err
		}
	}
	if index >= 0 {
		if err := b.covered(ctx, index); err != nil {
			return nil, err
		}
		if err := b.do(ctx, func(*decision) error { return nil }); err != nil { // what is covered has been adopted
			return nil, err
		}
	}
	return b.Request(ctx, caller, body.ID)
}

// propose decides about a change. It returns the index of the entry that makes it, or -1 if it waits.
func (d *decision) propose(caller identity.Caller, c Change, next *policy.Policy) (*brokerapi.Request, int64, error) {
	e := Event{What: c.What, Key: c.Key, Caller: d.b.callerOf(caller), Requester: d.b.callerOf(caller)}
	body := &brokerapi.Request{Key: c.Key, Created: d.now, Changed: d.now, State: brokerapi.Signed,
		Requester: brokerapi.Requester{Issuer: caller.Issuer, Subject: caller.Subject}}
	needed, err := d.neededBy(c, next)
	if err != nil {
		return nil, -1, err
	}
	if next != nil {
		e.Policy = hashOf(c.Policy)
		body.Policy = e.Policy
	}
	if c.What == ChangeConfig {
		e.Config = hashOf(d.b.options.Config)
	}
	if err := d.spend(caller, &e); err != nil {
		return nil, -1, err
	}
	var waits []policy.Approval
	for _, n := range needed {
		rule, err := d.permit(caller, n)
		if err != nil {
			return nil, -1, err
		}
		e.Rule, e.RuleDigest = rule.Name, ruleDigest(rule)
		waits = append(waits, rule.Approvals...)
		if rule.TimeLock > 0 && len(rule.Approvals) == 0 {
			return nil, -1, failure.New(failure.Unsupported, "the rule %q has a time lock, which changes cannot wait for yet",
				rule.Name).WithHint("have a rule without a time lock, or with approvals")
		}
	}
	e.Request, body.Rule = newID(d.now), e.Rule
	body.ID = e.Request
	if len(waits) > 0 {
		if err := d.checkOpen(e.Caller); err != nil {
			return nil, -1, err
		}
		e.Type, e.State = requested, string(brokerapi.Pending)
		body.State, body.Reason = brokerapi.Pending, waitsFor(waits)
		until := d.now.Add(grantLife).Truncate(time.Second)
		body.NotAfter, e.NotAfter = &until, until.Unix()
	} else {
		e.Type = map[string]string{ChangePolicy: policySet, ChangeConfig: configSet, ChangeBlock: blocked,
			ChangeUnblock: unblocked, ChangeEpoch: epochBegun}[c.What]
		e.Epoch = 0
		if c.What == ChangeEpoch {
			e.Epoch = d.Epoch + 1
		}
	}
	index := d.Size
	if err := d.event(e); err != nil {
		return nil, -1, err
	}
	if next != nil {
		d.document(c.Policy)
	}
	if e.Config != "" {
		d.document(d.b.options.Config)
	}
	d.put(&row{Request: *body, Requester: e.Requester, Entries: []int64{index}, People: len(waits) > 0}, e.Caller, nil)
	if e.Type == requested {
		index = -1
	}
	return body, index, nil
}

// unseal lets the log grow again, in its new epoch. The checkpoint of the old one is kept: it proves what was lost.
// index is that of the entry of the new epoch.
func (b *Broker) unseal(ctx context.Context, index int64) error {
	return b.do(ctx, func(d *decision) error {
		if data, err := bound.ReadFile(b.options.Log.File, maxFile); err == nil {
			if err := writeFile(fmt.Sprintf("%s.epoch-%d", b.options.Log.File, d.Epoch-1), data); err != nil {
				return err
			}
		}
		b.sealed.Store(false)
		b.readOnly.Store(nil)
		if err := d.loseAll(); err != nil {
			return err
		}
		return d.void(b.published.Load().Size, index)
	})
}

// need is a list of rules under which a change has to be allowed.
type need struct {
	action policy.Action
	key    string
}

// neededBy returns the lists of rules under which a change has to be allowed. It fails for a change that makes no
// sense.
func (d *decision) neededBy(c Change, next *policy.Policy) ([]need, error) {
	current := d.b.inForce.Load().policy
	sealed := d.b.sealed.Load()
	if sealed != (c.What == ChangeEpoch) {
		if sealed {
			return nil, failure.New(failure.Unavailable, "cannot change anything: %s", *d.b.readOnly.Load()).
				WithHint("restore them with 'hsm-broker restore FILE LOG', or run 'hsm-broker log new-epoch'")
		}
		return nil, failure.New(failure.Conflict, "the log has all its entries: it needs no new epoch").
			WithHint("go on as before")
	}
	if d.Index != d.b.inForce.Load().index {
		return nil, failure.New(failure.Unavailable, "another policy is about to be in force").WithHint("try again")
	}
	switch c.What {
	case ChangePolicy:
		if next.Digest() == current.Digest() {
			return nil, failure.New(failure.Conflict, "the policy is in force already").
				WithHint("change it before it is applied")
		}
		var all []need
		for _, key := range policy.Compare(current, next).Modify {
			all = append(all, need{policy.Modify, key})
		}
		if len(all) == 0 { // comments
			all = append(all, need{policy.Modify, ""})
		}
		return all, nil
	case ChangeConfig:
		if d.Config == hashOf(d.b.options.Config) {
			return nil, failure.New(failure.Conflict, "the config is in force already").
				WithHint("start the broker with the changed file before it is applied")
		}
		return []need{{policy.Modify, ""}}, nil
	case ChangeEpoch:
		return []need{{policy.Modify, ""}}, nil
	case ChangeBlock, ChangeUnblock:
		if current.Key(c.Key) == nil {
			return nil, noKey(c.Key)
		}
		_, is := d.Blocked[c.Key]
		if is == (c.What == ChangeBlock) {
			return nil, failure.New(failure.Conflict, "the key %q is as it would be after the change", c.Key).
				WithHint("nothing has to be done")
		}
		if c.What == ChangeBlock {
			return []need{{policy.Block, c.Key}}, nil
		}
		return []need{{policy.Unblock, c.Key}}, nil
	}
	return nil, failure.New(failure.Invalid, "there is no change %.30q", c.What)
}

// permit returns the first rule without approvals that lets a caller do something, or else the first with approvals.
func (d *decision) permit(caller identity.Caller, n need) (*policy.Rule, error) {
	decided := d.b.inForce.Load().policy.Decide(n.action, policy.Input{
		Caller: policy.Caller{Issuer: caller.Issuer, Subject: caller.Subject, Claims: caller.Claims},
		Key:    n.key, Time: d.now,
	})
	for _, r := range decided.Rules {
		if len(r.Approvals) == 0 {
			return r, nil
		}
	}
	if len(decided.Rules) > 0 {
		return decided.Rules[0], nil
	}
	what := fmt.Sprintf("%s key %q", n.action, n.key)
	if n.key == "" {
		what = "modify what belongs to all keys"
	}
	return nil, refused(what, decided.Refused)
}
