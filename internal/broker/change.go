package broker

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
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
	ChangeEnrol   = "enrol"  // a credential is added
	ChangeRemove  = "remove" // a credential counts no more, also for open requests
)

// Change is a wish to change what is in force.
type Change struct {
	What       string
	Key        string // of block and unblock
	Policy     []byte // of policy
	Credential string // of remove: its sha256:HEX
	Person     string // of enrol: name
	Reason     string // of the requester, for those who approve

	credential *approval.Credential // of enrol
	document   []byte               // of it
	invitation string               // sha256:HEX
	next       *policy.Policy
}

// changeEvents are the types of the events that make changes.
var changeEvents = map[string]string{ChangePolicy: policySet, ChangeConfig: configSet, ChangeBlock: blocked,
	ChangeUnblock: unblocked, ChangeEpoch: epochBegun, ChangeEnrol: enrolled, ChangeRemove: removed}

// Propose makes a request for a change, under the rules of the policy in force. A change that no people have to agree
// to counts when it returns: a signed checkpoint covers it.
func (b *Broker) Propose(ctx context.Context, caller identity.Caller, c Change) (*brokerapi.Request, error) {
	if c.What == ChangePolicy {
		var err error
		if c.next, err = policy.Parse(c.Policy); err != nil {
			return nil, err
		}
	}
	if len(c.Reason) > maxReason {
		return nil, failure.New(failure.Invalid, "the reason is longer than %d bytes", maxReason).WithHint("shorten it")
	}
	var body *brokerapi.Request
	index := int64(-1)
	err := b.do(ctx, func(d *decision) error {
		var err error
		body, index, err = d.propose(caller, c)
		return err
	})
	if err != nil {
		return nil, err
	}
	if c.What == ChangeEpoch && index >= 0 {
		if err := b.unseal(ctx); err != nil {
			return nil, err
		}
	}
	if index >= 0 {
		if err := b.inEffect(ctx, index); err != nil {
			return nil, err
		}
		if c.What == ChangeRemove {
			if err := b.discount(ctx, c.Credential); err != nil {
				return nil, err
			}
		}
	}
	return b.Request(ctx, caller, body.ID)
}

// inEffect waits until a change counts: a checkpoint covers its entry, and it has been adopted.
func (b *Broker) inEffect(ctx context.Context, index int64) error {
	if err := b.covered(ctx, index); err != nil {
		return err
	}
	return b.do(ctx, func(*decision) error { return nil })
}

// propose decides about a change. It returns the index of the entry that makes it, or -1 if it waits.
func (d *decision) propose(caller identity.Caller, c Change) (*brokerapi.Request, int64, error) {
	e := Event{What: c.What, Key: c.Key, Caller: d.b.callerOf(caller), Requester: d.b.callerOf(caller),
		Person: d.b.inForce.Load().callers[d.b.callerOf(caller)]}
	body := &brokerapi.Request{What: c.What, Key: c.Key, Created: d.now, Changed: d.now, State: brokerapi.Signed,
		Requester: shownRequester(caller), Why: c.Reason}
	needed, err := d.neededBy(&c, &e, body)
	if err != nil {
		return nil, -1, err
	}
	if err := d.spend(caller, &e); err != nil {
		return nil, -1, err
	}
	var rules [][]*policy.Rule
	waits := false
	for _, n := range needed {
		some, err := d.permit(caller, n)
		if err != nil {
			return nil, -1, err
		}
		waits = waits || (rule{some[0]}).waits()
		rules = append(rules, some)
		e.Needs = append(e.Needs, d.b.needOf(policy.Action(n.Action), n.Key, some))
	}
	e.Request = newID(d.now)
	body.ID = e.Request
	if len(rules) > 0 {
		e.Rule = rules[0][0].Name
	}
	body.Rule = e.Rule
	if waits {
		return body, -1, d.wait(&e, body, rules, caller, c)
	}
	e.Type, e.Needs = changeEvents[c.What], nil
	if c.What == ChangeEpoch {
		e.Epoch = d.Epoch + 1
		if err := d.voidBefore(); err != nil {
			return nil, -1, err
		}
	}
	index := d.Size
	if err := d.event(e); err != nil {
		return nil, -1, err
	}
	d.keep(&c)
	d.put(&row{Request: *body, Requester: e.Requester, Entries: []int64{index}}, e.Caller, nil)
	return body, index, nil
}

// needOf returns a need of a request.
func (b *Broker) needOf(action policy.Action, key string, rules []*policy.Rule) need {
	n := need{Action: string(action), Key: key}
	for _, r := range rules {
		n.Rules = append(n.Rules, ruleName{Digest: b.ruleDigest(r), Name: r.Name})
	}
	return n
}

// keep keeps the documents of a change.
func (d *decision) keep(c *Change) {
	for _, document := range [][]byte{c.Policy, c.document} {
		if document != nil {
			d.document(document)
		}
	}
	if c.What == ChangeConfig {
		d.document(d.b.options.Config)
	}
}

// wait makes the request of a change that people have to agree to, or that a time lock holds back.
func (d *decision) wait(e *Event, body *brokerapi.Request, rules [][]*policy.Rule, caller identity.Caller,
	c Change) error {
	if err := d.checkOpen(e.Caller); err != nil {
		return err
	}
	e.Type, e.State, e.Base = requested, string(brokerapi.Pending), d.b.inForce.Load().digest
	body.State = brokerapi.Pending
	life := time.Duration(0)
	people := false
	for _, some := range rules {
		for _, r := range some {
			life = max(life, lifeOf(r))
			people = people || len(r.Approvals) > 0
		}
	}
	until := d.now.Add(life).Truncate(time.Second)
	body.NotAfter, e.NotAfter = &until, until.Unix()
	if people {
		digest := cmp.Or(e.Policy, e.Config, e.Credential)
		if digest == "" {
			digest = hashOf([]byte(c.What + " " + c.Key))
		}
		s := &approval.Statement{Subjects: []approval.Subject{{Name: c.What, Digest: map[string]string{
			"sha256": strings.TrimPrefix(digest, hashPrefix)}}}, Predicate: approval.Predicate{Action: e.Needs[0].Action,
			Change: &approval.Change{What: c.What, Policy: e.Policy, Config: e.Config, Credential: e.Credential}}}
		if c.Key != "" {
			s.Predicate.Key = &approval.KeyName{Name: c.Key, Formats: []string{}}
		}
		if err := d.write(s, e, caller, c.Reason, rules); err != nil {
			return err
		}
		body.Statement = e.Statement
	}
	if err := d.event(*e); err != nil {
		return err
	}
	d.keep(&c)
	d.insert(body, caller, e.Requester)
	d.notify(NoticePending, e.Request)
	return nil
}

// voidBefore logs, before a new epoch begins, that the entries that no checkpoint covers permit nothing. It would void
// the entry of the new epoch if it followed it.
func (d *decision) voidBefore() error { return d.void(d.b.published.Load().Size, d.batch.First) }

// unseal lets the log grow again, in its new epoch. The checkpoint of the old one is kept: it proves what was lost.
func (b *Broker) unseal(ctx context.Context) error {
	return b.do(ctx, func(d *decision) error {
		if data, err := bound.ReadFile(b.options.Log.File, maxFile); err == nil {
			if err := writeFile(fmt.Sprintf("%s.epoch-%d", b.options.Log.File, d.Epoch-1), data); err != nil {
				return err
			}
		}
		b.sealed.Store(false)
		b.readOnly.Store(nil)
		return d.loseAll()
	})
}

// neededBy returns the lists of rules under which a change has to be allowed; none for one that an invitation allows.
// It fills in its event and its row. It fails for a change that makes no sense.
func (d *decision) neededBy(c *Change, e *Event, body *brokerapi.Request) ([]need, error) {
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
	if err := d.describe(c, e, body); err != nil {
		return nil, err
	}
	switch c.What {
	case ChangePolicy:
		if c.next.Digest() == current.Digest() {
			return nil, failure.New(failure.Conflict, "the policy is in force already").
				WithHint("change it before it is applied")
		}
		var all []need
		for _, key := range policy.Compare(current, c.next).Modify {
			all = append(all, need{Action: string(policy.Modify), Key: key})
		}
		if len(all) == 0 { // comments
			all = append(all, need{Action: string(policy.Modify)})
		}
		return all, nil
	case ChangeConfig:
		if d.Config == hashOf(d.b.options.Config) {
			return nil, failure.New(failure.Conflict, "the config is in force already").
				WithHint("start the broker with the changed file before it is applied")
		}
		return []need{{Action: string(policy.Modify)}}, nil
	case ChangeEpoch:
		return []need{{Action: string(policy.Modify)}}, nil
	case ChangeEnrol:
		free, err := d.enrolment(c, e)
		if err != nil || free {
			return nil, err
		}
		return []need{{Action: string(policy.Modify)}}, nil
	case ChangeRemove:
		return []need{{Action: string(policy.Modify)}}, nil
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
			return []need{{Action: string(policy.Block), Key: c.Key}}, nil
		}
		return []need{{Action: string(policy.Unblock), Key: c.Key}}, nil
	}
	return nil, failure.New(failure.Invalid, "there is no change %.30q", c.What)
}

// describe fills in what an event and a row say of a change.
func (d *decision) describe(c *Change, e *Event, body *brokerapi.Request) error {
	names := d.b.inForce.Load().names
	switch c.What {
	case ChangePolicy:
		e.Policy = hashOf(c.Policy)
	case ChangeConfig:
		e.Config = hashOf(d.b.options.Config)
	case ChangeEnrol:
		body.Person, body.Credential = c.Person, approval.Hash(c.document)
	case ChangeRemove:
		known := d.Credentials[c.Credential]
		if known == nil {
			return failure.New(failure.NotFound, "the credential %.80q is not enrolled", c.Credential).
				WithHint("see 'hsm-broker approver list'")
		}
		e.Credential, e.Approver, e.Kind = c.Credential, known.Person, string(known.Kind)
		body.Credential, body.Person = c.Credential, names[known.Person]
	}
	body.Policy = e.Policy
	return nil
}

// permit returns the rules that let a caller do something: the first one that does so at once, or else all by which it
// waits.
func (d *decision) permit(caller identity.Caller, n need) ([]*policy.Rule, error) {
	decided := d.b.inForce.Load().policy.Decide(policy.Action(n.Action), policy.Input{
		Caller: policy.Caller{Issuer: caller.Issuer, Subject: caller.Subject, Claims: caller.Claims},
		Key:    n.Key, Time: d.now,
	})
	for _, r := range decided.Rules {
		if !(rule{r}).waits() {
			return []*policy.Rule{r}, nil
		}
	}
	if len(decided.Rules) > 0 {
		return decided.Rules, nil
	}
	what := fmt.Sprintf("%s key %q", n.Action, n.Key)
	if n.Key == "" {
		what = "modify what belongs to all keys"
	}
	return nil, refused(what, decided.Refused)
}
