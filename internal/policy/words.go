package policy

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// String returns what the rule demands, in words.
func (r *Rule) String() string {
	parts := []string{"always applies"}
	if r.When != "" {
		parts[0] = "when " + strings.Join(strings.Fields(r.When), " ")
	}
	return strings.Join(append(parts, r.Demands()...), "; ")
}

// Demands returns what must be there besides the condition, in words. It is empty for a rule that allows at once.
func (r *Rule) Demands() (parts []string) {
	if r.Limit != nil {
		parts = append(parts, "limit "+r.Limit.String())
	}
	if len(r.Approvals) > 0 {
		parts = append(parts, "approvals by "+approvalsOf(r))
	}
	if r.Uses > 1 {
		parts = append(parts, "uses "+r.uses())
	}
	if len(r.Same) > 0 {
		parts = append(parts, "same "+strings.Join(r.Same, ", "))
	}
	if r.TimeLock > 0 {
		parts = append(parts, "time lock "+r.lock())
	}
	if r.Timeout > 0 {
		parts = append(parts, "timeout "+r.ends())
	}
	if r.BreakGlass {
		parts = append(parts, "for emergencies: a request must name it, with a reason")
	}
	return parts
}

// String returns the limit as a policy has it.
func (l *Limit) String() string {
	if l == nil {
		return "none"
	}
	for name, period := range periods {
		if period == l.Per {
			return fmt.Sprintf("%d per %s", l.Count, name)
		}
	}
	return fmt.Sprintf("%d per %s", l.Count, text(l.Per))
}

// approvalsOf returns the quorums of a rule in words.
func approvalsOf(r *Rule) string {
	all := make([]string, len(r.Approvals))
	for i, a := range r.Approvals {
		all[i] = fmt.Sprintf("%d of %s", a.Quorum, a.Group)
		var demands []string
		if !slices.Equal(a.Kinds, Kinds) {
			demands = append(demands, join(a.Kinds))
		}
		if a.Attested {
			demands = append(demands, "passkeys attested")
		}
		if a.DeviceBound {
			demands = append(demands, "passkeys device-bound")
		}
		if len(demands) > 0 {
			all[i] += " (" + strings.Join(demands, "; ") + ")"
		}
	}
	return orNone(strings.Join(all, ", "), "nobody")
}

// uses returns how often each artifact may be signed.
func (r *Rule) uses() string { return fmt.Sprint(max(r.Uses, 1)) }

func (r *Rule) lock() string {
	switch {
	case r.TimeLock == 0:
		return "none"
	case r.After == AfterApprovals:
		return text(r.TimeLock) + " after the last approval"
	}
	return text(r.TimeLock) + " after the request"
}

func (r *Rule) ends() string { return orNone(timeoutText(r.Timeout), "none") }

func timeoutText(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return text(d)
}
