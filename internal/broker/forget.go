package broker

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// forgetPage is how many requests are looked at, or changed, in one step: others are decided about between them.
const forgetPage = 100

// forgetting erases a person from the store.
type forgetting struct {
	*Broker
	name, id   string
	identities map[policy.Identity]bool // of the person, in any policy that was in force or proposed
	policies   []string                 // sha256:HEX of those that name the person
	statements []string                 // sha256:HEX of all statements
	made       map[string]bool          // statements of requests that the person made
	rules      map[string]string        // names to erase, or "", by the rule
	done       brokerapi.Forgotten
}

// Forget erases from the store what has the name of a person: the names of rules, the openings of requests that the
// person made, policies that are not in force, and what rows of requests say. The log, statements, rules, credentials
// and approvals stay, and verify as before. It fails with Denied for callers who are no administrators, and with
// Conflict for a person of the policy in force or with credentials, and while a request is open that may need what is
// erased.
func (b *Broker) Forget(ctx context.Context, caller identity.Caller, name string) (*brokerapi.Forgotten, error) {
	if !caller.Admin {
		return nil, failure.New(failure.Denied, "cannot forget %.100q: the caller is no administrator", name).
			WithHint("call as an administrator, such as on the broker's socket")
	}
	f := &forgetting{Broker: b, name: name, id: b.personID(name), made: map[string]bool{}, rules: map[string]string{},
		identities: map[policy.Identity]bool{{Issuer: identityApprover, Subject: name}: true}}
	for _, step := range []func(context.Context) error{f.permit, f.readLog, f.eraseDocuments, f.changeRows,
		f.erasePolicies, b.options.Store.Purge} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return &f.done, nil
}

// permit fails unless the person can be forgotten.
func (f *forgetting) permit(ctx context.Context) error { return f.do(ctx, f.check) }

// check fails with Conflict unless the person can be forgotten.
func (f *forgetting) check(d *decision) error {
	refuse := func(hint, format string, args ...any) error {
		return failure.New(failure.Conflict, "cannot forget %.100q: "+format,
			append([]any{f.name}, args...)...).WithHint(hint)
	}
	in := f.inForce.Load()
	if in.names[f.id] != "" || hasWord(in.policy.Source(), f.name) {
		return refuse("remove the person from the policy first: 'hsm-broker policy apply'", "the policy names the person")
	}
	for _, c := range d.Credentials {
		if c.Person == f.id {
			return refuse("run 'hsm-broker approver remove' with the IDs of the credentials first",
				"the person has credentials")
		}
	}
	for _, r := range d.Requests {
		if _, dead := d.dead(r); dead || !r.open() { // what is dead expires in a moment, and permits nothing
			continue
		}
		old := slices.ContainsFunc(r.Needs, func(n need) bool {
			return slices.ContainsFunc(n.Rules, func(name ruleName) bool {
				return in.rules[ruleID{policy.Action(n.Action), n.Key, name.Digest}] == nil
			})
		})
		if old || r.What == ChangePolicy || r.Person == f.id || r.Enrol != nil && r.Enrol.Person == f.id {
			return refuse("wait until it has ended, or cancel it: 'hsm-broker request cancel "+r.ID+"'",
				"the request %s is open and may need what is erased", r.ID)
		}
	}
	return nil
}

// readLog finds the policies that name the person, and all statements.
func (f *forgetting) readLog(ctx context.Context) error {
	size, err := f.options.Store.Size(ctx)
	if err != nil {
		return err
	}
	policies := map[string]bool{}
	err = f.options.Store.Entries(ctx, 0, size, func(_ int64, entry []byte) error {
		if !bytes.Contains(entry, []byte(`"policy":`)) { // all that matter have one
			return nil
		}
		e, err := decodeEvent(entry)
		if err != nil {
			return failure.New(failure.Internal, "cannot read the log: %w", err)
		}
		policies[e.Policy], policies[e.Base] = true, true
		if e.Type == requested && e.Statement != "" {
			f.statements = append(f.statements, e.Statement)
			f.made[e.Statement] = e.Person == f.id
		}
		return nil
	})
	if err != nil {
		return err
	}
	for hash := range policies {
		data, err := f.erasable(ctx, hash)
		if err != nil {
			return err
		}
		if !hasWord(data, f.name) {
			continue
		}
		f.policies = append(f.policies, hash)
		if p, err := policy.Parse(data); err == nil {
			f.learn(p)
		}
	}
	return nil
}

// learn adds the identities that the person has in a policy.
func (f *forgetting) learn(p *policy.Policy) {
	for _, g := range p.Groups() {
		for _, m := range g.Members {
			for _, i := range m.Identities {
				if m.Name == f.name {
					f.identities[i] = true
				}
			}
		}
	}
}

// hasWord reports whether a text has a name that is no part of a longer one.
func hasWord(text []byte, name string) bool {
	part := func(b byte) bool {
		return b >= '0' && b <= '9' || b >= 'A' && b <= 'Z' || b >= 'a' && b <= 'z' || b >= 0x80 || b == '-' || b == '_'
	}
	for at := 0; name != ""; at++ {
		next := bytes.Index(text[at:], []byte(name))
		if next < 0 {
			return false
		}
		at += next
		end := at + len(name)
		if (at == 0 || !part(text[at-1])) && (end == len(text) || !part(text[end])) {
			return true
		}
	}
	return false
}

// eraseDocuments erases the names of rules that name the person, and the openings of the person's requests.
func (f *forgetting) eraseDocuments(ctx context.Context) error {
	for page := range slices.Chunk(f.statements, forgetPage) {
		var erased []string
		for _, statement := range page {
			more, err := f.documentsOf(ctx, statement)
			if err != nil {
				return err
			}
			erased = append(erased, more...)
		}
		if err := f.erase(ctx, erased); err != nil {
			return err
		}
	}
	return nil
}

// documentsOf returns the documents of a statement that are to be erased.
func (f *forgetting) documentsOf(ctx context.Context, statement string) (erased []string, err error) {
	data, err := f.erasable(ctx, statement)
	if err != nil || data == nil {
		return nil, err
	}
	s, err := approval.DecodeStatement(data)
	if err != nil {
		return nil, err
	}
	opening, err := f.erasable(ctx, s.Predicate.Requester.Commitment)
	if err != nil {
		return nil, err
	}
	if opening != nil {
		o, err := approval.DecodeOpening(opening)
		if err != nil {
			return nil, err
		}
		if f.made[statement] || f.identities[policy.Identity{Issuer: o.Issuer, Subject: o.Subject}] {
			f.identities[policy.Identity{Issuer: o.Issuer, Subject: o.Subject}] = true
			erased = append(erased, s.Predicate.Requester.Commitment)
		}
	}
	for _, n := range s.Predicate.Needs {
		for _, ref := range n.Rules {
			names, err := f.namesOf(ctx, ref.Digest)
			if err != nil {
				return nil, err
			}
			if names != "" {
				erased = append(erased, names)
			}
		}
	}
	return erased, nil
}

// namesOf returns the SHA-256 of the names of a rule as sha256:HEX if the person is one of its members, once, and else
// "".
func (f *forgetting) namesOf(ctx context.Context, rule string) (string, error) {
	if _, known := f.rules[rule]; known {
		return "", nil
	}
	f.rules[rule] = ""
	data, err := f.erasable(ctx, rule)
	if err != nil || data == nil {
		return "", err
	}
	r, _, err := approval.DecodeRule(data)
	if err != nil {
		return "", err
	}
	if !slices.ContainsFunc(r.Members, func(m approval.Member) bool { return m.ID == f.id }) {
		return "", nil
	}
	return r.Names, nil
}

// erase erases documents that there are.
func (f *forgetting) erase(ctx context.Context, hashes []string) error {
	var erased [][sha256.Size]byte
	slices.Sort(hashes)
	for _, hash := range slices.Compact(hashes) {
		data, err := f.erasable(ctx, hash)
		if err != nil {
			return err
		}
		if digest, err := parseHash(hash); err == nil && data != nil {
			erased = append(erased, digest)
		}
	}
	if len(erased) == 0 {
		return nil
	}
	err := f.do(ctx, func(d *decision) error {
		if err := f.check(d); err != nil {
			return err
		}
		d.batch.Erased = append(d.batch.Erased, erased...)
		return nil
	})
	if err == nil {
		f.done.Documents += len(erased)
	}
	return err
}

// erasePolicies erases the policies that name the person. They come last: they have the identities.
func (f *forgetting) erasePolicies(ctx context.Context) error { return f.erase(ctx, f.policies) }

// changeRows has the rows of requests name the id instead of the person.
func (f *forgetting) changeRows(ctx context.Context) error {
	q := store.Query{Limit: forgetPage}
	for more := true; more; more = q.Before != "" {
		page, err := f.options.Store.Requests(ctx, q)
		if err != nil {
			return err
		}
		q.Before = page.Before
		var ids []string
		for _, one := range page.Requests {
			var r row
			if json.Unmarshal(one.Body, &r) == nil && f.change(&r.Request) {
				ids = append(ids, one.ID)
			}
		}
		if len(ids) == 0 {
			continue
		}
		err = f.do(ctx, func(d *decision) error {
			if err := f.check(d); err != nil {
				return err
			}
			for _, id := range ids {
				kept, err := d.kept(id)
				if err != nil {
					return err
				}
				var r row
				if err := json.Unmarshal(kept.Body, &r); err != nil {
					return err
				}
				f.change(&r.Request)
				d.put(&r, kept.Requester, kept.Signature)
			}
			return nil
		})
		if err != nil {
			return err
		}
		f.done.Requests += len(ids)
	}
	return nil
}

// change has a request name the id instead of the person, and reports whether it named the person.
func (f *forgetting) change(r *brokerapi.Request) (changed bool) {
	if f.identities[policy.Identity{Issuer: r.Requester.Issuer, Subject: r.Requester.Subject}] {
		r.Requester, changed = brokerapi.Requester{Issuer: r.Requester.Issuer, Subject: f.id}, true
	}
	replace := func(name *string) {
		if *name == f.name {
			*name, changed = f.id, true
		}
	}
	replace(&r.Person)
	for i := range r.Approvals {
		replace(&r.Approvals[i].Person)
	}
	for _, n := range r.Needs {
		for _, a := range n.Alternatives {
			for _, g := range a.Groups {
				for i := range g.Members {
					replace(&g.Members[i])
				}
			}
		}
	}
	if rest, refused := strings.CutPrefix(r.Reason, f.name+hasRejected); refused {
		r.Reason, changed = f.id+hasRejected+rest, true
	}
	return changed
}
