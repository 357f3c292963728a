package broker

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
)

// target is image number n as a request beforehand names it.
func newTarget(n byte) brokerapi.NewRequest {
	return brokerapi.NewRequest{Key: "release", Artifact: brokerapi.Target{Format: "notation",
		MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 500,
		Digest: "sha256:" + strings.Repeat("0", 63) + string('0'+n)}}
}

// TestSealed adds nothing to the log of an old database, also what permits nothing.
func TestSealed(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	r, err := f.Create(t.Context(), caller("people"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	f.publishAll()
	backup := f.dir + "/copy.db"
	if err := f.store.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 2)
	f.publishAll()
	f.stop()
	f.restore(backup)
	f.start()
	_, err = f.Cancel(t.Context(), caller("people"), r.ID)
	failsWith(t, err, failure.Unavailable, "nothing is added to the log")
}

// TestForked signs nothing with a database whose log is another one than the checkpoint's, however long it is.
func TestForked(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.signs("ci", 1)
	f.publishAll()
	backup := f.dir + "/copy.db"
	if err := f.store.Backup(t.Context(), backup); err != nil {
		t.Fatal(err)
	}
	early, err := os.ReadFile(f.checkpointFile())
	if err != nil {
		t.Fatal(err)
	}
	f.signs("ci", 2)
	f.publishAll()
	f.stop()
	newest, err := os.ReadFile(f.checkpointFile())
	if err != nil {
		t.Fatal(err)
	}
	f.restore(backup)
	if err := os.WriteFile(f.checkpointFile(), early, 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	for n := range 5 {
		f.signs("ci", 10+n)
	}
	f.stop()
	if err := os.WriteFile(f.checkpointFile(), newest, 0o600); err != nil {
		t.Fatal(err)
	}
	f.start()
	_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(3))
	failsWith(t, err, failure.Unavailable, forked)
}

// TestEditedSnapshot does not start from a snapshot that is not the one of the log.
func TestEditedSnapshot(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.snapshots = 5
	f.start()
	if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "release"}); err != nil {
		t.Fatal(err)
	}
	for n := byte(0); ; n++ {
		if _, err := f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy,
			Policy: append([]byte(testPolicy), bytes.Repeat([]byte("\n"), int(n)+1)...)}); err != nil {
			t.Fatal(err)
		}
		if kept, err := f.store.Snapshot(t.Context()); err != nil || kept != nil {
			break
		}
	}
	f.publishAll()
	f.stop()
	f.edit(`update snapshots set data = cast(replace(cast(data as text), '"blocked":{"release"', '"blocked":{"other"') as blob)`)
	f.start()
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
	failsWith(t, err, failure.Denied, "is blocked")
}

// TestEditedSignature does not release a signature that is not the one of the log.
func TestEditedSignature(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	f.signs("ci", 1)
	f.stop()
	f.edit("update requests set signature = cast('other' as blob)")
	f.start()
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1))
	failsWith(t, err, failure.Internal, "is not the one of the log")
}

// TestUnsignedUse counts a use that no checkpoint covered when the broker was killed, and lets it permit nothing.
func TestUnsignedUse(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.policy = strings.Replace(f.policy, "1000 per hour", "1 per hour", 1)
	f.start()
	f.publishAll()
	f.noLog.Store(true)
	f.signs("ci", 1)
	f.killed()
	f.start()
	f.clock.pass(time.Second, 0)
	_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(1)) // with another signing time
	failsWith(t, err, failure.Throttled, "limit of 1")
}

// TestGrantOfAnother uses a grant for its requester alone, and no more once the policy does not allow it.
func TestGrantOfAnother(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.policy = strings.Replace(f.policy, `caller.subject == "ci"`, `caller.subject in ["ci", "other"]`, 1)
	f.start()
	r, err := f.Create(t.Context(), caller("ci"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	if s := f.signs("other", 1); s.Request == r.ID {
		t.Error("the grant of another was used")
	}
	changed := strings.Replace(f.policy, `["ci", "other"]`, `["other"]`, 1)
	_, err = f.Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: []byte(changed)})
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(1))
	failsWith(t, err, failure.Denied, "no rule")
}

// TestSameBytesAtOnce has one use of the key for the same bytes of the same caller.
func TestSameBytesAtOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.start()
	began, end := make(chan bool, 9), make(chan bool)
	f.keys.before = func() error { began <- true; <-end; return nil }
	image := f.image(1)
	signatures := make(chan []byte, 2)
	sign := func() {
		o, err := f.Sign(t.Context(), caller("ci"), "release", image)
		if err != nil {
			t.Error(err)
			signatures <- nil
			return
		}
		signatures <- o.Signature.Signature
	}
	go sign()
	<-began
	go sign()
	for waiting := 0; waiting == 0; time.Sleep(time.Millisecond) {
		f.waiters.mu.Lock()
		waiting = len(f.waiters.of)
		f.waiters.mu.Unlock()
		if len(began) > 0 {
			t.Error("the key is used twice")
			break
		}
	}
	close(end)
	if a, b := <-signatures, <-signatures; !bytes.Equal(a, b) || f.keys.uses.Load() != 1 {
		t.Errorf("%d uses", f.keys.uses.Load())
	}
}

// TestOpenCount counts open requests, and not signatures that waited for nobody.
func TestOpenCount(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.limits = identity.Limits{Open: 2}
	f.policy = strings.Replace(f.policy, `caller.subject == "people"`,
		`caller.subject == "ci" && artifact.digest.matches("[789]$")`, 1)
	f.policy = strings.Replace(f.policy, `caller.subject == "ci" && artifact.repository == ""`,
		`caller.subject == "ci" && !artifact.digest.matches("[789]$")`, 1)
	f.start()
	for n := byte(8); n <= 9; n++ {
		if _, err := f.Create(t.Context(), caller("ci"), newTarget(n)); err != nil {
			t.Fatal(err)
		}
		if n == 8 {
			f.signs("ci", 1)
			f.signs("ci", 2)
		}
	}
	_, err := f.Create(t.Context(), caller("ci"), newTarget(7))
	failsWith(t, err, failure.Throttled, "2 open requests")
}
