package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// resolve sets what the rule demands as canonical JSON, and its digest.
//
// encoding/json writes maps in the order of their names. That is RFC 8785 here: all names are ASCII, all numbers are
// whole, and Parse has refused the characters that the two escape in different ways. The order of what the policy lists
// does not matter, so that it is sorted.
func (r *Rule) resolve() error {
	byGroup := slices.SortedFunc(slices.Values(r.Approvals), func(a, b Approval) int {
		return strings.Compare(a.Group, b.Group)
	})
	approvals := make([]any, len(byGroup))
	for i, a := range byGroup {
		members := make([]any, len(a.Members))
		for j, person := range a.Members {
			identities := make([]any, len(person.Identities))
			for k, identity := range person.Identities {
				identities[k] = map[string]any{"issuer": identity.Issuer, "subject": identity.Subject}
			}
			members[j] = map[string]any{"identities": identities, "name": person.Name}
		}
		approval := map[string]any{"group": a.Group, "kinds": a.Kinds, "members": members, "quorum": a.Quorum}
		if a.Attested {
			approval["attestation"] = "required"
		}
		if a.DeviceBound {
			approval["device_bound"] = true
		}
		approvals[i] = approval
	}
	same := append([]string{}, r.Same...)
	slices.Sort(same)
	value := map[string]any{
		"action": r.Action, "approvals": approvals, "same": same, "timeout": seconds(r.Timeout), "type": "rule/v1",
		"when": r.When,
	}
	if r.Limit != nil {
		value["limit"] = map[string]any{"count": r.Limit.Count, "per": seconds(r.Limit.Per)}
	}
	if r.TimeLock > 0 {
		value["time_lock"] = map[string]any{"after": r.After, "seconds": seconds(r.TimeLock)}
	}
	if r.Uses > 1 {
		value["uses"] = r.Uses
	}
	if r.BreakGlass {
		value["break_glass"] = true
	}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return err
	}
	r.resolved = bytes.TrimSuffix(text.Bytes(), []byte("\n"))
	r.digest = sha256.Sum256(r.resolved)
	return nil
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }
