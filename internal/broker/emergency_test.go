package broker

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// TestEmergency uses a rule for emergencies only when the requester names it with a reason, and tells everyone.
func TestEmergency(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.policy = strings.Replace(f.policy, "    block:", "    - {name: emergency, when: caller.subject == \"pipeline\", "+
		"break-glass: true, approvals: [{group: security, quorum: 1}]}\n    block:", 1)
	var told []Notice
	f.notices = func(n Notice) []store.Notice { told = append(told, n); return nil }
	f.start()
	f.waits("pipeline", 1)
	n := newTarget(1)
	n.Rule = "emergency"
	_, err := f.Create(t.Context(), caller("pipeline"), n)
	failsWith(t, err, failure.Invalid, "has no reason")
	n.Reason = "production is down"
	r, err := f.Create(t.Context(), caller("pipeline"), n)
	if err != nil || r.Rule != "emergency" || !r.Emergency || r.State != brokerapi.Pending {
		t.Fatalf("%+v, %v", r, err)
	}
	f.approves(r.ID, "dave")
	if s := f.signs("pipeline", 1); s.Request != r.ID {
		t.Errorf("signed by %s", s.Request)
	}
	everyone := map[bool]int{}
	if err := f.look(t.Context(), func(*decision) {
		for _, n := range told {
			everyone[n.Everyone]++
		}
	}); err != nil {
		t.Fatal(err)
	}
	if everyone[true] != 3 || everyone[false] != 1 { // pending, approved, signed; and the other one
		t.Errorf("%+v", told)
	}
	n = newTarget(2)
	n.Rule, n.Reason = "release", "it is no rule for emergencies"
	_, err = f.Create(t.Context(), caller("pipeline"), n)
	failsWith(t, err, failure.Denied, "")
}

// TestUses signs each artifact of a request as often as its rule says, and no more.
func TestUses(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.policy = strings.Replace(f.policy, "      timeout: 72h\n", "      timeout: 72h\n      uses: 2\n", 1)
	f.policy = strings.Replace(f.policy, `caller.subject == "pipeline"
      approvals: [{group: directors`, `caller.subject == "nobody"
      approvals: [{group: directors`, 1)
	f.start()
	r := f.waits("pipeline", 1)
	f.approves(r.ID, "alice", "bob", "dave")
	for range 2 {
		for range 2 {
			f.clock.pass(time.Second, 0)
			if s := f.signs("pipeline", 1); s.Request != r.ID {
				t.Errorf("signed by %s", s.Request)
			}
		}
		f.later(retryWindow + time.Minute)
	}
	if again := f.waits("pipeline", 1); again.ID == r.ID {
		t.Error("it was signed twice, and waits still")
	}
}

// TestPlatforms has one request for an index and its platforms, whose approvals are for each of them once.
func TestPlatforms(t *testing.T) {
	t.Parallel()
	f := approvers(t)
	f.start()
	f.Broker.options.Manifests = func(context.Context, string, string) ([]repository.Manifest, error) {
		return []repository.Manifest{{Digest: newTarget(2).Artifact.Digest, MediaType: newTarget(2).Artifact.MediaType,
			Size: 500},
			{Digest: newTarget(3).Artifact.Digest, MediaType: newTarget(3).Artifact.MediaType, Size: 500}}, nil
	}
	n := newTarget(1)
	n.Platforms, n.Repository = true, "registry.example.com/app"
	r, err := f.Create(t.Context(), caller("pipeline"), n)
	if err != nil || len(r.More) != 2 {
		t.Fatalf("%+v, %v", r, err)
	}
	again, err := f.Create(t.Context(), caller("pipeline"), n)
	if err != nil || again.ID != r.ID {
		t.Fatalf("%+v, %v", again, err)
	}
	f.approves(r.ID, "alice", "bob", "dave")
	signed := map[int][]byte{}
	for _, number := range []int{2, 1, 3} {
		request := f.image(number)
		request.Repository = n.Repository
		o, err := f.Sign(t.Context(), caller("pipeline"), "release", request)
		if err != nil || o.Signature == nil || o.Signature.Request != r.ID {
			t.Fatalf("%d: %+v, %v", number, o, err)
		}
		signed[number] = o.Signature.Signature
		same, err := f.Sign(t.Context(), caller("pipeline"), "release", request)
		if err != nil || string(same.Signature.Signature) != string(signed[number]) {
			t.Errorf("%d: another signature of the same bytes, %v", number, err)
		}
	}
	f.stop()
	f.start()
	request := f.image(2)
	request.Repository = n.Repository
	same, err := f.Sign(t.Context(), caller("pipeline"), "release", request)
	if err != nil || string(same.Signature.Signature) != string(signed[2]) {
		t.Errorf("another signature after a start: %v", err)
	}
	if now, err := f.Request(t.Context(), caller("pipeline"), r.ID); err != nil || now.State != brokerapi.Signed {
		t.Errorf("%+v, %v", now, err)
	}
	f.waits("pipeline", 4)
}
