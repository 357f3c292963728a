package broker

import (
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// TestLimit counts the uses of a rule, across starts. A signature of the same image for the same caller is no new use.
func TestLimit(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.policy = strings.Replace(f.policy, "1000 per hour", "2 per hour", 1)
	f.start()
	f.signs("ci", 1)
	f.stop()
	f.start()
	f.later(time.Minute)
	f.signs("ci", 1) // with another signing time
	f.signs("ci", 2)
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(3))
	failsWith(t, err, failure.Throttled, `rule "nightly" has reached its limit of 2 per hour`)
	f.later(time.Hour + time.Second)
	f.signs("ci", 3)
}

// TestToken has a token used for as many requests as it is good for; the same request again is no other.
func TestToken(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	c := caller("ci")
	c.Token = &identity.Token{ID: [32]byte{1}, Expires: f.clock.now().Add(time.Hour), Uses: 1}
	one := f.image(1)
	for range 2 {
		if _, err := f.Sign(t.Context(), c, "release", one); err != nil {
			t.Fatal(err)
		}
	}
	_, err := f.Sign(t.Context(), c, "release", f.image(2))
	failsWith(t, err, failure.Denied, "token was used")
	f.stop()
	f.start()
	_, err = f.Sign(t.Context(), c, "release", f.image(2))
	failsWith(t, err, failure.Denied, "token was used")
	c.Token = &identity.Token{ID: [32]byte{2}, Expires: f.clock.now().Add(time.Hour), Uses: 5}
	for n := range 5 {
		if _, err := f.Sign(t.Context(), c, "release", f.image(10+n)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = f.Sign(t.Context(), c, "release", f.image(20))
	failsWith(t, err, failure.Denied, "token was used")
}

// TestCallerLimits bounds what one caller asks, whatever it is.
func TestCallerLimits(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.limits = identity.Limits{Requests: identity.Rate{Count: 3, Per: time.Minute}, Open: 2}
	f.start()
	for n := range 3 {
		f.signs("ci", n)
	}
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(4))
	failsWith(t, err, failure.Throttled, "3 requests")
	for n := range 2 {
		if _, err := f.Sign(t.Context(), caller("people"), "release", f.image(n)); err != nil {
			t.Fatal(err)
		}
	}
	_, err = f.Sign(t.Context(), caller("people"), "release", f.image(5))
	failsWith(t, err, failure.Throttled, "2 open requests")
}

// TestTimeLock signs after the time, unless the clock has jumped there.
func TestTimeLock(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	slow := caller("slow")
	o, err := f.Sign(t.Context(), slow, "release", f.image(1))
	if err != nil || o.Request == nil || o.Request.State != brokerapi.Pending || o.Request.NotBefore == nil {
		t.Fatalf("%+v, %v", o, err)
	}
	again, err := f.Sign(t.Context(), slow, "release", f.image(1))
	if err != nil || again.Request == nil || again.Request.ID != o.Request.ID {
		t.Fatalf("%+v, %v", again, err)
	}
	f.publishAll()
	f.clock.pass(time.Minute, 2*time.Hour) // the wall clock jumps
	jumped, err := f.Sign(t.Context(), slow, "release", imageAt(1, f.clock.now().Add(-2*time.Hour)))
	if err != nil || jumped.Request == nil || !strings.Contains(jumped.Request.Reason, "clock has jumped by 2h0m0s") {
		t.Fatalf("%+v, %v", jumped.Request, err)
	}
	f.clock.pass(0, -2*time.Hour)
	f.later(time.Hour)
	signed, err := f.Sign(t.Context(), slow, "release", f.image(1))
	if err != nil || signed.Signature == nil || signed.Signature.Request != o.Request.ID {
		t.Fatalf("%+v, %v", signed, err)
	}
}

// TestApprovals has a request that needs people wait, and sign nothing.
func TestApprovals(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	people := caller("people")
	n := brokerapi.NewRequest{Key: "release", Artifact: brokerapi.Target{Format: "notation", MediaType: "a/b",
		Digest: "sha256:" + strings.Repeat("0", 64), Size: 500}}
	r, err := f.Create(t.Context(), people, n)
	if err != nil || r.State != brokerapi.Pending || !strings.Contains(r.Reason, "2 of managers") {
		t.Fatalf("%+v, %v", r, err)
	}
	again, err := f.Create(t.Context(), people, n)
	if err != nil || again.ID != r.ID {
		t.Errorf("%+v, %v", again, err)
	}
	if w, err := f.Wait(t.Context(), people, r.ID, time.Millisecond); err != nil || w.State != brokerapi.Pending {
		t.Errorf("%+v, %v", w, err)
	}
	if c, err := f.Cancel(t.Context(), people, r.ID); err != nil || c.State != brokerapi.Cancelled {
		t.Errorf("%+v, %v", c, err)
	}
	_, err = f.Cancel(t.Context(), people, r.ID)
	failsWith(t, err, failure.Conflict, "not open")
	if f.keys.uses.Load() != 0 {
		t.Error("the key was used")
	}
}

// TestGrant makes a request first, and signs with it.
func TestGrant(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	n := brokerapi.NewRequest{Key: "release", Artifact: brokerapi.Target{Format: "notation",
		MediaType: "application/vnd.oci.image.manifest.v1+json", Digest: "sha256:" + strings.Repeat("0", 63) + "1",
		Size: 500}}
	r, err := f.Create(t.Context(), caller("ci"), n)
	if err != nil || r.State != brokerapi.Approved {
		t.Fatalf("%+v, %v", r, err)
	}
	if s := f.signs("ci", 1); s.Request != r.ID {
		t.Errorf("request %s instead of %s", s.Request, r.ID)
	}
	f.publishAll()
	if r, err = f.Request(t.Context(), caller("ci"), r.ID); err != nil || r.State != brokerapi.Signed || r.Proof == nil ||
		len(r.Proof.Entries) != 3 {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestPolicyChange puts a policy into force under the rules of the one before.
func TestPolicyChange(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	changed := []byte(strings.Replace(testPolicy, `caller.subject == "ci"`, `caller.subject == "other"`, 1))
	_, err := f.Propose(t.Context(), caller("ci"), Change{What: ChangePolicy, Policy: changed})
	failsWith(t, err, failure.Denied, "admins")
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: changed}); err != nil {
		t.Fatal(err)
	}
	f.signs("other", 1)
	_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(2))
	failsWith(t, err, failure.Denied, "no rule")
	f.stop()
	f.start() // with the old file: what is in force is in the log
	f.signs("other", 3)
}

// TestBlock has a key sign nothing until it is unblocked, also what was granted before.
func TestBlock(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.signs("ci", 1)
	_, err := f.Propose(t.Context(), caller("ci"), Change{What: ChangeBlock, Key: "release"})
	failsWith(t, err, failure.Denied, "")
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "release"}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		f.clock.pass(time.Second, 0)
		_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(1))
		failsWith(t, err, failure.Denied, "is blocked")
		f.stop()
		f.start()
	}
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeUnblock, Key: "release"}); err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 1)
}

// TestConfigChange signs nothing with another config than the one in force, until it was proposed.
func TestConfigChange(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.stop()
	f.config = `{"callers":{}}`
	f.start()
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
	failsWith(t, err, failure.Unavailable, "config apply")
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeConfig}); err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 1)
}
