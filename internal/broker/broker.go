// Package broker decides what the keys of a team sign, and for whom. It is one state machine over an append-only log:
// every fact that decides is an entry of the log, and the state in memory is what the entries add up to. The store
// keeps the entries, and rows for lists that decide nothing.
//
// One goroutine, the sequencer, takes all decisions, and makes those of a batch durable in one transaction before any
// of them is answered. So an intent to sign is durable before a module signs, and no use is counted twice.
package broker

import (
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Options are the parts that a broker works with.
type Options struct {
	Store store.Store
	// Policy and Config are the files' contents as they are now: a proposal, unless the log is empty. Config is the part
	// of the config file that decides: keys, modules, callers, administrators, registries.
	Policy, Config []byte
	// First are the first approvers: they are enrolled if the log is empty.
	First []FirstApprover
	// PublicURL is that of the broker, without a slash at its end: statements name it.
	PublicURL string
	Keys      Keys
	Log       Log
	Limits    identity.Limits
	// Check fails unless a repository has an artifact. It fills in what the registry knows of it.
	Check func(ctx context.Context, name, digest, mediaType string, size int64) (*repository.Claims, error)
	// Manifests returns the manifests of an index that a repository has, for a request that is for all platforms.
	Manifests func(ctx context.Context, name, digest string) ([]repository.Manifest, error)
	// Notices returns what is put into the outbox of the store when people are told of an event; nil for nothing.
	Notices func(Notice) []store.Notice
	// Keep returns the time before which requests are not kept any more, at a time; nil keeps them for ever.
	Keep  func(now time.Time) time.Time
	Clock Clock
	// Replica is set for one of several brokers that share the store, which is its own.
	Replica *Replica
	// Registerer gets the broker's metrics; nil for none.
	Registerer prometheus.Registerer

	snapshotEvery int64         // less than snapshotEntries in tests
	witnessEvery  time.Duration // less than witnessInterval in tests
	publishEvery  time.Duration // less than publishInterval in tests
}

// Keys use the keys of modules by their names in the policy.
type Keys interface {
	// Describe returns the public half of a key and its chain, leaf first.
	Describe(ctx context.Context, key string) (crypto.PublicKey, []*x509.Certificate, error)
	// Sign signs bytes and verifies the signature.
	Sign(ctx context.Context, key string, data []byte, algorithm string) ([]byte, error)
}

// Log says how the log is signed.
type Log struct {
	Origin string
	// Public is the public half of the log's key, which signs nothing else.
	Public crypto.PublicKey
	// Sign signs a checkpoint as a note.
	Sign func(ctx context.Context, checkpoint translog.Checkpoint) ([]byte, error)
	// File keeps the newest checkpoint outside of the store.
	File string
	// MaxUnpublished and MaxUnpublishedEntries bound how far the log may be ahead of its newest checkpoint.
	MaxUnpublished        time.Duration
	MaxUnpublishedEntries int64
	// Witnesses are asked to cosign checkpoints. Their names differ, and so do their keys.
	Witnesses []*translog.WitnessClient
}

// Broker is a broker that runs.
type Broker struct {
	options Options
	secret  []byte // for pseudonyms
	clock   *watch

	jobs    chan *job
	urgent  chan struct{} // has the publisher publish now
	quit    chan struct{} // closed to end the sequencer
	ended   chan struct{} // closed when it has ended
	replica *replica      // nil for a broker that has its store for itself
	running context.Context
	stop    context.CancelFunc
	group   sync.WaitGroup
	beating context.Context // ends after all that the replica has begun
	mute    context.CancelFunc
	beats   sync.WaitGroup
	flying  flying
	queue   *queue

	inForce   atomic.Pointer[inForce]   // what the sequencer decides by
	readOnly  atomic.Pointer[string]    // why nothing is signed; nil if it is
	sealed    atomic.Bool               // nothing is added to the log either, but a new epoch
	published atomic.Pointer[published] // the newest checkpoint
	durable   atomic.Int64              // entries in the store
	ahead     atomic.Int64              // time since boot when the log got ahead of its newest checkpoint
	blocked   atomic.Pointer[map[string]time.Time]

	labels    sync.Map // fingerprints of credentials, by their IDs
	waiters   waiters
	metrics   *metrics
	witnesses *witnesses

	// Of the sequencer alone.
	state      *state
	tree       *translog.Tree
	signedTime time.Time                 // of the entries that a checkpoint covered at the start
	snapped    int64                     // size of the log at the last snapshot
	counts     []transition              // of the batch
	rows       map[string]*store.Request // of requests that are being signed

	live      map[string]bool  // requests whose intent somebody fulfils
	reminded  map[string]int64 // days after which people were reminded of a request
	unsettled *unsettled       // nil unless the last transaction has failed

	sealedByReplica bool // the log, when it was read from the store last
	snapshotting    bool // one is being made
	snapshotEvery   int64
}

// inForce is a policy that counts.
type inForce struct {
	policy *policy.Policy
	digest string // sha256:HEX
	since  time.Time
	index  int64

	rules    map[ruleID]*policy.Rule
	groups   map[*policy.Rule][]approval.Group
	names    map[string]string                // of people, by id
	callers  map[string]string                // ids of people, by the pseudonyms of their identities
	inGroups map[string][]string              // groups by name of a person
	asked    map[string]map[*policy.Rule]bool // rules that name a person, by id
}

// Open starts a broker. The caller closes it.
func Open(ctx context.Context, o Options) (*Broker, error) {
	secret, err := o.Store.Secret(ctx)
	if err != nil {
		return nil, err
	}
	b := &Broker{options: o, rows: map[string]*store.Request{}, live: map[string]bool{},
		reminded: map[string]int64{}, secret: secret,
		clock: newWatch(o.Clock), jobs: make(chan *job, 1024),
		urgent: make(chan struct{}, 1), queue: newQueue(), quit: make(chan struct{}), ended: make(chan struct{}),
		snapshotEvery: cmp.Or(o.snapshotEvery, snapshotEntries), witnesses: newWitnesses(o)}
	b.metrics = newMetrics(o.Registerer, b)
	b.witnesses.register(o.Registerer, b)
	b.ahead.Store(int64(b.clock.clock.Boot()))
	b.running, b.stop = context.WithCancel(context.Background())
	if o.Replica != nil {
		b.replica = &replica{Replica: *o.Replica, moved: make(chan struct{}, 1), version: -1}
	}
	err = b.start(ctx)
	if err == nil {
		err = b.loadCosigned(ctx)
	}
	if err == nil && b.replica != nil {
		err = b.beatOnce(ctx)
	}
	if err != nil {
		b.stop()
		return nil, err
	}
	if b.replica != nil {
		b.beating, b.mute = context.WithCancel(context.Background())
		b.beats.Go(func() { b.beat(b.beating) })
		b.group.Go(b.listen)
		b.group.Go(b.watchReplicas)
		b.group.Go(b.probe)
	}
	b.group.Go(b.publish)
	if len(o.Log.Witnesses) > 0 {
		b.group.Go(b.cosign)
	}
	b.group.Go(b.ripen)
	b.group.Go(b.retain)
	go func() {
		defer close(b.ended)
		b.snapshot() // a start that has read many entries spares the next one
		b.sequence()
	}()
	return b, nil
}

// Close lets signatures in flight end, publishes a last checkpoint, and stops. It does not close the store.
func (b *Broker) Close() error {
	b.stop()
	b.flying.end()
	b.group.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), lastPublication)
	defer cancel()
	// What was being decided when the broker was told to stop is durable then, and nothing is decided after it.
	_ = b.look(context.WithValue(ctx, finishing{}, true), func(*decision) {})
	err := b.publishNow(ctx)
	if err == nil {
		err = b.publishNow(ctx) // the first one does not cover what was decided together with it
	}
	if err != nil {
		slog.Warn("cannot publish the last entries of the log", "error", err)
	}
	close(b.quit)
	<-b.ended
	if b.replica != nil {
		b.mute()
		b.beats.Wait()
		b.leave(ctx)
	}
	return err
}

// flying are the signatures in flight.
type flying struct {
	mu    sync.Mutex
	ended bool
	count sync.WaitGroup
	now   atomic.Int64
}

// begin adds one, until leave. It fails when the broker stops.
func (f *flying) begin() (leave func(), err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return nil, errStopping()
	}
	f.count.Add(1)
	f.now.Add(1)
	return func() { f.now.Add(-1); f.count.Done() }, nil
}

// end lets none begin, and waits for those that have begun.
func (f *flying) end() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
	f.count.Wait()
}

// lastPublication is how long the end of a broker waits for the log's key.
const lastPublication = 10 * time.Second

// soon is after how long callers try again when what has failed passes.
const soon = time.Second

// errStopping is the failure of a request to a broker that ends.
func errStopping() error {
	return failure.New(failure.Unavailable, "the broker is stopping").WithHint("try again").
		WithRetryAfter(soon)
}
