package chaos

import (
	"errors"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// TestModel has the model judge histories, right and wrong.
func TestModel(t *testing.T) {
	at := func(call, ret int, o op) *op {
		o.replica, o.request = &replica{name: "broker-1"}, "r"
		o.call, o.ret = time.Duration(call)*time.Second, time.Duration(ret)*time.Second
		if o.outcome == unknown {
			o.failed = errors.New("nobody knows")
		}
		return &o
	}
	yes := func(k kind, person int, envelope string) op {
		return op{kind: k, person: person, envelope: envelope, outcome: succeeded}
	}
	found := func(s brokerapi.State, votes uint8) op {
		return op{kind: reads, outcome: succeeded, state: s, votes: votes}
	}
	use := func(payload, signature string) op {
		return op{kind: uses, outcome: succeeded, payload: payload, signature: signature}
	}
	agreed := []*op{at(0, 1, yes(approves, 0, "a")), at(0, 1, yes(approves, 1, "b"))}
	lostUse := op{kind: uses, outcome: unknown, payload: "p"}
	lostVote := op{kind: approves, person: 1, envelope: "b", outcome: unknown}
	for name, c := range map[string]struct {
		right bool
		ops   []*op
	}{
		"a use of what people agreed to": {true, append(agreed[:2:2], at(2, 3, use("p", "s")),
			at(4, 5, found(brokerapi.Signed, 0)))},
		"a use without an approval": {false, []*op{agreed[0], at(2, 3, use("p", "s"))}},
		"an approval that is lost":  {false, []*op{agreed[0], at(2, 3, found(brokerapi.Pending, 0))}},
		"an approval that comes":    {true, []*op{at(0, 3, yes(approves, 0, "a")), at(1, 2, found(brokerapi.Pending, 0))}},
		"an approval that goes": {false, append(agreed[:2:2], at(2, 3, found(brokerapi.Approved, 3)),
			at(4, 5, found(brokerapi.Pending, 1)))},
		"nobody knows of it, it is": {true, []*op{agreed[0], at(0, 1, lostVote), at(5, 6, use("p", "s"))}},
		"nobody knows, it is later": {true, []*op{agreed[0], at(0, 1, lostVote), at(2, 3, found(brokerapi.Pending, 1)),
			at(5, 6, use("p", "s"))}},
		"it is, and then it is not": {false, []*op{agreed[0], at(0, 1, lostVote), at(2, 3, found(brokerapi.Approved, 3)),
			at(5, 6, found(brokerapi.Pending, 1))}},
		"the same bytes":            {true, append(agreed[:2:2], at(2, 5, use("p", "s")), at(2, 5, use("p", "s")))},
		"two signatures of one use": {false, append(agreed[:2:2], at(2, 5, use("p", "s")), at(2, 5, use("p", "other")))},
		"an unknown use, and one":   {true, append(agreed[:2:2], at(2, 5, lostUse), at(6, 7, use("p", "s")))},
		"an unknown use, lost": {true, append(agreed[:2:2], at(2, 5, lostUse),
			at(6, 7, found(brokerapi.Approved, 3)))},
		"a use before it begins": {false, append(agreed[:2:2], at(0, 1, found(brokerapi.Signed, 0)),
			at(2, 3, use("p", "s")))},
		"a use after a rejection": {false, append(agreed[:2:2], at(2, 3, yes(rejects, 2, "c")),
			at(4, 5, use("p", "s")))},
		"a use after a cancellation": {false, append(agreed[:2:2], at(2, 3, yes(cancels, 0, "")), at(4, 5, use("p", "s")))},
		"a withdrawal that counts": {false, append(agreed[:2:2], at(2, 3, yes(withdraws, 1, "c")),
			at(4, 5, use("p", "s")))},
		"the same envelope twice":  {false, []*op{agreed[0], at(2, 3, yes(approves, 0, "a"))}},
		"refused without a reason": {false, []*op{at(0, 1, op{kind: approves, envelope: "a", outcome: refused})}},
	} {
		if got := linearizable(c.ops); (got == porcupine.Ok) != c.right || got == porcupine.Unknown {
			t.Errorf("%s: %s", name, got)
		}
	}
}
