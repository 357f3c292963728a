package broker

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
)

// seat is the store as one replica uses it: a test does something before a call, or has it fail.
type seat struct {
	*shared
	before atomic.Pointer[func(call string) error]
	pages  atomic.Int64 // the largest number of entries that were read at once
}

// on has a function be called before each call.
func (s *seat) on(before func(call string) error) { s.before.Store(&before) }

// once has a function be called before the first call of a name.
func (s *seat) once(call string, before func() error) {
	var done atomic.Bool
	s.on(func(now string) error {
		if now != call || done.Swap(true) {
			return nil
		}
		return before()
	})
}

func (s *seat) call(name string) error {
	if before := s.before.Load(); before != nil {
		return (*before)(name)
	}
	return nil
}

func (s *seat) Tile(ctx context.Context, level int, index int64) ([]byte, error) {
	if err := s.call("Tile"); err != nil {
		return nil, err
	}
	return s.shared.Tile(ctx, level, index)
}

func (s *seat) Checkpoint(ctx context.Context) ([]byte, error) {
	if err := s.call("Checkpoint"); err != nil {
		return nil, err
	}
	return s.shared.Checkpoint(ctx)
}

func (s *seat) Document(ctx context.Context, hash [32]byte) ([]byte, error) {
	if err := s.call("Document"); err != nil {
		return nil, err
	}
	return s.shared.Document(ctx, hash)
}

func (s *seat) Entries(ctx context.Context, first, end int64, each func(int64, []byte) error) error {
	s.pages.Store(max(s.pages.Load(), end-first))
	return s.shared.Entries(ctx, first, end, each)
}

func (s *seat) Turn(ctx context.Context, number, known int64) (store.Turn, error) {
	if err := s.call("Turn"); err != nil {
		return nil, err
	}
	turn, err := s.shared.Turn(ctx, number, known)
	if err != nil {
		return nil, err
	}
	return &seatTurn{turn, s}, nil
}

type seatTurn struct {
	store.Turn
	seat *seat
}

func (t *seatTurn) Commit(ctx context.Context, b *store.Batch) error {
	if err := t.seat.call("Commit"); err != nil {
		t.End()
		return err
	}
	return t.Turn.Commit(ctx, b)
}

// like returns what another replica of the same log is made of.
func (f *fixture) like() *fixture {
	other := newFixture(f.t)
	other.clock, other.log, other.keys.private = f.clock, f.log, f.keys.private
	return other
}

// join starts one more replica, with the checkpoint file of another one. It does not lead.
func (f *fixture) join(s *shared) (*fixture, *seat) {
	f.t.Helper()
	f.publishAll()
	other, own := f.like(), &seat{shared: s}
	other.checkpointOf(f)
	other.store = s
	o := other.options(own)
	o.Replica = &Replica{Store: own, Key: sharedKey}
	var err error
	if other.Broker, err = Open(f.t.Context(), o); err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() {
		if other.running.Err() == nil {
			_ = other.Close()
		}
	})
	return other, own
}

// checkpointOf has the checkpoint file be that of another replica.
func (f *fixture) checkpointOf(other *fixture) {
	f.t.Helper()
	if err := os.WriteFile(f.checkpointFile(), other.checkpoint(), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *fixture) checkpoint() []byte {
	f.t.Helper()
	data, err := os.ReadFile(f.checkpointFile())
	if err != nil {
		f.t.Fatal(err)
	}
	return data
}

// unreachable is the failure of a store that is not reached.
func unreachable() error { return failure.New(failure.Unavailable, "no connection") }

// TestReplicaUnconfirmed answers nothing by what is in the database while commits are not confirmed: a standby that
// becomes the primary would not have it.
func TestReplicaUnconfirmed(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 2)
	signature := all[0].signs("ci", 1)
	all[0].publishAll()
	broken := s.Store.(*faulty)
	applied := func(commit func() error) error {
		err := commit()
		broken.down.Store(true)
		return errors.Join(store.ErrUnknown, err)
	}
	broken.next.Store(&applied)
	if r, err := all[1].Create(t.Context(), caller("ci"), newTarget(2)); err == nil {
		t.Errorf("%+v was acknowledged", r)
	}
	before := all[0].checkpoint()
	if err := all[0].look(t.Context(), func(*decision) {}); err != nil { // it follows what is not confirmed
		t.Fatal(err)
	}
	if o, err := all[0].Sign(t.Context(), caller("ci"), "release", all[0].image(1)); err == nil {
		t.Errorf("%+v was released again", o.Signature)
	}
	all[0].durable.Store(all[0].published.Load().Size + 1) // as before the failure
	if err := all[0].publishNow(t.Context()); err == nil || !bytes.Equal(all[0].checkpoint(), before) {
		t.Errorf("a checkpoint covers what is not confirmed: %v", err)
	}
	broken.down.Store(false)
	for _, f := range all {
		if again := f.retried(f.image(1)); !bytes.Equal(again.Signature, signature.Signature) {
			t.Error("two signatures of one use")
		}
		f.signs("ci", 3)
	}
}

// TestReplicaHiccup goes on after the database was not reached for a moment, whatever was read then.
func TestReplicaHiccup(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	other, own := all[0].join(s)
	failed := make(chan struct{})
	own.once("Tile", func() error {
		close(failed)
		return unreachable()
	})
	all[0].signs("ci", 1)
	all[0].publishAll()
	<-failed
	other.signs("ci", 2)

	own.on(func(call string) error {
		if call == "Commit" {
			own.once("Tile", unreachable)
			return unreachable()
		}
		return nil
	})
	if _, err := other.Create(t.Context(), caller("ci"), newTarget(3)); err == nil {
		t.Error("it was acknowledged")
	}
	other.retried(other.image(3))
}

// TestReplicaOvertaken reads where the log ends just before others add to it and publish.
func TestReplicaOvertaken(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	other, own := all[0].join(s)
	done := make(chan struct{})
	own.once("Checkpoint", func() error {
		defer close(done)
		all[0].signs("ci", 2)
		all[0].publishAll()
		return nil
	})
	all[0].signs("ci", 1)
	all[0].publishAll()
	<-done
	other.signs("ci", 3)
	for other.Published() < all[0].Published() {
		time.Sleep(time.Millisecond)
	}
}

// TestReplicaAdopts has a policy in force as soon as its entry is followed, also when the checkpoint cannot be read,
// and goes on after the policy could not be read.
func TestReplicaAdopts(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	other, own := all[0].join(s)
	for n, call := range []string{"Checkpoint", "Document"} {
		failed := make(chan struct{}, 1)
		own.on(func(now string) error {
			if now != call {
				return nil
			}
			select {
			case failed <- struct{}{}:
			default:
			}
			return unreachable()
		})
		changed := []byte(testPolicy + strings.Repeat("\n", n+1))
		if _, err := all[0].Propose(t.Context(), caller("admin"), Change{What: ChangePolicy, Policy: changed}); err != nil {
			t.Fatal(err)
		}
		<-failed
		if call == "Checkpoint" {
			if other.inForce.Load().digest != hashOf(changed) {
				t.Error("the policy is not in force")
			}
		}
		own.on(func(string) error { return nil })
		other.retried(other.image(n))
		if other.inForce.Load().digest != hashOf(changed) {
			t.Errorf("the policy is not in force after a failure of %s", call)
		}
	}
}

// TestReplicaWakesAfterFailure wakes those who wait for what another replica has done before a failed turn was settled.
func TestReplicaWakesAfterFailure(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	r, err := all[0].Create(t.Context(), caller("people"), newTarget(1))
	if err != nil {
		t.Fatal(err)
	}
	other, own := all[0].join(s)
	state := make(chan brokerapi.State)
	go func() {
		r, err := other.Wait(t.Context(), caller("people"), r.ID, time.Hour)
		if err != nil {
			t.Error(err)
		}
		state <- r.State
	}()
	for waits := false; !waits; time.Sleep(time.Millisecond) {
		other.waiters.mu.Lock()
		waits = len(other.waiters.of[r.ID]) > 0
		other.waiters.mu.Unlock()
	}
	own.on(func(call string) error {
		if call != "Commit" {
			return nil
		}
		own.once("Turn", func() error { // by which the failure is settled
			_, err := all[0].Cancel(t.Context(), caller("people"), r.ID)
			return err
		})
		return unreachable()
	})
	if _, err := other.Create(t.Context(), caller("ci"), newTarget(2)); err == nil {
		t.Error("it was acknowledged")
	}
	if got := <-state; got != brokerapi.Cancelled {
		t.Errorf("the request is %s", got)
	}
}

// TestReplicaEnds ends a replica at which somebody waits for what another one signs.
func TestReplicaEnds(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	other, _ := all[0].join(s)
	signing, goOn := make(chan struct{}), make(chan struct{})
	all[0].keys.before = func() error {
		close(signing)
		<-goOn
		return nil
	}
	image := all[0].image(1)
	signed := make(chan error)
	sign := func(f *fixture) {
		_, err := f.Sign(t.Context(), caller("ci"), "release", image)
		signed <- err
	}
	go sign(all[0])
	<-signing
	go sign(other)
	for waits := 0; waits == 0; time.Sleep(time.Millisecond) {
		other.waiters.mu.Lock()
		waits = len(other.waiters.of)
		other.waiters.mu.Unlock()
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	failsWith(t, <-signed, failure.Unavailable, "stopping")
	close(goOn)
	if err := <-signed; err != nil {
		t.Error(err)
	}
}

// TestReplicaFarBehind follows many entries, a page at a time, and believes no head that says it has more than it has.
func TestReplicaFarBehind(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	other, own := all[0].join(s)
	for range 2 {
		err := all[0].do(t.Context(), func(d *decision) error {
			for range entryPage + 1 {
				if err := d.event(Event{Type: ended, Request: "none", State: string(brokerapi.Expired)}); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	all[0].publishAll()
	other.signs("ci", 1)
	all[0].publishAll()
	if other.durable.Load() != all[0].durable.Load() || own.pages.Load() > entryPage {
		t.Errorf("%d entries, %d at once", other.durable.Load(), own.pages.Load())
	}
	err := other.do(t.Context(), func(*decision) error {
		head, err := s.Head(t.Context())
		if err != nil {
			return err
		}
		head.Size = 1 << 60
		return other.follow(t.Context(), head)
	})
	failsWith(t, err, failure.Unavailable, "not the one")
}

// TestReplicaSecret does not start with other pseudonyms than those of the other replicas.
func TestReplicaSecret(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	all[0].publishAll()
	other := all[0].like()
	other.checkpointOf(all[0])
	o := other.options(&changedSecret{s})
	o.Replica = &Replica{Store: s, Key: sharedKey}
	_, err := Open(t.Context(), o)
	failsWith(t, err, failure.Conflict, "of no replica")
}

type changedSecret struct{ *shared }

func (*changedSecret) Secret(context.Context) ([]byte, error) { return make([]byte, 32), nil }

// TestLeaderDecidesNothing has another replica lead when one decides nothing.
func TestLeaderDecidesNothing(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 2)
	_ = all[0].distrust(forked)
	for !all[1].Leads() {
		time.Sleep(time.Millisecond)
		s.pulse(all)
	}
	all[1].signs("ci", 1)
	all[1].publishAll()
}

// TestLeaderWithoutFile has another replica lead when one cannot write its checkpoint file. It decides as before.
func TestLeaderWithoutFile(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 2)
	all[0].publishAll()
	file := all[0].checkpointFile()
	if err := errors.Join(os.Remove(file), os.Mkdir(file, 0o700)); err != nil {
		t.Fatal(err)
	}
	all[0].signs("ci", 1)
	for !all[1].Leads() {
		time.Sleep(time.Millisecond)
		s.pulse(all)
	}
	all[1].publishAll()
	all[0].signs("ci", 2)
	if err := all[0].tryFile(); err == nil {
		t.Error("it can write the file")
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if err := all[0].tryFile(); err != nil {
		t.Error(err)
	}
	for all[0].Published() < all[1].Published() {
		all[0].signs("ci", 3)
	}
}

// TestReplicaKeepsEvidence has a checkpoint file that a database lacks outlive that another replica goes on with the
// database, until a new epoch begins.
func TestReplicaKeepsEvidence(t *testing.T) {
	t.Parallel()
	all, s := newReplicas(t, 1)
	first := all[0]
	first.publishAll()
	before := first.checkpoint()
	copied := first.dir + "/copy.db"
	if err := s.Backup(t.Context(), copied); err != nil {
		t.Fatal(err)
	}
	old := newShared(nil, first.clock.now)
	old.head.Seal = s.head.Seal
	first.signs("ci", 1)
	first.publishAll()
	lacking := first.checkpoint()

	restored, err := sqlite.Open(t.Context(), copied)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { restored.Close() })
	old.Store = restored
	replicas := []*fixture{first.like(), first.like(), first.like()} // the first one has missed the newest checkpoint
	for i, f := range replicas {
		file := lacking
		if i == 0 {
			file = before
		}
		if err := os.WriteFile(f.checkpointFile(), file, 0o600); err != nil {
			t.Fatal(err)
		}
		f.startReplica(old)
	}
	for n := range 3 {
		replicas[0].signs("ci", n)
	}
	replicas[0].publishAll()
	for _, f := range replicas[1:] {
		for f.Published() < replicas[0].Published() {
			time.Sleep(time.Millisecond)
		}
		if _, err := f.Sign(t.Context(), caller("ci"), "release", f.image(4)); err == nil {
			t.Error("it has signed with an older database")
		}
		if !bytes.Equal(f.checkpoint(), lacking) {
			t.Error("the checkpoint that the database lacks is lost")
		}
	}
	if _, err := replicas[1].Propose(t.Context(), caller("admin"), Change{What: ChangeEpoch}); err != nil {
		t.Fatal(err)
	}
	replicas[1].signs("ci", 5)
	for bytes.Equal(replicas[2].checkpoint(), lacking) {
		time.Sleep(time.Millisecond)
	}
	if kept, err := os.ReadFile(replicas[2].checkpointFile() + ".epoch-1"); err != nil || !bytes.Equal(kept, lacking) {
		t.Errorf("the checkpoint of the old epoch is not kept: %v", err)
	}
}
