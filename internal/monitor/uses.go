package monitor

import (
	"maps"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
)

// begin remembers a request to sign.
func (r *reading) begin() *request {
	e := r.event
	one := &request{Index: r.index, Key: mark(e.Key), Leaf: mark(e.Leaf), Emergency: e.Why != "", Uses: max(e.Uses, 1),
		Subjects: map[string]subject{}, Ends: max(e.NotAfter, e.At().Unix()) + int64(grace.Seconds())}
	if e.Statement != "" {
		one.Statement = mark(e.Statement)
	}
	if e.Person != "" {
		one.Person = mark(e.Person)
	}
	for _, name := range e.Subjects[:min(len(e.Subjects), maxSubjects)] {
		one.Subjects[mark(name)] = subject{}
	}
	r.Requests[mark(e.Request)] = one
	r.Weight += one.weight()
	return one
}

// request takes a request into account. Those that change something sign nothing.
func (r *reading) request() {
	e := r.event
	if e.What != "" {
		return
	}
	if r.Requests[mark(e.Request)] != nil {
		r.alert(Malformed, "the request %s is made again", clean(e.Request))
		return
	}
	r.checkPolicy()
	r.begin()
}

func (r *reading) checkPolicy() {
	if _, known := r.Policies[mark(r.event.Policy)]; !known {
		r.alert(Unlogged, "the policy %s of request %s was never in force", clean(r.event.Policy), clean(r.event.Request))
	}
}

// decision takes what a person has decided of a request into account, and that one has ended.
func (r *reading) decision() {
	e := r.event
	one := r.Requests[mark(e.Request)]
	if one == nil {
		return // it changes something, or was void
	}
	v := vote{mark(e.Approver), mark(e.Credential), r.index}
	switch e.Type {
	case entry.Approved:
		if e.Statement == "" || one.Statement != mark(e.Statement) || len(one.Votes) >= maxVotes {
			return
		}
		one.Votes = append(one.Votes, v)
		r.Weight++
	case entry.Withdrawn:
		one.Votes = slices.DeleteFunc(one.Votes, func(other vote) bool { return other.Person == v.Person })
	case entry.Rejected:
		one.end("rejected")
	case entry.Ended:
		one.end(clean(e.State))
	}
}

// end ends a request, unless it has ended before.
func (one *request) end(as string) {
	if one.State == "" {
		one.State = as
	}
}

// intent checks a use of a key when it is about to happen: a broker logs no intent that is not allowed.
func (r *reading) intent() {
	e := r.event
	r.checkPolicy()
	one := r.Requests[mark(e.Request)]
	switch {
	case one == nil && len(e.Needs) == 0:
		r.alert(Unlogged, "the request %s of a use of the key %q is not in the log", clean(e.Request), clean(e.Key))
		one = r.begin()
	case one == nil:
		one = r.begin()
	default:
		r.fits(one)
	}
	one.Ends = max(one.Ends, e.At().Unix()+int64(grace.Seconds()))
	if one.State != "" {
		r.alert(Rejected, "the key %q is used for request %s, which is %s", clean(e.Key), clean(e.Request), one.State)
	}
	if r.Blocked[mark(e.Key)].Now {
		r.alert(BlockedKey, "the key %q is used while it is blocked", clean(e.Key))
	}
	if one.Emergency && !e.Retry {
		r.alert(BreakGlass, "the key %q is used by the rule %q for emergencies: request %s", clean(e.Key), clean(e.Rule),
			clean(e.Request))
	}
	r.expected(one)
	if one.Intent != nil {
		r.alert(Malformed, "the intent before of request %s has no outcome", clean(e.Request))
	}
	r.use(one)
}

// fits checks that an intent is for what its request asks for.
func (r *reading) fits(one *request) {
	e := r.event
	statement := ""
	if e.Statement != "" {
		statement = mark(e.Statement)
	}
	if one.Key != mark(e.Key) || one.Leaf != mark(e.Leaf) || one.Statement != statement {
		r.alert(Unlogged, "the key %q is used for another key, certificate or statement than the request %s has",
			clean(e.Key), clean(e.Request))
	}
	for _, name := range e.Subjects {
		if _, asked := one.Subjects[mark(name)]; !asked {
			r.alert(Spent, "the key %q is used for an artifact that request %s does not have", clean(e.Key),
				clean(e.Request))
			return
		}
	}
}

// expected checks an intent against what the config says of its key.
func (r *reading) expected(one *request) {
	e := r.event
	key, listed := r.config.Keys[e.Key]
	if !listed {
		if _, seen := r.Keys[mark(e.Key)]; !seen {
			r.Keys[mark(e.Key)] = r.index
			r.alert(UnlistedKey, "the key %q is used, which the config does not list", clean(e.Key))
		}
		return
	}
	if agreed := r.agreed(one); agreed < key.Approvals {
		r.alert(Approvals, "the key %q is used without approvals: %d of %d people agreed to request %s", clean(e.Key),
			agreed, key.Approvals, clean(e.Request))
	}
	if key.Hours != nil && !key.Hours.has(e.At()) {
		r.alert(OutsideHour, "the key %q is used outside its hours, at %s", clean(e.Key),
			e.At().In(key.Hours.zone).Format("Mon 15:04 MST"))
	}
}

// use counts an intent.
func (r *reading) use(one *request) {
	e := r.event
	in := &intent{Payload: mark(e.Payload), Retry: e.Retry}
	for _, name := range e.Subjects[:min(len(e.Subjects), maxSubjects)] {
		id := mark(name)
		if slices.Contains(in.Subjects, id) {
			continue
		}
		in.Subjects = append(in.Subjects, id)
		s, asked := one.Subjects[id]
		if !asked {
			continue
		}
		switch {
		case e.Retry && e.At().Unix()-s.First > int64(retryWindow.Seconds())+1:
			r.alert(Spent, "the key %q is used again for request %s, more than %s after the first signature", clean(e.Key),
				clean(e.Request), retryWindow)
		case !e.Retry:
			s.Count++
			s.First = 0
			if s.Count > one.Uses {
				r.alert(Spent, "the key %q is used %d times for an artifact of request %s, which allows %d", clean(e.Key),
					s.Count, clean(e.Request), one.Uses)
			}
		}
		one.Subjects[id] = s
	}
	one.Intent = in
}

// outcome checks that what has ended a use had an intent.
func (r *reading) outcome() {
	e := r.event
	one := r.Requests[mark(e.Request)]
	if one == nil || one.Intent == nil || one.Intent.Payload != mark(e.Payload) || one.Key != mark(e.Key) {
		if e.Type != entry.Failed {
			r.alert(Unlogged, "the key %q has signed for request %s without an intent in the log", clean(e.Key),
				clean(e.Request))
		}
		return
	}
	in := one.Intent
	one.Intent = nil
	for id, s := range maps.Clone(one.Subjects) {
		if !slices.Contains(in.Subjects, id) {
			continue
		}
		switch {
		case e.Type == entry.Signed && s.First == 0:
			s.First = e.At().Unix()
		case e.Type != entry.Signed && !in.Retry: // the use is as good as before
			s.Count--
		}
		one.Subjects[id] = s
	}
	if e.Type != entry.Signed {
		return
	}
	if r.Blocked[mark(e.Key)].Now {
		r.alert(BlockedKey, "the key %q has signed while it is blocked", clean(e.Key))
	}
	if one.State != "" {
		r.alert(Rejected, "the key %q has signed for request %s, which is %s", clean(e.Key), clean(e.Request), one.State)
	}
}
