package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// tags looks at the roots of tags, and holds the keys that publish them against the policy.
func (f *findings) tags(c *brokerfile.File, p *policy.Policy) {
	for i, t := range c.Tags {
		at := fmt.Sprintf("%s: tags[%d]", f.file, i)
		if _, err := readRoot(t.Root); err != nil {
			e := failure.From(err)
			f.mistake(at+".root", e.Hint, "%s", e.What)
		}
		for _, used := range []struct{ role, key string }{{tuf.Snapshot, t.Snapshot}, {tuf.Timestamp, t.Timestamp}} {
			where := at + "." + used.role
			switch key := p.Key(used.key); {
			case key == nil:
				f.mistake(where, "name a key of the policy", "the policy has no key %q", used.key)
			case !slices.Contains(key.Formats, payload.TUF):
				f.mistake(where, "add tuf to its formats", "the key %q of the policy does not sign the format tuf", used.key)
			default:
				f.publisher(where, p, t.Repository, used.role, used.key)
			}
		}
	}
}

// publisher warns if no rule lets the publisher sign metadata of a role by itself.
func (f *findings) publisher(where string, p *policy.Policy, repository, role, key string) {
	caller := identity.Publisher(repository)
	decided := p.Decide(policy.Use, policy.Input{Key: key, Time: time.Now(),
		Caller:   policy.Caller{Issuer: caller.Issuer, Subject: caller.Subject},
		Artifact: policy.Artifact{Format: payload.TUF, Name: role}})
	if slices.ContainsFunc(decided.Rules, func(r *policy.Rule) bool { return len(r.Approvals) == 0 && r.TimeLock == 0 }) {
		return
	}
	reasons := make([]string, 0, len(decided.Refused))
	for _, r := range decided.Refused {
		reasons = append(reasons, strings.TrimPrefix(r.Rule+": ", ": ")+r.Why)
	}
	for _, r := range decided.Rules {
		reasons = append(reasons, r.Name+": it has approvals or a time-lock")
	}
	f.warn(where, "no rule of the key %q lets the publisher of %s sign: %s", key, repository, strings.Join(reasons, "; "))
}
