package broker

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// seenStore is what a replica sees of a store.
type seenStore struct {
	store.Shared
	now     time.Time
	members []store.Member
	standby store.Standby
	err     error
}

func (s *seenStore) Head(context.Context) (*store.Head, error) { return &store.Head{Now: s.now}, s.err }

func (s *seenStore) Members(context.Context) ([]store.Member, error) { return s.members, nil }

func (s *seenStore) Standby(context.Context) (store.Standby, error) { return s.standby, nil }

// TestReplicaParts tells whether a replica can decide, which one leads, and whether commits wait for a standby.
func TestReplicaParts(t *testing.T) {
	t.Parallel()
	boot, wall := time.Hour, time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	seen := &seenStore{now: wall, members: []store.Member{
		{Replica: store.Replica{Name: "east", Version: "1"}, Number: 3},
		{Replica: store.Replica{Name: "west", Version: "2"}, Number: 5, Able: true},
		{Replica: store.Replica{Name: "north", Version: "2"}, Number: 8, Able: true},
	}}
	b := &Broker{replica: &replica{Replica: Replica{Store: seen}},
		clock: newWatch(Clock{Wall: func() time.Time { return wall }, Boot: func() time.Duration { return boot }})}
	b.replica.number.Store(8)
	part := func(name string) brokerapi.Part {
		t.Helper()
		for _, p := range b.replicaParts() {
			if p.Name == name {
				return p
			}
		}
		t.Fatalf("there is no part %q", name)
		return brokerapi.Part{}
	}
	holds := func(name string, ready, needed bool, detail string) {
		t.Helper()
		if p := part(name); p.Ready != ready || p.Needed != needed || !strings.Contains(p.Detail, detail) {
			t.Errorf("%+v, not ready %v, needed %v, with %q", p, ready, needed, detail)
		}
	}
	holds("store", false, true, "does not answer") // before the first look
	see := func() { b.seeReplicas(t.Context()) }
	see()
	holds("store", true, true, "")
	holds("replica", true, true, "it is replica 8, and 5 leads; alive are 3 (east, version 1), 5 (west, version 2), 8 (north")
	holds("standby", false, false, "a failover of the database can lose")
	seen.standby = store.StandbyThere
	b.replica.until.Store(int64(boot + time.Second))
	see()
	holds("replica", true, true, "it is replica 8, and it leads")
	holds("standby", true, false, "")

	seen.now = wall.Add(-MaxClockSkew - time.Second)
	see()
	holds("replica", false, true, "its clock differs from the database's by 6s")
	seen.now = wall
	see()
	holds("replica", true, true, "it leads")
	b.replica.number.Store(0)
	holds("replica", false, true, "has not joined")
	b.replica.number.Store(8)

	seen.err = errors.New("no connection")
	see()
	holds("store", false, true, "no connection")
	seen.err = nil
	see()
	holds("store", true, true, "")
	boot += sightAge + time.Second
	holds("store", false, true, "does not answer")
}
