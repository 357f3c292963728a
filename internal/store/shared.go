package store

import (
	"context"
	"errors"
	"time"
)

// Shared is a store that several replicas of a broker use at once. They add to the log in turns: nobody else adds to it
// from the moment when a replica has read where the log ends until its batch is durable. So each decides on everything
// that was decided before, whichever replica has decided it.
type Shared interface {
	Store
	// Join adds a replica to those that are alive, and returns its number: greater than every number before.
	Join(ctx context.Context, r Replica) (number int64, err error)
	// Beat says that a replica is alive, and whether it is able to lead. It returns whether it leads: of those that are
	// able, the one with the smallest number does, until DeadAfter has passed since it called Beat. It fails with ErrDead.
	Beat(ctx context.Context, number int64, able bool) (leads bool, err error)
	// Leave ends a replica. Nobody has to wait until it counts as dead.
	Leave(ctx context.Context, number int64) error
	// Head returns where the log ends.
	Head(ctx context.Context) (*Head, error)
	// Turn waits for the turn of a replica that knows the first entries of the log: Head has those since. Replicas that
	// have not called Beat for DeadAfter are dead from then on. It fails with ErrDead for one that is. A turn that takes
	// longer than MaxTurn ends: its Commit fails.
	Turn(ctx context.Context, number, known int64) (Turn, error)
	// Members returns the replicas that are alive: the one with the smallest number first.
	Members(ctx context.Context) ([]Member, error)
	// Standby returns whether commits wait for a standby, and whether it is there.
	Standby(ctx context.Context) (Standby, error)
	// Changes calls changed whenever the log may have got longer, and its Head another Version, until ctx ends. It may
	// call it without a reason, and late when the database is not reached.
	Changes(ctx context.Context, changed func())
}

// Turn is the right of one replica to add to the log.
type Turn interface {
	// Head returns where the log ends: so it is until Commit or End.
	Head() *Head
	// Commit makes a batch durable, all of it or nothing, and ends the turn. It fails with ErrUnknown when nobody knows
	// what is durable: the next turn's Head tells.
	Commit(ctx context.Context, b *Batch) error
	// End ends a turn without a batch. After Commit it does nothing.
	End()
}

// Head is where a log ends.
type Head struct {
	Size     int64     // entries
	Seal     []byte    // Batch.Seal of the newest batch that had one
	Version  int64     // another one after each batch with a checkpoint or Meta
	Now      time.Time // by the store's clock
	Replicas []int64   // those that are alive
	Since    [][]byte  // of a turn: the next entries after those that were known, MaxSince at most
}

// MaxSince is the largest number of entries in a Head. The others are read by Entries.
const MaxSince = 1024

// Replica is what others are told of a replica.
type Replica struct {
	Name    string // of its machine
	Version string // of its program
}

// Standby says whether what is committed is durable on another server too.
type Standby int

// The states of a standby that commits wait for.
const (
	NoStandby      Standby = iota // commits wait for none: what was confirmed last may get lost with the server
	StandbyThere                  // commits wait for one, which is connected
	StandbyMissing                // commits wait for one that is not connected
	StandbyUnknown                // commits wait for one; the role may not see whether it is connected
)

// String returns the state in a word.
func (s Standby) String() string { return []string{"none", "there", "missing", "unknown"}[s] }

// Member is one of the replicas that are alive.
type Member struct {
	Replica
	Number int64
	Able   bool // to lead
}

const (
	// BeatEvery is how often a replica calls Beat.
	BeatEvery = time.Second
	// DeadAfter is how long a replica is taken to be alive after it has called Beat.
	DeadAfter = 5 * time.Second
	// MaxTurn is how long a turn may take between two of its calls.
	MaxTurn = 3 * time.Second
)

// ErrDead is in the chain of the failure of a replica that was taken for dead: it adds nothing to the log any more, and
// nobody waits for what it has begun. It joins again, with another number.
var ErrDead = errors.New("the replica was taken for dead")
