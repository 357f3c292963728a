package broker

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What a broker promises. The model checks each of them after each step, against what it wrote down itself.
const (
	promiseAllowed   = "I1: nothing is signed unless the policy in force allows the caller, the key and the artifact"
	promiseAgreed    = "I2: nothing is signed unless enough others agreed to this request, with credentials that count"
	promiseOnce      = "I3: a person counts once in an alternative"
	promiseInTime    = "I4: nothing is signed before the time lock or after the timeout"
	promiseUses      = "I5: an artifact is signed no more often than its request may be used"
	promiseBlocked   = "I6: a blocked key signs nothing, and releases nothing"
	promiseKept      = "I7: a crash loses no approval or change that was acknowledged"
	promiseEnded     = "I8: a request that was rejected, was cancelled or has expired signs nothing"
	promiseChanges   = "I9: a policy, an enrolment or a removal comes into force only as the policy in force asks"
	promiseLogged    = "I10: each use is in the log, its intent before its outcome, and no signature is released without"
	promiseRestarted = "I11: the broker starts again after any crash"
)

// bookEntry is what the model reads of an entry of the log.
type bookEntry struct {
	Type, Approval, Approver, Base, Caller, Credential, Digest, Key, Payload, Policy, Public, Request, Signature, State,
	Statement, Time, What string
	Index int64
	Needs []struct {
		Action, Key string
		Rules       []struct{ Name string }
	}
	NotAfter int64 `json:"not_after"`
	Same     []string
}

func (e *bookEntry) at() time.Time {
	at, _ := time.Parse(time.RFC3339, e.Time)
	return at
}

// permits reports whether an entry is one that a crash makes void if no checkpoint covers it.
func (e *bookEntry) permits() bool {
	return slices.Contains([]string{"policy/v1", "config/v1", "request/v1", "unblocked/v1", "epoch/v1", "snapshot/v1",
		"void/v1", "approved/v1", "enrolled/v1", "invited/v1"}, e.Type)
}

// given is a decision that the test has somebody sign.
type given struct {
	person, credential, statement, decision string
	used                                    *bool // the log has it; signatures of the same document share it
}

// ownCredential is a credential that the test has made.
type ownCredential struct{ person, kind string }

// Parts of the world as the entries of the log say it is.
type (
	worldCredential struct {
		ownCredential
		public  string // pseudonym of the key
		index   int64
		removed bool
	}
	worldVote struct {
		person, credential string
		at                 time.Time
	}
	worldRequest struct {
		id, what, key, digest, caller, statement, policy, credential, ended string
		same                                                                []string
		index                                                               int64
		created                                                             time.Time
		needs                                                               []worldNeed
		askers                                                              []string // people whose identity the caller was
		direct                                                              bool
		uses, windows                                                       int
		window                                                              time.Time // begins with a use
		votes                                                               []worldVote
	}
	worldNeed struct {
		action, key string
		rules       []*bookRule
		book        *ruleBook // that has them
	}
	worldPolicy struct {
		index int64
		hash  string
	}
	world struct {
		policies    []worldPolicy
		blocked     map[string]bool
		credentials map[string]*worldCredential
		requests    map[string]*worldRequest
		intents     map[string]bookEntry
	}
)

// book is what the model knows: what the test did, and the entries of the log. It is computed by brute force from both.
type book struct {
	fail func(promise, format string, args ...any)

	books   map[string]*ruleBook // by the hash of the policy: all that the test has written
	callers map[string]string    // by pseudonym
	persons map[string]string    // names, by id
	publics map[string]ownCredential
	given   map[string]*given // by the hash of the envelope
	forged  map[int64]bool    // indexes of entries that the test has put into the database
	first   int64             // entries of the start

	entries []bookEntry
	world   *world
	sure    int64                 // entries that a checkpoint covered before this step
	kept    map[string]bool       // hashes of envelopes that were acknowledged
	made    map[string]string     // changes that were acknowledged: their requests, by the type of the entry
	intents int64                 // in the log
	signed  map[string]*bookEntry // by the hash of the signature
	counts  map[string]int        // what has happened, to see that the model sees anything
}

func newBook() *book {
	return &book{books: map[string]*ruleBook{}, callers: map[string]string{}, persons: map[string]string{},
		publics: map[string]ownCredential{}, given: map[string]*given{}, forged: map[int64]bool{}, world: newWorld(),
		kept: map[string]bool{}, made: map[string]string{}, signed: map[string]*bookEntry{}, counts: map[string]int{}}
}

func newWorld() *world {
	return &world{blocked: map[string]bool{}, credentials: map[string]*worldCredential{},
		requests: map[string]*worldRequest{}, intents: map[string]bookEntry{}}
}

// read takes the next entry of the log into account.
func (b *book) read(data []byte) {
	var e bookEntry
	if err := json.Unmarshal(data, &e); err != nil {
		b.fail(promiseLogged, "entry %d: %v", len(b.entries), err)
	}
	index := int64(len(b.entries))
	b.entries = append(b.entries, e)
	switch e.Type {
	case "intent/v1":
		b.intents++
	case "signed/v1":
		b.signed[e.Signature] = &e
	case "void/v1":
		b.rebuild()
		return
	}
	if e.permits() && b.forged[index] {
		return
	}
	b.check(index, &e)
	b.apply(index, &e)
}

// rebuild reads all entries again, since some that permit something are void now.
func (b *book) rebuild() {
	b.world = newWorld()
	kept, made := map[string]bool{}, map[string]bool{}
	for _, g := range b.given {
		*g.used = false
	}
	for i := range b.entries {
		e := &b.entries[i]
		index := int64(i)
		void := e.permits() && (b.forged[index] || slices.ContainsFunc(b.entries[i+1:], func(v bookEntry) bool {
			return v.Type == "void/v1" && v.Index <= index
		}))
		if void {
			b.counts["void"]++
			continue
		}
		kept[e.Approval], made[e.Type+e.Request] = true, true
		if g := b.given[e.Approval]; g != nil {
			*g.used = true
		}
		b.apply(index, e)
	}
	for hash := range b.kept {
		if !kept[hash] {
			b.fail(promiseKept, "the approval %s of %s", hash, b.given[hash].person)
		}
	}
	for id, what := range b.made {
		if !made[what+id] {
			b.fail(promiseKept, "the %s of request %s", what, id)
		}
	}
}

// has reports whether the log has an entry of a type for a request.
func (b *book) has(what, request string) bool {
	return slices.ContainsFunc(b.entries, func(e bookEntry) bool { return e.Type == what && e.Request == request })
}

// apply has the world be as an entry says.
func (b *book) apply(index int64, e *bookEntry) {
	w := b.world
	r := w.requests[e.Request]
	settle := func() {
		if r != nil {
			r.ended = "done"
		}
	}
	switch e.Type {
	case "open/v1":
		w.policies = append(w.policies, worldPolicy{index, e.Policy})
	case "policy/v1":
		w.policies = append(w.policies, worldPolicy{index, e.Policy})
		settle()
	case "blocked/v1":
		w.blocked[e.Key] = true
		settle()
	case "unblocked/v1":
		delete(w.blocked, e.Key)
		settle()
	case "enrolled/v1":
		w.credentials[e.Credential] = &worldCredential{ownCredential: b.publics[e.Public], public: e.Public, index: index}
		settle()
	case "removed/v1":
		if c := w.credentials[e.Credential]; c != nil {
			c.removed = true
		}
		settle()
	case "request/v1":
		w.requests[e.Request] = b.request(index, e)
	case "intent/v1":
		if r == nil {
			r = b.request(index, e)
			r.direct = true
			w.requests[e.Request] = r
		}
		w.intents[e.Request] = *e
	case "signed/v1":
		intent := w.intents[e.Request]
		delete(w.intents, e.Request)
		if r.windows == 0 || intent.at().Sub(r.window) > 15*time.Minute {
			r.windows++
			r.window = e.at()
		}
	case "failed/v1", "lost/v1":
		delete(w.intents, e.Request)
		if r != nil && r.direct && r.windows == 0 {
			r.ended = "failed"
		}
	case "approved/v1":
		if r != nil && r.ended == "" {
			r.votes = append(r.votes, worldVote{b.persons[e.Approver], e.Credential, e.at()})
		}
	case "withdrawn/v1":
		if r != nil {
			r.votes = slices.DeleteFunc(r.votes, func(v worldVote) bool { return v.person == b.persons[e.Approver] })
		}
	case "rejected/v1":
		if r != nil {
			r.ended = "rejected"
		}
	case "ended/v1":
		if r != nil {
			r.ended = e.State
		}
	}
}

// request returns a request as its first entry has it.
func (b *book) request(index int64, e *bookEntry) *worldRequest {
	r := &worldRequest{id: e.Request, what: e.What, key: e.Key, digest: e.Digest, caller: b.callers[e.Caller],
		statement: e.Statement, policy: e.Policy, credential: e.Credential, same: e.Same, index: index, created: e.at(),
		uses: 99}
	of := e.Policy
	if e.What != "" {
		of = e.Base
	}
	made := b.books[of]
	if made == nil {
		b.fail(promiseAllowed, "%s at %d is by a policy that nobody wrote: %s", e.Type, index, of)
	}
	for _, n := range e.Needs {
		need := worldNeed{action: n.Action, key: n.Key, book: made}
		for _, name := range n.Rules {
			rule := made.rule(n.Key, n.Action, func(o *bookRule) bool { return o.name == name.Name })
			if rule == nil {
				b.fail(promiseAllowed, "the policy has no rule %s to %s %q", name.Name, n.Action, n.Key)
			}
			need.rules = append(need.rules, rule)
			r.uses = min(r.uses, max(rule.uses, 1))
		}
		r.needs = append(r.needs, need)
	}
	r.askers = made.named(r.caller)
	return r
}

// inForce returns the policies that can be in force: the newest that was covered before this step, and later ones.
func (b *book) inForce() []worldPolicy {
	all := b.world.policies
	for len(all) > 1 && all[1].index < b.sure {
		all = all[1:]
	}
	return all
}

// check fails for an entry that breaks a promise.
func (b *book) check(index int64, e *bookEntry) {
	w := b.world
	r := w.requests[e.Request]
	switch e.Type {
	case "intent/v1":
		if r == nil {
			r = b.request(index, e)
		}
		if err := b.mayUse(r, e); err != nil {
			b.failed(err, index, e)
		}
		b.counts["intent"]++
	case "signed/v1":
		intent, exists := w.intents[e.Request]
		if !exists || intent.Payload != e.Payload {
			b.fail(promiseLogged, "signed/v1 at %d has no intent", index)
		}
		if again := r.windows > 0 && intent.at().Sub(r.window) <= 15*time.Minute; !again && r.windows >= r.uses {
			b.fail(promiseUses, "the request %s was used %d times, and may be %d times", r.id, r.windows+1, r.uses)
		}
		if w.blocked[e.Key] {
			b.fail(promiseBlocked, "signed/v1 at %d", index)
		}
		b.counts["signed"]++
		if len(r.votes) > 0 {
			b.counts["signed as people agreed"]++
		}
	case "approved/v1", "withdrawn/v1", "rejected/v1":
		g := b.given[e.Approval]
		decision := map[string]string{"approved/v1": "approve", "withdrawn/v1": "withdraw", "rejected/v1": "reject"}[e.Type]
		switch {
		case g == nil || r == nil:
			b.fail(promiseAgreed, "%s at %d was given by nobody", e.Type, index)
		case g.decision != decision || g.statement != r.statement || g.person != b.persons[e.Approver] ||
			g.credential != e.Credential:
			b.fail(promiseAgreed, "%s at %d is not what %s gave: %+v", e.Type, index, g.person, g)
		case *g.used:
			b.fail(promiseAgreed, "%s at %d of %s was given once, and is there twice", e.Type, index, g.person)
		}
		if c := w.credentials[e.Credential]; c == nil || c.removed {
			b.fail(promiseAgreed, "%s at %d is by a credential that was removed", e.Type, index)
		}
		*g.used = true
		b.counts[e.Type]++
	case "policy/v1", "enrolled/v1", "removed/v1", "blocked/v1", "unblocked/v1":
		if index < b.first {
			break
		}
		if err := b.mayChange(r, e); err != nil {
			b.failed(fmt.Errorf("%s: %w", promiseChanges, err), index, e)
		}
		b.counts[e.Type]++
		if r != nil {
			b.counts["changed as people agreed"]++
		}
	}
}

func (b *book) failed(err error, index int64, e *bookEntry) {
	promise, rest, _ := strings.Cut(err.Error(), "\n")
	b.fail(promise, "%s at %d, request %s: %s", e.Type, index, e.Request, rest)
}

// broken is a promise that does not hold, and why.
func broken(promise, format string, args ...any) error {
	return errors.New(promise + "\n" + fmt.Sprintf(format, args...))
}

// mayUse fails unless an intent is as the policy in force and the people who agreed allow.
func (b *book) mayUse(r *worldRequest, e *bookEntry) (err error) {
	err = broken(promiseAllowed, "the policy %s is not in force", e.Policy)
	for _, p := range b.inForce() {
		if p.hash == e.Policy {
			err = b.mayUseBy(b.books[p.hash], r, e)
		}
	}
	return err
}

func (b *book) mayUseBy(p *ruleBook, r *worldRequest, e *bookEntry) error {
	caller := b.callers[e.Caller]
	retry := r.windows > 0 && e.at().Sub(r.window) <= 15*time.Minute
	switch {
	case b.world.blocked[e.Key]:
		return broken(promiseBlocked, "%s", e.Key)
	case r.ended != "":
		return broken(promiseEnded, "it is %s", r.ended)
	case r.key != e.Key || r.digest != e.Digest || r.what != "" || len(r.needs) != 1:
		return broken(promiseAgreed, "the request is for %s with %s, not for %s with %s", r.digest, r.key, e.Digest, e.Key)
	case !mayShare(r, caller):
		return broken(promiseAllowed, "%s uses the request of %s", caller, r.caller)
	case !retry && r.windows >= r.uses:
		return broken(promiseUses, "%d of %d", r.windows, r.uses)
	}
	return b.fulfilled(p, r, r.needs[0], func(rule *bookRule) bool { return rule.applies(subjectOf(caller), e.Digest) },
		e.at(), retry, 0)
}

// mayShare reports whether a caller is the requester: the same one, or one with the claims that the request lists.
func mayShare(r *worldRequest, caller string) bool {
	return caller == r.caller || len(r.same) > 0 && teamOf(caller) != "" && teamOf(caller) == teamOf(r.caller)
}

// mayChange fails unless a change is as the modify, block and unblock rules of the policy in force ask.
func (b *book) mayChange(r *worldRequest, e *bookEntry) (err error) {
	for _, p := range b.inForce() {
		if err = b.mayChangeBy(b.books[p.hash], r, e); err == nil {
			return nil
		}
	}
	return err
}

func (b *book) mayChangeBy(p *ruleBook, r *worldRequest, e *bookEntry) error {
	type wanted struct{ action, key string }
	all := []wanted{{"modify", ""}}
	what := map[string]string{"policy/v1": "policy", "enrolled/v1": "enrol", "removed/v1": "remove", "blocked/v1": "block",
		"unblocked/v1": "unblock"}[e.Type]
	switch what {
	case "block", "unblock":
		all = []wanted{{what, e.Key}}
	case "policy":
		next := b.books[e.Policy]
		if next == nil {
			return broken("", "nobody has written the policy %s", e.Policy)
		}
		all = nil
		for _, key := range p.touched(next) {
			all = append(all, wanted{"modify", key})
		}
	case "enrol":
		if b.publics[e.Public].person != b.persons[e.Approver] {
			return broken("", "the key is not of %s", b.persons[e.Approver])
		}
	}
	if r != nil {
		switch {
		case r.ended != "":
			return broken(promiseEnded, "it is %s", r.ended)
		case r.what != what || r.key != e.Key || r.credential != e.Credential || what == "policy" && r.policy != e.Policy:
			return broken("", "people agreed to another change")
		}
	}
	for _, one := range all {
		if r == nil {
			free := p.rule(one.key, one.action, func(rule *bookRule) bool {
				return len(rule.groups) == 0 && rule.lock == 0 && rule.applies(subjectOf(b.callers[e.Caller]), "")
			})
			if free == nil {
				return broken("", "no rule lets %s %s %q without asking", b.callers[e.Caller], one.action, one.key)
			}
			continue
		}
		i := slices.IndexFunc(r.needs, func(n worldNeed) bool { return n.action == one.action && n.key == one.key })
		if i < 0 {
			return broken("", "nobody was asked to %s %q", one.action, one.key)
		}
		if err := b.fulfilled(p, r, r.needs[i], func(*bookRule) bool { return true }, e.at(), false, 0); err != nil {
			return err
		}
	}
	return nil
}

// fulfilled fails unless one rule of a need is in force, applies, has its people, and is in time. margin is how long
// after its lock, and before its timeout, it has to be.
func (b *book) fulfilled(p *ruleBook, r *worldRequest, n worldNeed, applies func(*bookRule) bool, at time.Time,
	retry bool, margin time.Duration) error {
	err := broken(promiseAllowed, "no rule of the request is in force and applies")
	for _, made := range n.rules {
		demands := n.book.demands(made)
		rule := p.rule(n.key, n.action, func(o *bookRule) bool { return p.demands(o) == demands })
		if rule == nil || !applies(rule) {
			continue
		}
		if !b.agreed(p, r, rule, len(r.votes), true) {
			promise := promiseAgreed
			if b.agreed(p, r, rule, len(r.votes), false) {
				promise = promiseOnce
			}
			if !strings.HasPrefix(err.Error(), promiseOnce) {
				err = broken(promise, "for the rule %s there are %+v", rule.name, r.votes)
			}
			continue
		}
		from := r.created
		if rule.after != "" {
			for i := range r.votes {
				if b.agreed(p, r, rule, i+1, true) {
					from = r.votes[i].at
					break
				}
			}
		}
		life := rule.timeout
		if life == 0 {
			life = 24*time.Hour + rule.lock
		}
		switch {
		case rule.lock > 0 && at.Before(from.Add(rule.lock+margin)):
			err = broken(promiseInTime, "the lock of %s is not over", rule.name)
		case !retry && !at.Before(r.created.Add(life-margin)):
			err = broken(promiseInTime, "the time of %s is over", rule.name)
		default:
			return nil
		}
	}
	return err
}

// agreed reports whether the first votes of a request are enough for a rule. It tries all ways in which people can
// count for groups. once is false to have each credential count as somebody.
func (b *book) agreed(p *ruleBook, r *worldRequest, rule *bookRule, votes int, once bool) bool {
	able := map[string][]int{}
	for _, v := range r.votes[:votes] {
		c := b.world.credentials[v.credential]
		if c == nil || c.removed || c.index > r.index || c.person != v.person || slices.Contains(r.askers, v.person) ||
			slices.Contains(p.named(r.caller), v.person) {
			continue
		}
		for i, g := range rule.groups {
			if slices.Contains(p.groups[g.group], v.person) && (g.kinds == nil || slices.Contains(g.kinds, c.kind)) {
				name := v.person
				if !once {
					name = fmt.Sprint(v.person, v.credential, i)
				}
				able[name] = append(able[name], i)
			}
		}
	}
	var people [][]int
	for _, groups := range able {
		people = append(people, groups)
	}
	left := make([]int, len(rule.groups))
	for i, g := range rule.groups {
		left[i] = g.quorum
	}
	var try func(people [][]int) bool
	try = func(people [][]int) bool {
		if !slices.ContainsFunc(left, func(n int) bool { return n > 0 }) {
			return true
		}
		if len(people) == 0 {
			return false
		}
		for _, g := range people[0] {
			left[g]--
			if try(people[1:]) {
				return true
			}
			left[g]++
		}
		return try(people[1:])
	}
	return try(people)
}

// must reports whether the broker has to sign at a time, since all that is needed is there.
func (b *book) must(caller, key, digest string, at time.Time) bool {
	all := b.inForce()
	if len(all) != 1 || b.world.blocked[key] {
		return false
	}
	p := b.books[all[0].hash]
	waits := false
	for _, r := range b.world.requests {
		if r.what != "" || r.key != key || r.digest != digest || r.ended != "" || !mayShare(r, caller) {
			continue
		}
		waits = waits || r.windows < r.uses
		if r.windows < r.uses && !r.direct && b.fulfilled(p, r, r.needs[0], func(rule *bookRule) bool {
			return rule.applies(subjectOf(caller), digest)
		}, at, false, 2*time.Second) == nil {
			return true
		}
	}
	return !waits && p.rule(key, "use", func(rule *bookRule) bool {
		return len(rule.groups) == 0 && rule.lock == 0 && rule.applies(subjectOf(caller), digest)
	}) != nil
}

func subjectOf(caller string) string { return strings.TrimPrefix(caller, "approver/") }

// teamOf returns the claim team of a caller.
func teamOf(caller string) string {
	if caller == "p1" || caller == "p2" {
		return "blue"
	}
	return ""
}
