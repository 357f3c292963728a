package broker

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// state a request: the statement that people agree to, with the documents that it names. It sets the event's hash of
// it.
func (d *decision) write(s *approval.Statement, e *Event, caller identity.Caller, why string,
	rules [][]*policy.Rule) error {
	opening := &approval.Opening{Issuer: caller.Issuer, Subject: caller.Subject, Salt: randomHex(),
		Run: shownRequester(caller).Claims}
	for _, name := range e.Same {
		if value, exists := caller.Claims[name]; exists {
			if opening.Claims == nil {
				opening.Claims = map[string]string{}
			}
			text, err := json.Marshal(value)
			if err != nil {
				return err
			}
			opening.Claims[name] = string(text)
		}
	}
	opened, err := opening.Encode()
	if err != nil {
		return failure.New(failure.Invalid, "cannot name the requester in a statement: %w", err).
			WithHint("call with claims of printable characters")
	}
	in := d.b.inForce.Load()
	p := &s.Predicate
	p.Broker, p.Log, p.Request, p.Created, p.NotAfter = d.b.options.PublicURL, d.b.origin(), e.Request, d.now.Unix(),
		e.NotAfter
	p.Nonce, p.Policy, p.Reason = randomHex(), in.digest, why
	p.Requester = approval.Requester{Commitment: approval.Hash(opened), ID: e.Requester}
	for i, n := range e.Needs {
		made := approval.Need{Action: n.Action, Key: n.Key}
		for j, name := range n.Rules {
			digest, err := d.ruleDocument(rules[i][j]) //nolint:gosec // the needs were made of the rules
			if err != nil {
				return err
			}
			made.Rules = append(made.Rules, approval.RuleRef{Digest: digest, Name: name.Name})
		}
		p.Needs = append(p.Needs, made)
	}
	data, err := s.Encode()
	if err != nil {
		return failure.New(failure.Invalid, "cannot write the statement of the request: %w", err).
			WithHint("use names and annotations of printable characters")
	}
	d.documentOf(e.Request, opened)
	d.documentOf(e.Request, data)
	e.Statement = approval.Hash(data)
	return nil
}

// ruleDocument keeps a rule with the credentials of its members, and its names, and returns the SHA-256 of the rule as
// sha256:HEX. All requests share them until a credential or the policy changes: they have many people, and they are
// made while others wait.
func (d *decision) ruleDocument(r *policy.Rule) (string, error) {
	if made, exists := d.ruleDocuments[r]; exists {
		d.document(made.names)
		d.document(made.data)
		return made.digest, nil
	}
	names := &approval.Names{People: map[string]string{}, Rule: r.Resolved(), Salt: d.b.ruleSalt(r)}
	for _, a := range r.Approvals {
		for _, p := range a.Members {
			names.People[d.b.personID(p.Name)] = p.Name
		}
	}
	credentials := map[string][]string{}
	for id, c := range d.Credentials {
		if names.People[c.Person] != "" {
			credentials[c.Person] = append(credentials[c.Person], id)
		}
	}
	for _, all := range credentials {
		slices.Sort(all)
	}
	rule, encoded, err := names.Publish(credentials)
	if err != nil {
		return "", err
	}
	data, err := rule.Encode()
	if err != nil {
		return "", err
	}
	made := ruleDocument{data: data, names: encoded, digest: approval.Hash(data)}
	d.document(made.names)
	d.document(made.data)
	if d.ruleDocuments == nil {
		d.ruleDocuments = map[*policy.Rule]ruleDocument{}
	}
	d.ruleDocuments[r] = made
	return made.digest, nil
}

// ruleSalt returns the salt of the names of a rule: the same one each time, so that requests share the document, and
// another one for each rule, so that whoever has the names of one cannot guess those of others by their hashes.
func (b *Broker) ruleSalt(r *policy.Rule) string {
	digest := r.Digest()
	return b.pseudonym("rule", string(digest[:]))
}

// statementOf returns the statement of a request for signatures.
func (d *decision) statementOf(ws []*wish) *approval.Statement {
	first := ws[0]
	s := &approval.Statement{Predicate: approval.Predicate{Action: string(policy.Use), Expiry: first.Expiry,
		Repository: first.Repository, Key: &approval.KeyName{Name: first.Key, Leaf: first.Leaf, Formats: []string{}}}}
	if key := d.b.Key(first.Key); key != nil {
		for _, f := range key.Formats {
			s.Predicate.Key.Formats = append(s.Predicate.Key.Formats, string(f))
		}
	}
	for _, w := range ws {
		s.Predicate.Targets = append(s.Predicate.Targets, w.target())
		digest := cmp.Or(w.Target.Digest, w.digest) // some payloads have none
		algorithm, digits, _ := strings.Cut(digest, ":")
		name := cmp.Or(w.Repository, w.Name, digest)
		s.Subjects = append(s.Subjects, approval.Subject{Name: name, Digest: map[string]string{algorithm: digits}})
	}
	return s
}

// target returns an artifact as statements have it.
func (s *subject) target() approval.Target {
	return approval.Target{Annotations: s.Target.Annotations, Digest: s.Target.Digest, Format: string(s.Target.Format),
		MediaType: s.Target.MediaType, Name: s.Name, Size: s.Target.Size}
}

// randomHex returns 32 random bytes in hexadecimal digits.
func randomHex() string {
	var random [32]byte
	_, _ = rand.Read(random[:]) // never fails
	return hex.EncodeToString(random[:])
}
