package broker

import (
	"fmt"
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
	case key.URI != w.uri:
		return failure.New(failure.Unavailable, "the policy has another key %q now", w.Key).WithHint("try again")
	}
	return nil
}

// spend checks the limits of a caller and the uses of its token, and has an event count both.
func (d *decision) spend(c identity.Caller, e *Event) error {
	limits := d.b.options.Limits
	if n := d.Callers[e.Caller].within(d.now, limits.Requests.Per); limits.Requests.Count > 0 &&
		n >= int64(limits.Requests.Count) {
		return failure.New(failure.Throttled, "the caller has made %d requests per %s, which is its limit", n,
			period(limits.Requests.Per)).WithHint("try again later, or have callers.limits raised")
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
		r.Name, r.Limit.Count, period(r.Limit.Per)).WithHint("try again later")
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

// choose returns the rule by which a wish is allowed: the first that allows it now, or else the first by which it
// waits. It fails with Denied, and says of each rule why it does not apply.
func (d *decision) choose(w *wish) (rule, error) {
	decided := d.b.inForce.Load().policy.Decide(policy.Use, w.input(d.now))
	var waiting *policy.Rule
	var exhausted error
	for _, r := range decided.Rules {
		if err := d.checkLimit(w.Key, r); err != nil {
			exhausted = err
			continue
		}
		if one := (rule{r}); !one.waits() {
			return one, nil
		}
		if waiting == nil {
			waiting = r
		}
	}
	switch {
	case waiting != nil:
		return rule{waiting}, nil
	case exhausted != nil:
		return rule{}, exhausted
	}
	return rule{}, refused(fmt.Sprintf("sign with key %q", w.Key), decided.Refused)
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

// current returns the rule of a request as the policy in force has it. It fails when it has changed.
func (d *decision) current(r *request) (*policy.Rule, error) {
	for _, now := range d.b.inForce.Load().policy.Rules(policy.Use, r.Key) {
		if now.Name == r.Rule && ruleDigest(now) == r.RuleDigest {
			return now, nil
		}
	}
	return nil, failure.New(failure.Denied, "the rule %q of key %q has changed since the request was made", r.Rule, r.Key).
		WithHint("make the request again")
}

// applies fails unless the rule of a request applies to a wish.
func (d *decision) applies(r *request, w *wish) error {
	current, err := d.current(r)
	if err != nil {
		return err
	}
	for _, one := range d.b.inForce.Load().policy.Decide(policy.Use, w.input(d.now)).Rules {
		if one == current {
			return nil
		}
	}
	return failure.New(failure.Denied, "the rule %q of request %s does not apply to this caller", r.Rule, r.ID)
}

// needs returns the groups of a rule whose approvals a request lacks. People cannot approve yet: all are lacking.
func (d *decision) needs(r *request) []policy.Approval {
	current, err := d.current(r)
	if err != nil {
		return nil
	}
	return current.Approvals
}

// timeLock fails while the time of a request has not come. It does not come while the clock is wrong.
func (d *decision) timeLock(r *request) error {
	if r.NotAfter > 0 && d.now.Unix() >= r.NotAfter {
		return failure.New(failure.Denied, "the request %s has expired", r.ID).WithHint("make the request again")
	}
	if r.NotBefore == 0 {
		return nil
	}
	if jump := d.b.clock.frozen(d.Last); jump != 0 {
		return failure.New(failure.Unavailable, "time locks stay closed: the broker's clock has jumped by %s", jump).
			WithHint("set the broker's clock right")
	}
	if at := time.Unix(r.NotBefore, 0).UTC(); d.now.Before(at) {
		return failure.New(failure.Unavailable, "the request %s waits for its time lock until %s", r.ID,
			at.Format(time.RFC3339)).WithHint("try again then")
	}
	return nil
}

// settled returns the state that a request has for its requester: one whose time lock is over is a grant.
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
