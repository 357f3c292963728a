package broker

import (
	"bytes"
	"context"
	"maps"
	"reflect"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// Evidence returns all that shows what a request is and who agreed to it. It fails with NotFound for a request of
// others, and for one that nobody has to agree to.
func (b *Broker) Evidence(ctx context.Context, caller identity.Caller, id string) (*brokerapi.Evidence, error) {
	kept, err := b.row(ctx, caller, id)
	if err != nil {
		return nil, err
	}
	if kept.Request.Statement == "" {
		return nil, failure.New(failure.NotFound, "the request %s has no statement: nobody has to agree to it", id).
			WithHint("see the request itself")
	}
	of := evidenceOf{statement: kept.Request.Statement, credentials: map[string]bool{}}
	for _, v := range kept.Envelopes {
		of.envelopes = append(of.envelopes, v.Envelope)
		of.credentials[v.Credential] = true
	}
	you := b.inForce.Load().callers[b.callerOf(caller)]
	err = b.look(ctx, func(d *decision) {
		for credential, c := range d.Credentials {
			if c.Person == you && you != "" {
				of.credentials[credential] = true
			}
		}
	})
	if err != nil {
		return nil, err
	}
	e, s, err := b.evidence(ctx, of)
	if err != nil {
		return nil, err
	}
	answer := &brokerapi.Evidence{Statement: e.Statement, Rules: e.Rules, Names: map[string][]byte{},
		Credentials: e.Credentials, Approvals: e.Approvals, You: you}
	for _, data := range e.Rules {
		rule, _, err := approval.DecodeRule(data)
		if err != nil {
			return nil, err
		}
		if names, err := b.erasable(ctx, rule.Names); err != nil {
			return nil, err
		} else if names != nil {
			answer.Names[rule.Names] = names
		}
	}
	if answer.Opening, err = b.erasable(ctx, s.Predicate.Requester.Commitment); err != nil {
		return nil, err
	}
	answer.Opening = append([]byte{}, answer.Opening...) // JSON has null for nil
	if c := s.Predicate.Change; c != nil {
		answer.Documents = map[string][]byte{}
		for _, hash := range []string{c.Policy, s.Predicate.Policy, c.Config, c.Credential} {
			if hash == "" || hash == s.Predicate.Policy && c.Policy == "" {
				continue
			}
			if document, err := b.erasable(ctx, hash); err != nil {
				return nil, err
			} else if document != nil {
				answer.Documents[hash] = document
			}
		}
	}
	answer.Proof, err = b.prove(ctx, kept.Entries)
	return answer, err
}

// erasable returns a document, and nil for one that Forget may have erased.
func (b *Broker) erasable(ctx context.Context, hash string) ([]byte, error) {
	data, err := b.Document(ctx, hash)
	if failure.Is(err, failure.NotFound) {
		return nil, nil
	}
	return data, err
}

// evidenceOf names the documents that show who agreed to a request.
type evidenceOf struct {
	statement   string
	envelopes   []string
	credentials map[string]bool
}

// evidence reads documents by their hashes.
func (b *Broker) evidence(ctx context.Context, of evidenceOf) (*approval.Evidence, *approval.Statement, error) {
	data, err := b.Document(ctx, of.statement)
	if err != nil {
		return nil, nil, err
	}
	s, err := approval.DecodeStatement(data)
	if err != nil {
		return nil, nil, err
	}
	e := &approval.Evidence{Statement: data, Rules: map[string][]byte{}, Credentials: map[string][]byte{}}
	for _, n := range s.Predicate.Needs {
		for _, r := range n.Rules {
			if e.Rules[r.Digest], err = b.Document(ctx, r.Digest); err != nil {
				return nil, nil, err
			}
		}
	}
	for _, hash := range slices.Sorted(maps.Keys(of.credentials)) {
		if e.Credentials[hash], err = b.Document(ctx, hash); err != nil {
			return nil, nil, err
		}
	}
	for _, hash := range of.envelopes {
		one, err := b.Document(ctx, hash)
		if err != nil {
			return nil, nil, err
		}
		e.Approvals = append(e.Approvals, one)
	}
	return e, s, nil
}

// proven is what the sequencer has decided of a request before its approvals are verified.
type proven struct {
	request *request
	chosen  []alternative
	never   []string        // ids of people whose approvals do not count
	counts  map[string]bool // credentials that are enrolled
}

// toProve returns what has to be verified of a request that is allowed.
func (d *decision) toProve(r *request, chosen []alternative) *proven {
	p := &proven{request: r, chosen: chosen, counts: map[string]bool{}}
	for _, v := range r.Votes {
		if d.discounted(r, v.Person, v.Credential) == "" {
			p.counts[v.Credential] = true
		}
	}
	for _, person := range []string{r.Person, d.b.inForce.Load().callers[r.Caller]} {
		if person != "" {
			p.never = append(p.never, person)
		}
	}
	return p
}

// same reports whether a request is as it was when its approvals were verified.
func (p *proven) same(other *proven) bool {
	return other != nil && p.request.ID == other.request.ID && p.request.Statement == other.request.Statement &&
		slices.Equal(p.request.Votes, other.request.Votes) && maps.Equal(p.counts, other.counts) &&
		slices.Equal(p.never, other.never) && slices.EqualFunc(p.chosen, other.chosen, func(a, b alternative) bool {
		return a.name == b.name && a.rule == b.rule
	})
}

// verifyApprovals reads the statement, the rules, the credentials and the approvals of a request again, by the hashes
// that the log has, and verifies them as anyone can: that people agreed to this very statement, by signatures of their
// own, and that they are enough for the rules in force that were chosen. fits checks that the statement is for what is
// about to be done.
func (b *Broker) verifyApprovals(ctx context.Context, p *proven, fits func(*approval.Statement) bool) error {
	of := evidenceOf{statement: p.request.Statement, credentials: map[string]bool{}}
	for _, v := range p.request.Votes {
		of.envelopes = append(of.envelopes, v.Envelope)
		of.credentials[v.Credential] = true
	}
	refuse := func(format string, args ...any) error {
		return failure.New(failure.Denied, "cannot verify the approvals of request %s: "+format,
			append([]any{p.request.ID}, args...)...).WithHint("look at the broker's store: it may have been edited")
	}
	e, s, err := b.evidence(ctx, of)
	if err != nil {
		return err
	}
	e.Counts, e.Never = func(credential string) bool { return p.counts[credential] }, p.never
	agreement, err := approval.Verify(*e)
	if err != nil {
		return err
	}
	if s.Predicate.Request != p.request.ID || s.Predicate.Requester.ID != p.request.Requester ||
		s.Predicate.Log != b.origin() || len(s.Predicate.Needs) != len(p.chosen) || !fits(s) {
		return refuse("the statement is of something else")
	}
	for i, a := range p.chosen {
		satisfied := false
		for _, stated := range agreement.Needs[i].Alternatives {
			same, err := b.isRule(ctx, stated.Rule, a.rule)
			if err != nil {
				return err
			}
			if same {
				satisfied = stated.Agreed()
				break
			}
		}
		if !satisfied {
			return refuse("they are not enough for the rule %q", a.rule.Name)
		}
	}
	return nil
}

// isRule reports whether a rule document is of a rule of the policy: it has the hash of names that have the very rule,
// and demands nothing else.
func (b *Broker) isRule(ctx context.Context, document *approval.Rule, r *policy.Rule) (bool, error) {
	data, err := b.erasable(ctx, document.Names)
	if err != nil || data == nil {
		return false, err
	}
	names, err := document.Open(data)
	return err == nil && bytes.Equal(names.Rule, r.Resolved()), err
}

// fits reports whether a statement is for a signature.
func (w *wish) fits(s *approval.Statement) bool {
	p := &s.Predicate
	return p.Action == "use" && p.Key != nil && p.Key.Name == w.Key && p.Key.Leaf == w.Leaf && p.Expiry == w.Expiry &&
		p.Repository == w.Repository && slices.ContainsFunc(p.Targets, func(t approval.Target) bool {
		own := w.target()
		if len(own.Annotations) == 0 {
			own.Annotations = nil
		}
		return reflect.DeepEqual(t, own)
	})
}
