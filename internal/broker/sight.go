package broker

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

const (
	sightEvery = 2 * time.Second  // from one look at the replicas to the next one
	sightTime  = 3 * time.Second  // how long a look may take
	sightAge   = 10 * time.Second // a look that is older tells nothing
)

// MaxClockSkew is how far the clock of a replica may be from the database's: beyond, the replica decides nothing.
const MaxClockSkew = maxJump

// standbys say what the standby of a store is not; "" if it is there.
var standbys = map[store.Standby]string{
	store.NoStandby:      "commits wait for no standby: a failover of the database can lose what was acknowledged",
	store.StandbyMissing: "commits wait for a standby that is not connected: nothing is decided until it is",
	store.StandbyUnknown: "nobody can tell whether the standby is there: grant pg_monitor to the role of the broker",
	store.StandbyThere:   "",
}

// LacksStandby says what the standby of a database is not; "" if it is there.
func LacksStandby(s store.Standby) string { return standbys[s] }

// sight is what a replica has seen of the database and of the other replicas. Readiness and metrics tell of it, so that
// neither waits for a database that hangs.
type sight struct {
	at      time.Duration // since boot
	members []store.Member
	standby store.Standby
	err     error
}

// watchReplicas looks at the replicas until the broker ends.
func (b *Broker) watchReplicas() {
	tick := time.NewTicker(sightEvery)
	defer tick.Stop()
	for {
		b.seeReplicas(b.running)
		select {
		case <-tick.C:
		case <-b.running.Done():
			return
		}
	}
}

// seeReplicas looks at the replicas once, and holds the clock against the store's: a replica that is not asked for
// decisions, because its clock is wrong, notices so that it is right again.
func (b *Broker) seeReplicas(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sightTime)
	defer cancel()
	r, s := b.replica, &sight{}
	head, err := r.Store.Head(ctx)
	if err == nil {
		_ = r.check(b.clock.now(time.Time{}), head.Now) // it keeps what it has found
		s.members, err = r.Store.Members(ctx)
	}
	if err == nil {
		s.standby, err = r.Store.Standby(ctx)
	}
	s.at, s.err = b.clock.clock.Boot(), err
	r.seen.Store(s)
}

// sight returns what was seen last, or a failure.
func (b *Broker) sight() (*sight, error) {
	s := b.replica.seen.Load()
	switch {
	case s == nil || b.clock.clock.Boot()-s.at > sightAge:
		return nil, failure.New(failure.Unavailable, "the database does not answer").
			WithHint("check that the database runs and is reached")
	case s.err != nil:
		return nil, s.err
	}
	return s, nil
}

// replicaParts returns the state of the store that replicas share, of this replica, and of the standby.
func (b *Broker) replicaParts() []brokerapi.Part {
	s, err := b.sight()
	own := b.replica.part()
	if err != nil {
		return []brokerapi.Part{part("store", err), own}
	}
	if own.Ready {
		own.Detail = s.describe(b.replica.number.Load(), b.Leads())
	}
	standby := brokerapi.Part{Name: "standby", Detail: LacksStandby(s.standby)}
	standby.Ready = s.standby == store.StandbyThere || s.standby == store.StandbyUnknown
	return []brokerapi.Part{part("store", nil), own, standby}
}

// describe says which replicas are alive, and which leads. own is the number of this one.
func (s *sight) describe(own int64, leads bool) string {
	names := make([]string, len(s.members))
	for i, m := range s.members {
		names[i] = fmt.Sprintf("%d (%s, version %s)", m.Number, m.Name, m.Version)
	}
	leader := "none of them leads"
	if i := slices.IndexFunc(s.members, func(m store.Member) bool { return m.Able }); i >= 0 {
		leader = fmt.Sprintf("%d leads", s.members[i].Number)
	}
	if leads {
		leader = "it leads"
	}
	return fmt.Sprintf("it is replica %d, and %s; alive are %s", own, leader, strings.Join(names, ", "))
}
