package broker

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// checkKey fails for a key that is not in the policy, does not sign the format, or is blocked.
func (d *decision) checkKey(w *wish) error {
	if err := d.b.sameKey(w); err != nil {
		return err
	}
	if since, is := d.Blocked[w.Key]; is {
		return failure.New(failure.Denied, "the key %q is blocked since %s", w.Key, since.Format(time.RFC3339)).
			WithHint("ask those who may unblock it")
	}
	return nil
}

// sameKey fails when the policy in force does not have the key any more that a wish was read with, or another one under
// its name.
func (b *Broker) sameKey(w *wish) error {
	switch key := b.Key(w.Key); {
	case key == nil:
		return noKey(w.Key)
	case !slices.Equal(key.URIs, w.uris):
		return failure.New(failure.Unavailable, "the policy has another key %q now", w.Key).WithHint("try again").
			WithRetryAfter(soon)
	}
	return nil
}

// spend checks the limits of a caller and the uses of its token, and has an event count both.
func (d *decision) spend(c identity.Caller, e *Event) error {
	limits := d.b.options.Limits
	if n := d.Callers[e.Caller].within(d.now, limits.Requests.Per); limits.Requests.Count > 0 &&
		n >= int64(limits.Requests.Count) {
		return failure.New(failure.Throttled, "the caller has made %d requests per %s, which is its limit", n,
			period(limits.Requests.Per)).WithHint("try again later, or have callers.limits raised").
			WithRetryAfter(d.Callers[e.Caller].free(d.now, limits.Requests.Per))
	}
	if c.Token == nil {
		return nil
	}
	e.Token, e.TokenEnds = fmt.Sprintf("%s%x", hashPrefix, c.Token.ID[:]), c.Token.Expires.Unix()
	if !d.now.Before(c.Token.Expires) {
		return failure.New(failure.Denied, "the caller's token has expired").WithHint("get a new token")
	}
	if used := d.Tokens[e.Token]; used != nil && !used.Triples[triple(e)] && len(used.Triples) >= c.Token.Uses {
		return failure.New(failure.Denied, "the caller's token was used as often as it may be: %d", len(used.Triples)).
			WithHint("get a new token for each request")
	}
	return nil
}

// checkOpen fails when a caller can have no more open requests.
func (d *decision) checkOpen(caller string) error {
	if n, most := d.Open[caller], d.b.options.Limits.Open; most > 0 && n >= most {
		return failure.New(failure.Throttled, "the caller has %d open requests, which is its limit", n).
			WithHint("cancel some, or have callers.limits raised")
	}
	return nil
}

// checkLimit fails when a rule has reached its limit.
func (d *decision) checkLimit(key string, r *policy.Rule) error {
	if r.Limit == nil || d.Uses[key+"\x00"+r.Name].within(d.now, r.Limit.Per) < int64(r.Limit.Count) {
		return nil
	}
	return failure.New(failure.Throttled, "cannot sign with key %q: the rule %q has reached its limit of %d per %s", key,
		r.Name, r.Limit.Count, period(r.Limit.Per)).WithHint("try again later").
		WithRetryAfter(d.Uses[key+"\x00"+r.Name].free(d.now, r.Limit.Per))
}

// period returns the words for a period of a limit: "hour" for one hour.
func period(p time.Duration) string {
	for unit, word := range map[time.Duration]string{time.Second: "second", time.Minute: "minute", time.Hour: "hour",
		24 * time.Hour: "day"} {
		if p == unit {
			return word
		}
	}
	return p.String()
}

// rule is a rule that applies.
type rule struct{ *policy.Rule }

// waits reports whether a request by a rule waits, for people or for a time.
func (r rule) waits() bool { return len(r.Approvals) > 0 || r.TimeLock > 0 }

// choose returns the rules by which wishes are allowed: the first that allows them now, or else all by which they wait.
// It fails with Denied, and says of each rule why it does not apply.
func (d *decision) choose(ws []*wish) ([]*policy.Rule, error) {
	decided := d.b.inForce.Load().policy.Decide(policy.Use, ws[0].input(d.now))
	rules := decided.Rules
	for _, w := range ws[1:] { // what applies to all of them
		other := d.b.inForce.Load().policy.Decide(policy.Use, w.input(d.now)).Rules
		rules = slices.DeleteFunc(slices.Clone(rules), func(r *policy.Rule) bool { return !slices.Contains(other, r) })
	}
	var waiting []*policy.Rule
	var exhausted error
	for _, r := range rules {
		if err := d.checkLimit(ws[0].Key, r); err != nil {
			exhausted = err
			continue
		}
		if !(rule{r}).waits() {
			return []*policy.Rule{r}, nil
		}
		waiting = append(waiting, r)
	}
	switch {
	case len(waiting) > 0:
		return waiting, nil
	case exhausted != nil:
		return nil, exhausted
	case len(decided.Rules) > 0:
		return nil, failure.New(failure.Denied, "cannot sign with key %q: no rule of the policy allows it for all platforms",
			ws[0].Key).WithHint("make a request for each, or have the policy changed")
	}
	return nil, refused(fmt.Sprintf("sign with key %q", ws[0].Key), decided.Refused)
}

// refused returns the failure of what no rule allows.
func refused(what string, reasons []policy.Reason) error {
	var why []string
	for _, r := range reasons {
		if r.Rule == "" {
			why = append(why, r.Why)
			continue
		}
		why = append(why, fmt.Sprintf("rule %q: %s", r.Rule, r.Why))
	}
	return failure.New(failure.Denied, "cannot %s: no rule of the policy allows it (%s)", what, strings.Join(why, "; ")).
		WithHint("have the policy changed, or call as someone whom it allows; see 'hsm-broker policy test'")
}

// applying returns the rules of a request that apply to a wish, as the policy in force has them.
func (d *decision) applying(r *request, w *wish) (rules []*policy.Rule) {
	in := d.b.inForce.Load()
	for _, n := range r.Needs {
		for _, name := range n.Rules {
			current := in.rules[ruleID{policy.Action(n.Action), n.Key, name.Digest}]
			if current == nil {
				continue
			}
			input := w.input(d.now)
			input.BreakGlass = ""
			if current.BreakGlass {
				input.BreakGlass = current.Name
			}
			if slices.Contains(in.policy.Decide(policy.Use, input).Rules, current) {
				rules = append(rules, current)
			}
		}
	}
	return rules
}

// applies reports whether a rule of a request applies to a wish.
func (d *decision) applies(r *request, w *wish) bool { return len(d.applying(r, w)) > 0 }

// settledBy returns the state that a request has for its requester: one whose time lock is over is a grant.
func settledBy(now time.Time, r *brokerapi.Request, waitsForPeople bool) brokerapi.State {
	switch {
	case r.State != brokerapi.Pending && r.State != brokerapi.Approved:
		return r.State
	case r.NotAfter != nil && !now.Before(*r.NotAfter):
		return brokerapi.Expired
	case r.State == brokerapi.Pending && !waitsForPeople && r.NotBefore != nil && !now.Before(*r.NotBefore):
		return brokerapi.Approved
	}
	return r.State
}
