package broker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// identityApprover is the issuer of people who have signed in with what they approve with.
const identityApprover = identity.IssuerApprover

// Person returns the name of the person of the policy who calls, and "" for a caller who is none.
func (b *Broker) Person(c identity.Caller) string {
	in := b.inForce.Load()
	return in.names[in.callers[b.callerOf(c)]]
}

// Approve takes a decision of a person about a request: an approval, a refusal or a withdrawal, as approval.Envelope
// has it with its signature. It returns once a signed checkpoint covers it, so that it is not lost. It fails with
// Denied for a signature that does not verify or a person who has no say, and with Conflict for a request that is not
// open or an approval that was given before.
func (b *Broker) Approve(ctx context.Context, caller identity.Caller, id string, envelope []byte) (*brokerapi.Request,
	error) {
	if _, err := b.row(ctx, caller, id); err != nil {
		return nil, err
	}
	e, err := approval.DecodeEnvelope(envelope)
	if err != nil {
		return nil, err
	}
	c, _, err := b.Credential(ctx, e.Credential)
	if err != nil {
		return nil, err
	}
	a, err := e.Verify(c)
	if err != nil {
		return nil, err
	}
	counter, err := counterOf(c, e)
	if err != nil {
		return nil, err
	}
	index := int64(-1)
	err = b.do(ctx, func(d *decision) error {
		if err := d.decides(id, a, e.Credential, approval.Hash(e.Approval), counter); err != nil {
			return err
		}
		index = d.Size
		r := d.Requests[id]
		event := Event{Type: map[approval.Decision]string{approval.Approve: approved, approval.Reject: rejected,
			approval.Withdraw: withdrawn}[a.Decision], Request: id, Key: r.Key, Approver: a.Approver, Credential: e.Credential,
			Approval: approval.Hash(envelope), Signed: approval.Hash(e.Approval), Statement: a.Statement, Counter: counter}
		before := d.stage(r)
		if err := d.event(event); err != nil {
			return err
		}
		d.documentOf(id, envelope)
		d.told(id, a, e.Credential, event.Approval)
		if a.Decision == approval.Reject {
			d.finish(id, brokerapi.Rejected, d.refusal(a))
			d.notify(NoticeRejected, id)
			return nil
		}
		d.refresh(id)
		// A change is told of when it is made.
		if r.What == "" && d.stage(d.Requests[id]) == brokerapi.Approved && before != brokerapi.Approved {
			d.notify(NoticeApproved, id)
		}
		return nil
	})
	if failure.Is(err, failure.Conflict) {
		return nil, b.sayEnded(ctx, id, err)
	}
	if err != nil {
		return nil, err
	}
	if err := b.covered(ctx, index); err != nil {
		return nil, err
	}
	b.mature(ctx)
	return b.Request(ctx, caller, id)
}

// hasRejected follows the name of who has rejected a request.
const hasRejected = " has rejected it"

// refusal says who has refused a request, and why.
func (d *decision) refusal(a *approval.Approval) string {
	text := d.b.inForce.Load().names[a.Approver] + hasRejected
	if a.Reason != "" {
		text += ": " + a.Reason
	}
	return text
}

// sayEnded returns the failure of a decision about a request that has ended, with the state that it ended in, and
// another failure as it is.
func (b *Broker) sayEnded(ctx context.Context, id string, failed error) error {
	kept, err := b.options.Store.Request(ctx, id)
	if err != nil {
		return failed
	}
	switch state := brokerapi.State(kept.State); state {
	case brokerapi.Pending, brokerapi.Approved:
		return failed
	case brokerapi.Expired:
		return hasExpired(id)
	default:
		return failure.New(failure.Conflict, "the request %s is not open: it is %s", id, state).
			WithHint("see why with 'hsm-broker request show'")
	}
}

// hasExpired returns the failure of a decision about a request whose time is over, whether it was ended already or not.
func hasExpired(id string) error {
	return failure.New(failure.Conflict, "the request %s has expired", id).WithHint("have it made again")
}

// maxDecisions is the number of decisions after which a request takes no more approvals: one who approves and withdraws
// without an end would have it grow without an end. It can still be rejected, and approvals of it withdrawn.
const maxDecisions = 1000

// decides fails unless a decision, whose signature has verified, counts for a request at this moment. A decision is
// known by the hash of its document: a signature has several encodings, so a hash of both would let anyone give a
// decision again that was withdrawn.
func (d *decision) decides(id string, a *approval.Approval, credential, document string, counter int64) error {
	r, c := d.Requests[id], d.Credentials[credential]
	switch {
	case r == nil || !r.open():
		return failure.New(failure.Conflict, "the request %s is not open", id).
			WithHint("see its state with 'hsm-broker request show'")
	case r.Statement == "" || a.Statement != r.Statement:
		return failure.New(failure.Denied, "the approval is of another request than %s", id).
			WithHint("sign the statement of this request")
	case c == nil || c.Person != a.Approver:
		return failure.New(failure.Denied, "the credential of the approval is not enrolled").WithHint("enrol it again")
	case a.Time.Sub(d.now).Abs() > maxSkew:
		return failure.New(failure.Denied, "the time of the approval, %s, is not the broker's: %s",
			a.Time.UTC().Format(time.RFC3339), d.now.UTC().Format(time.RFC3339)).WithHint("set the clock right, and sign again")
	case slices.Contains(r.Seen, document):
		return failure.New(failure.Conflict, "this approval of request %s was given before", id).WithHint("sign a new one")
	case (counter > 0 || c.Counter > 0) && counter <= c.Counter: // WebAuthn Level 3 section 7.2, step 22
		return failure.New(failure.Denied, "the signature counter of the passkey is %d after %d: there may be a copy of it",
			counter, c.Counter).WithHint("have the credential removed, and enrol another one")
	}
	if d.now.Unix() >= r.NotAfter {
		return hasExpired(id)
	}
	if why := d.discounted(r, a.Approver, credential); why != "" {
		return failure.New(failure.Denied, "the approval does not count for request %s: %s", id, why).
			WithHint("have somebody else approve it")
	}
	own := func(v vote) bool { return v.Person == a.Approver }
	switch a.Decision {
	case approval.Withdraw:
		if !slices.ContainsFunc(r.Votes, own) {
			return failure.New(failure.Conflict, "there is no approval of request %s to withdraw", id).
				WithHint("reject the request, to end it")
		}
		return nil
	case approval.Approve:
		if len(r.Seen) >= maxDecisions {
			return failure.New(failure.Conflict, "the request %s has %d decisions, which are the most", id, len(r.Seen)).
				WithHint("have it made again")
		}
		if slices.ContainsFunc(r.Votes, func(v vote) bool { return own(v) && v.Credential == credential }) {
			return failure.New(failure.Conflict, "the request %s has an approval with this credential already", id).
				WithHint("nothing has to be done")
		}
	}
	return d.says(r, c, a.Decision)
}

// says fails unless some rule of a request asks for the approvals that a credential makes. For a refusal it is enough
// to be asked at all.
func (d *decision) says(r *request, c *credential, decision approval.Decision) error {
	v := approval.Vote{Person: c.Person, Kind: c.Kind, Attested: c.Attested, DeviceBound: c.Device}
	member := false
	var kinds []string
	for _, all := range d.standing(r) {
		for i := range all {
			if all[i].rule == nil {
				continue
			}
			for _, g := range d.b.inForce.Load().groups[all[i].rule] {
				if g.Counts(v) {
					return nil
				}
				if slices.Contains(g.Members, c.Person) {
					member = true
					kinds = append(kinds, demand(g))
				}
			}
		}
	}
	switch {
	case member && decision == approval.Reject:
		return nil
	case member:
		slices.Sort(kinds)
		return failure.New(failure.Denied, "the approval does not count for request %s: it is by %s, and its rules ask for %s",
			r.ID, kindText(v), strings.Join(slices.Compact(kinds), ", or ")).WithHint("approve with another credential")
	}
	return failure.New(failure.Denied, "no rule of request %s asks for this person", r.ID).
		WithHint("have one of those approve it whom it shows")
}

// demand says what the approvals of a group are signed with.
func demand(g approval.Group) string {
	kinds := make([]string, len(g.Kinds))
	for i, k := range g.Kinds {
		kinds[i] = string(k)
	}
	text := strings.Join(kinds, " or ")
	switch {
	case g.Attested && g.DeviceBound:
		text += " (attested and device-bound)"
	case g.Attested:
		text += " (attested)"
	case g.DeviceBound:
		text += " (device-bound)"
	}
	return text
}

func kindText(v approval.Vote) string {
	text := string(v.Kind)
	if v.Kind == approval.Passkey && !v.Attested {
		text += " without attestation"
	}
	if v.Kind == approval.Passkey && !v.DeviceBound {
		text += " that can be copied"
	}
	return text
}

// counterOf returns the signature counter of a passkey; 0 for one that has none, and for other kinds.
func counterOf(c *approval.Credential, e *approval.Envelope) (int64, error) {
	if c.Kind != approval.Passkey {
		return 0, nil
	}
	counter, _, err := e.Authenticator()
	return int64(counter), err
}

// told adds a decision to the row of a request, for those who look at it.
func (d *decision) told(id string, a *approval.Approval, credential, envelope string) {
	kind := string(d.Credentials[credential].Kind)
	d.update(id, nil, func(r *row) {
		r.Envelopes = append(r.Envelopes, envelopeOf{Envelope: envelope, Credential: credential})
		r.Request.Approvals = append(r.Request.Approvals, brokerapi.Approval{
			Person: d.b.inForce.Load().names[a.Approver], Decision: string(a.Decision), Kind: kind, Credential: credential,
			Reason: a.Reason, Time: d.now})
	})
}

// stage returns the state that a request has for people: pending, or approved if it lacks neither people nor time.
func (d *decision) stage(r *request) brokerapi.State {
	if r == nil || !r.open() {
		return ""
	}
	if _, err := d.allowed(r, false); err != nil {
		return brokerapi.Pending
	}
	return brokerapi.Approved
}

// refresh has the row of an open request say what it waits for.
func (d *decision) refresh(id string) {
	r := d.Requests[id]
	if r == nil || !r.open() {
		return
	}
	d.update(id, nil, func(kept *row) { d.fill(r, kept) })
}

// fill writes into a row what a request waits for: people, or times.
func (d *decision) fill(r *request, kept *row) {
	kept.People, kept.Request.NotBefore, kept.Request.Reason = false, nil, ""
	kept.Request.State = brokerapi.Approved
	for i, all := range d.standing(r) {
		var from time.Time
		agreed := false
		for j := range all {
			if a := &all[j]; a.agreed() && d.now.Before(a.notAfter) && (!agreed || a.notBefore.Before(from)) {
				agreed, from = true, a.notBefore
			}
		}
		if !agreed {
			kept.People = true
			kept.Request.Reason = reasonOf(r, d.lacks(r, r.Needs[i], all))
			continue
		}
		if !from.IsZero() && (kept.Request.NotBefore == nil || from.After(*kept.Request.NotBefore)) {
			kept.Request.NotBefore = &from
		}
	}
	switch at := kept.Request.NotBefore; {
	case kept.People:
		kept.Request.State = brokerapi.Pending
	case at != nil && d.now.Before(*at):
		kept.Request.State = brokerapi.Pending
		kept.Request.Reason = "it waits for its time lock until " + at.UTC().Format(time.RFC3339)
		if jump := d.b.clock.frozen(d.Last); jump != 0 {
			kept.Request.Reason = fmt.Sprintf("time locks stay closed: the broker's clock has jumped by %s", jump)
		}
	}
	if r.NotAfter > 0 && d.now.Unix() >= r.NotAfter { // as it says once it was ended
		kept.Request.Reason = d.whyOver(r)
	}
}

// reasonOf returns why a request waits, for those who look at it.
func reasonOf(r *request, err error) string {
	what := failure.From(err).What
	if rest, ours := strings.CutPrefix(what, "the request "+r.ID+" "); ours {
		return "it " + rest
	}
	return what
}

// needsOf returns what a request still needs, for those who look at it.
func (d *decision) needsOf(r *request) (all []brokerapi.Need) {
	for i, alternatives := range d.standing(r) {
		n := brokerapi.Need{Action: r.Needs[i].Action, Key: r.Needs[i].Key}
		for j := range alternatives {
			n.Alternatives = append(n.Alternatives, d.alternativeOf(&alternatives[j]))
		}
		all = append(all, n)
	}
	return all
}

func (d *decision) alternativeOf(a *alternative) brokerapi.Alternative {
	shown := brokerapi.Alternative{Rule: a.name.Name}
	if a.rule == nil {
		shown.Reason = "the rule has changed since the request was made"
		return shown
	}
	shown.Rule = a.rule.Name
	shown.Allowed = a.agreed() && a.inTime(d.now)
	until := a.notAfter
	shown.NotAfter = &until
	if !d.now.Before(until) {
		shown.Reason = "its time is over"
	}
	if !a.notBefore.IsZero() {
		from := a.notBefore
		shown.NotBefore = &from
	} else {
		shown.TimeLock = int64(a.rule.TimeLock / time.Second)
	}
	for i, group := range a.rule.Approvals {
		g := brokerapi.GroupNeed{Group: group.Group, Quorum: group.Quorum, Lacking: a.lacking[i], Attested: group.Attested,
			DeviceBound: group.DeviceBound}
		for _, p := range group.Members {
			g.Members = append(g.Members, p.Name)
		}
		for _, kind := range group.Kinds {
			g.Kinds = append(g.Kinds, string(kind))
		}
		shown.Groups = append(shown.Groups, g)
	}
	return shown
}

// waitsFor reports whether a request, of this standing, waits for the approval of a person.
func (d *decision) waitsFor(r *request, standing [][]alternative, person string) bool {
	if r.Statement == "" || !r.open() || d.asks(r, person) || d.now.Unix() >= r.NotAfter ||
		slices.ContainsFunc(r.Votes, func(v vote) bool { return v.Person == person }) {
		return false
	}
	in := d.b.inForce.Load()
	for _, all := range standing {
		if slices.ContainsFunc(all, func(a alternative) bool { return a.agreed() }) {
			continue
		}
		for i := range all {
			a := &all[i]
			if !in.asked[person][a.rule] || !d.now.Before(a.notAfter) {
				continue
			}
			for j, g := range in.groups[a.rule] {
				if a.lacking[j] > 0 && slices.Contains(g.Members, person) {
					return true
				}
			}
		}
	}
	return false
}

// actors returns the names of those whose approval a request waits for, in order.
func (d *decision) actors(r *request) (names []string) {
	standing := d.standing(r)
	for id, name := range d.b.inForce.Load().names {
		if d.waitsFor(r, standing, id) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// notify queues a notice of a request as its row is, if the broker tells anybody.
func (d *decision) notify(what, id string) {
	d.notifyAs(what, fmt.Sprintf("%s-%d-%s", id, d.Size, what), id)
}

func (d *decision) notifyAs(what, name, id string) {
	rows := d.b.options.Notices
	if rows == nil {
		return
	}
	kept, err := d.kept(id)
	if err != nil {
		return
	}
	var r row
	if json.Unmarshal(kept.Body, &r) != nil {
		return
	}
	in := d.b.inForce.Load()
	n := Notice{ID: name, Type: what, Time: d.now, Request: r.Request, Requester: in.names[in.callers[kept.Requester]],
		Everyone: r.Request.Emergency}
	if now := d.Requests[id]; now != nil && (what == NoticePending || what == NoticeReminder) {
		n.People, n.Request.Needs = d.actors(now), d.needsOf(now)
	}
	d.batch.Notices = append(d.batch.Notices, rows(n)...)
}
