package broker

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// told collects the notices of a broker.
type told struct {
	sync.Mutex
	all []Notice
}

func (t *told) rows(n Notice) []store.Notice {
	t.Lock()
	defer t.Unlock()
	t.all = append(t.all, n)
	return []store.Notice{{ID: n.ID, Channel: "test", Created: n.Time, Due: n.Time, Body: []byte(n.Type)}}
}

// last returns the newest notice.
func (t *told) last() Notice {
	t.Lock()
	defer t.Unlock()
	return t.all[len(t.all)-1]
}

// TestNotices tells who can act, who asked and whether it is an emergency. Reminders come without an entry of the log.
func TestNotices(t *testing.T) {
	t.Parallel()
	f, all := approvers(t), &told{}
	f.notices = all.rows
	f.policy = strings.Replace(f.policy, "    block:", `    - name: emergency
      when: caller.subject == "pipeline"
      break-glass: true
      timeout: 72h
      approvals: [{group: directors, quorum: 1}]
    block:`, 1)
	f.start()
	byAlice := f.waits("alice", 1)
	n := all.last()
	if n.Type != NoticePending || n.Requester != "alice" || n.Everyone || !slices.Equal(n.People, []string{"bob", "carol",
		"dave"}) || len(n.Request.Needs) != 1 || len(n.Request.Needs[0].Alternatives[0].Groups) != 2 {
		t.Errorf("%+v", n)
	}
	reasoned := newTarget(2)
	reasoned.Reason = "the release of today"
	if _, err := f.Create(t.Context(), caller("pipeline"), reasoned); err != nil {
		t.Fatal(err)
	}
	if n := all.last(); n.Requester != "" || n.Everyone || n.Request.Why != reasoned.Reason {
		t.Errorf("a reason makes no emergency: %+v", n)
	}
	reasoned = newTarget(3)
	reasoned.Rule, reasoned.Reason = "emergency", "all is down"
	urgent, err := f.Create(t.Context(), caller("pipeline"), reasoned)
	if err != nil {
		t.Fatal(err)
	}
	if n := all.last(); !n.Everyone || !slices.Equal(n.People, []string{"erin"}) {
		t.Errorf("%+v", n)
	}
	f.approves(urgent.ID, "erin")
	if n := all.last(); n.Type != NoticeApproved || !n.Everyone || n.People != nil || n.Request.Needs != nil {
		t.Errorf("%+v", n)
	}
	before := len(all.all)
	f.later(remindEvery + time.Minute)
	f.expire()
	if n := all.last(); n.Type != NoticeReminder || len(all.all) != before+2 || n.Request.Needs == nil {
		t.Errorf("%d notices, last %+v", len(all.all)-before, n)
	}
	rows, err := f.store.Notices(t.Context(), "test", f.clock.now(), store.MaxLimit)
	if err != nil || len(rows) != len(all.all) {
		t.Errorf("%d of %d notices are in the store, %v", len(rows), len(all.all), err)
	}
	if _, err := f.decide("bob", byAlice.ID, approval.Reject); err != nil {
		t.Fatal(err)
	}
	if n := all.last(); n.Type != NoticeRejected || n.Requester != "alice" {
		t.Errorf("%+v", n)
	}
}
