package broker

import (
	"bytes"
	"context"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// TestReplicas has any replica answer any call, at once.
func TestReplicas(t *testing.T) {
	t.Parallel()
	all, _ := newReplicas(t, 3)
	for n := range 10 {
		made, used := all[n%3], all[(n+1)%3]
		r, err := made.Create(t.Context(), caller("ci"), newTarget(byte(n)))
		if err != nil {
			t.Fatal(err)
		}
		if seen, err := used.Request(t.Context(), caller("ci"), r.ID); err != nil || seen.State != brokerapi.Approved {
			t.Fatalf("%+v, %v", seen, err)
		}
		s := used.signs("ci", n)
		if s.Request != r.ID {
			t.Errorf("%s was signed for request %s", s.Request, r.ID)
		}
		again := all[(n+2)%3].signs("ci", n)
		if !bytes.Equal(again.Signature, s.Signature) {
			t.Error("the same bytes have two signatures")
		}
	}
	if _, err := all[0].Propose(t.Context(), caller("admin"), Change{What: ChangeBlock, Key: "release"}); err != nil {
		t.Fatal(err)
	}
	_, err := all[1].Sign(t.Context(), caller("ci"), "release", all[1].image(100))
	failsWith(t, err, failure.Denied, "blocked")
	uses := all[0].keys.uses.Load() + all[1].keys.uses.Load() + all[2].keys.uses.Load()
	if uses != 10 {
		t.Errorf("the modules were used %d times", uses)
	}
	all[2].events()
}

// TestReplicaWakes wakes those who wait at one replica for what happens at another.
func TestReplicaWakes(t *testing.T) {
	t.Parallel()
	all, _ := newReplicas(t, 2)
	r, err := all[0].Create(t.Context(), caller("people"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	type answer struct {
		r   *brokerapi.Request
		err error
	}
	answered := make(chan answer)
	go func() {
		r, err := all[0].Wait(t.Context(), caller("people"), r.ID, time.Hour)
		answered <- answer{r, err}
	}()
	for waits := false; !waits; time.Sleep(time.Millisecond) {
		all[0].waiters.mu.Lock()
		waits = len(all[0].waiters.of[r.ID]) > 0
		all[0].waiters.mu.Unlock()
	}
	if _, err := all[1].Cancel(t.Context(), caller("people"), r.ID); err != nil {
		t.Fatal(err)
	}
	if got := <-answered; got.err != nil || got.r.State != brokerapi.Cancelled {
		t.Errorf("%+v", got)
	}
}

// TestReplicaDead takes a replica for dead while its module signs. Another one has logged the signature as lost, and
// has made one of its own: the first is not released.
func TestReplicaDead(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 2)
	paused, other := all[0], all[1]
	signing, goOn := make(chan struct{}), make(chan struct{})
	paused.keys.before = func() error {
		close(signing)
		<-goOn
		return nil
	}
	image := paused.image(1)
	failed := make(chan error)
	go func() {
		_, err := paused.Sign(t.Context(), caller("ci"), "release", image)
		failed <- err
	}()
	<-signing
	busy := make(chan *Outcome)
	go func() {
		o, err := other.Sign(t.Context(), caller("ci"), "release", image)
		if err != nil {
			t.Error(err)
		}
		busy <- o
	}()
	number := paused.replica.number.Load()
	paused.replica.number.Store(number) // it does not know yet
	s.die(number)
	released := <-busy
	close(goOn)
	failsWith(t, <-failed, failure.Unavailable, "")
	paused.keys.before = nil
	if again := paused.retried(image); !bytes.Equal(again.Signature, released.Signature.Signature) {
		t.Error("two signatures of one use")
	}
	if n := occurs(other.events(), lost); n != 1 {
		t.Errorf("%d entries of lost signatures", n)
	}
	if n := occurs(other.events(), signed); n != 1 {
		t.Errorf("%d entries of signatures", n)
	}
}

// retried signs until the replica has joined the others again.
func (f *fixture) retried(r brokerapi.SignatureRequest) *brokerapi.Signature {
	f.t.Helper()
	for {
		o, err := f.Sign(f.t.Context(), caller("ci"), "release", r)
		if err == nil {
			return o.Signature
		}
		failsWith(f.t, err, failure.Unavailable, "")
		time.Sleep(10 * time.Millisecond)
	}
}

func occurs(all []string, one string) (n int) {
	for _, e := range all {
		if e == one {
			n++
		}
	}
	return n
}

// TestReplicaForged believes no entry that somebody else has added to the database.
func TestReplicaForged(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 2)
	all[0].signs("ci", 1)
	size, err := s.Size(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	e := Event{Type: unblocked, Key: "release", Time: all[0].clock.now().Format(eventTime)}
	entry, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	forged := &store.Batch{First: size, Entries: [][]byte{entry}}
	tree, err := translog.NewTree(t.Context(), size, s.Tile)
	if err != nil {
		t.Fatal(err)
	}
	_, tiles := tree.Append(forged.Entries)
	for _, one := range tiles {
		forged.Tiles = append(forged.Tiles, store.Tile(one))
	}
	if err := s.Store.Commit(t.Context(), forged); err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(2))
		failsWith(t, err, failure.Unavailable, "not the one")
	}
	f := newFixture(t)
	f.clock, f.log, f.keys.private = all[0].clock, all[0].log, all[0].keys.private
	checkpoint, err := os.ReadFile(all[0].checkpointFile())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(f.checkpointFile(), checkpoint, 0o600); err != nil {
		t.Fatal(err)
	}
	o := f.options(s)
	o.Replica = &Replica{Store: s, Key: sharedKey}
	_, err = Open(t.Context(), o)
	failsWith(t, err, failure.Conflict, "of no replica")
}

// TestReplicaSkewed decides nothing at a replica whose clock is not the database's. One whose clock jumps goes by the
// database's.
func TestReplicaSkewed(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	skewed := newFixture(t)
	skewed.clock = &testClock{wall: all[0].clock.now().Add(time.Minute), boot: time.Hour}
	skewed.log, skewed.keys.private = all[0].log, all[0].keys.private
	skewed.startReplica(s)
	image := all[0].image(1)
	_, err := skewed.Sign(t.Context(), caller("ci"), "release", image)
	failsWith(t, err, failure.Unavailable, "differs from the database's by 1m0s")
	if parts := skewed.Parts(t.Context()); !slices.ContainsFunc(parts, func(p brokerapi.Part) bool {
		return p.Name == "replica" && !p.Ready && p.Needed
	}) {
		t.Errorf("%+v", parts)
	}
	waits, err := all[0].Create(t.Context(), caller("people"), newTarget(5))
	if err != nil {
		t.Fatal(err)
	}
	all[0].publishAll()
	all[0].clock.pass(waits.NotAfter.Sub(all[0].clock.now())-30*time.Second, 0)
	skewed.clock.pass(waits.NotAfter.Sub(skewed.clock.now())+30*time.Second, 0)
	for _, f := range []*fixture{all[0], skewed} { // it expires in 30 seconds, whoever is asked
		if seen, err := f.Request(t.Context(), caller("people"), waits.ID); err != nil || seen.State != brokerapi.Pending {
			t.Errorf("%+v, %v", seen, err)
		}
	}
	all[0].signs("ci", 1)
	if r, err := skewed.Create(t.Context(), caller("ci"), newTarget(2)); err == nil {
		t.Errorf("%+v", r)
	}
	if err := skewed.Close(); err != nil {
		t.Error(err)
	}
	skewed.clock = &testClock{wall: all[0].clock.now(), boot: time.Hour}
	skewed.startReplica(s)
	skewed.clock.pass(0, time.Hour)
	made, err := skewed.Create(t.Context(), caller("ci"), newTarget(3))
	if err != nil || !made.Created.Equal(all[0].clock.now()) {
		t.Errorf("%+v, %v", made, err)
	}
}

// TestReplicaJoins starts a replica while the log has another policy that no checkpoint covers yet.
func TestReplicaJoins(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	all[0].signs("ci", 1)
	all[0].publishAll()
	checkpoint, err := os.ReadFile(all[0].checkpointFile())
	if err != nil {
		t.Fatal(err)
	}
	all[0].noLog.Store(true)
	changed := []byte(strings.ReplaceAll(testPolicy, `"ci"`, `"cd"`))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err = all[0].Propose(ctx, caller("admin"), Change{What: ChangePolicy, Policy: changed})
	failsWith(t, err, failure.Timeout, "no checkpoint")
	for n := range 2 {
		f := newFixture(t)
		f.clock, f.log, f.keys.private = all[0].clock, all[0].log, all[0].keys.private
		if err := os.WriteFile(f.checkpointFile(), checkpoint, 0o600); err != nil {
			t.Fatal(err)
		}
		f.startReplica(s)
		f.signs("cd", 2+n)
		_, err = f.Sign(t.Context(), caller("ci"), "release", f.image(9))
		failsWith(t, err, failure.Denied, "no rule")
		all[0].signs("cd", 4+n)
	}
}

// TestLeader has one replica sign checkpoints, and another one when that one cannot or has ended.
func TestLeader(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 3)
	leads := func(f *fixture) {
		t.Helper()
		for !f.Leads() {
			time.Sleep(time.Millisecond)
			s.pulse(all)
		}
		r, err := f.Create(t.Context(), caller("ci"), newTarget(9))
		if err != nil {
			t.Fatal(err)
		}
		f.publishAll()
		for _, f := range all {
			if f.Broker == nil {
				continue
			}
			for proven := false; !proven; {
				seen, err := f.Request(t.Context(), caller("ci"), r.ID)
				if err != nil {
					t.Fatal(err)
				}
				proven = seen.Proof != nil
			}
		}
	}
	leads(all[0])
	all[0].noLog.Store(true)
	if _, err := all[2].Create(t.Context(), caller("ci"), newTarget(8)); err != nil {
		t.Fatal(err)
	}
	leads(all[1])
	all[0].noLog.Store(false)
	if err := all[1].Close(); err != nil {
		t.Error(err)
	}
	all[1].Broker = nil
	leads(all[2])
}

// pulse has all replicas say that they are alive, and try to sign the log, at once.
func (s *shared) pulse(all []*fixture) {
	for _, f := range all {
		if f.Broker != nil {
			_ = f.beatOnce(f.t.Context())
		}
	}
}

// TestReplicaOutdated adds entries to the log that only a newer version knows, as a replica of that would: the others
// decide nothing, say so, and leave. A start fails.
func TestReplicaOutdated(t *testing.T) {
	t.Parallel()
	for name, entry := range map[string]string{
		"type":  `{"key":"release","time":"TIME","type":"suspended/v1"}`,
		"field": `{"key":"release","time":"TIME","type":"blocked/v1","until":12}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			all, s := newReplicas(t, 2)
			all[0].signs("ci", 1)
			all[0].publishAll()
			entries := [][]byte{[]byte(strings.ReplaceAll(entry, "TIME", all[0].clock.now().Format(eventTime)))}
			turn, err := s.Turn(t.Context(), all[0].replica.number.Load(), 0)
			if err != nil {
				t.Fatal(err)
			}
			tree, err := translog.NewTree(t.Context(), turn.Head().Size, s.Tile)
			if err != nil {
				t.Fatal(err)
			}
			grown, tiles := tree.Append(entries)
			batch := &store.Batch{First: tree.Size(), Entries: entries, Seal: all[0].seal(grown)}
			for _, one := range tiles {
				batch.Tiles = append(batch.Tiles, store.Tile(one))
			}
			if err := turn.Commit(t.Context(), batch); err != nil {
				t.Fatal(err)
			}
			for _, f := range all {
				_, err := f.Sign(t.Context(), caller("ci"), "release", f.image(2))
				failsWith(t, err, failure.Unavailable, "cannot read entries of a newer version")
				_, err = f.CredentialsOf(t.Context(), "alice")
				failsWith(t, err, failure.Unavailable, "cannot read entries of a newer version")
				if p := f.replica.part(); p.Ready || !strings.Contains(p.Detail, "a newer version") {
					t.Errorf("%+v", p)
				}
				for left := false; !left; time.Sleep(10 * time.Millisecond) {
					members, err := s.Members(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					left = !slices.ContainsFunc(members, func(m store.Member) bool { return m.Number == f.replica.number.Load() })
				}
				if f.Leads() {
					t.Error("a replica leads that cannot read the log")
				}
				if err := f.Close(); err != nil {
					t.Error(err)
				}
				f.Broker = nil
				o := f.options(s)
				o.Replica = &Replica{Store: s, Key: sharedKey}
				_, err = Open(t.Context(), o)
				failsWith(t, err, failure.Unsupported, "which a newer version has written")
			}
			if size, err := s.Size(t.Context()); err != nil || size != grown.Size() {
				t.Errorf("%d entries instead of %d, %v", size, grown.Size(), err)
			}
		})
	}
}
