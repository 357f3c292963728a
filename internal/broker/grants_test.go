package broker

import (
	"strings"
	"testing"
)

// TestTwoGrants signs when two requests for the same artifact are approved: one of them by a rule for emergencies.
func TestTwoGrants(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.policy = strings.Replace(f.policy, "    block:", "    - {name: emergency, when: caller.subject == \"pipeline\", "+
		"break-glass: true, approvals: [{group: security, quorum: 1}]}\n    block:", 1)
	f.start()
	f.approves(f.waits("pipeline", 1).ID, "alice", "bob", "dave")
	n := newTarget(1)
	n.Rule, n.Reason = "emergency", "production is down"
	r, err := f.Create(t.Context(), caller("pipeline"), n)
	if err != nil {
		t.Fatal(err)
	}
	f.approves(r.ID, "carol")
	f.signs("pipeline", 1)
}
