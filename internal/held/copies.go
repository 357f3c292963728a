package held

import (
	"context"
	"crypto"
	"crypto/x509"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Copies are one key in several modules, such as replicated partitions or tokens restored from one backup. Uses are
// spread over them: the copy with the fewest uses in flight is next, and of equal ones each in its turn. A copy that
// fails is left out, and the use goes on with another. It is probed in the background, and comes back when it works.
//
// All copies have the same public key. One with another is never used.
//
// A key with a single copy is never left out: each use asks its module, whatever key it has under the name.
type Copies struct {
	name  string // of the key, in the log
	keys  *Keys
	right func(crypto.PublicKey) (bool, error)
	stop  chan struct{}
	limits

	mu      sync.Mutex
	all     []*replica
	next    int              // where the search for the next copy begins
	public  crypto.PublicKey // of the key; nil until decide knows it
	looking bool             // the copies were asked for it
	late    bool             // they have had their time to answer
	changed chan struct{}    // closed when a copy has answered or failed, and replaced
	chain   []*x509.Certificate
	chainOf int // the copy that chain is from
}

// limits are the times of Copies.
type limits struct {
	first time.Duration // for the copies to answer before the first use
	wait  time.Duration // before the first probe; doubled before each that follows
	most  time.Duration // before a probe
	total time.Duration // of a use, after which no other copy is tried
}

var defaultLimits = limits{first: 5 * time.Second, wait: time.Second, most: time.Minute, total: time.Minute}

// maxTries is in how many modules a use may begin: one that fails may still have signed.
const maxTries = 2

// replica is a copy of a key.
type replica struct {
	reference *keystore.Reference

	// Guarded by the lock of the copies.
	uses    int              // in flight
	public  crypto.PublicKey // as it was when it was looked up last; nil before
	looked  bool             // it has answered or failed
	failed  error            // why it is left out; nil if it is used
	other   bool             // it has another public key than the key
	trial   bool             // it is back from being left out, and no use has succeeded yet
	wait    time.Duration    // before the next probe
	probing bool
}

// NewCopies returns the copies of a key, none of which is open. The certificates of the first one that is not left out
// are those of the key. right reports whether a public key is that of the key; nil if nobody knows: then it is that of
// the first copy in the list that answers before the first use.
func NewCopies(keys *Keys, name string, references []*keystore.Reference,
	right func(crypto.PublicKey) (bool, error)) *Copies {
	c := &Copies{name: name, keys: keys, right: right, stop: make(chan struct{}), limits: defaultLimits,
		changed: make(chan struct{}), next: rand.IntN(len(references))} //nolint:gosec // replicas begin at different ones
	for _, r := range references {
		c.all = append(c.all, &replica{reference: r})
	}
	return c
}

// Are reports whether these are the copies of references, in their order.
func (c *Copies) Are(references []*keystore.Reference) bool {
	return slices.EqualFunc(c.all, references, func(r *replica, reference *keystore.Reference) bool {
		return r.reference == reference
	})
}

// Stop ends the probes of copies that are not used any more. The keys stay open until Close of the Keys.
func (c *Copies) Stop() { close(c.stop) }

// Copy is the state of a copy.
type Copy struct {
	URI   string
	Err   error // why it is left out; nil if it is used
	Other bool  // since it has another public key
}

// State returns the state of all copies, in the order of the list.
func (c *Copies) State() []Copy {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make([]Copy, len(c.all))
	for i, r := range c.all {
		all[i] = Copy{URI: r.reference.Key.String(), Err: r.failed, Other: r.other && r.failed != nil}
	}
	return all
}

// Describe returns the public half of the key and its certificates, leaf first.
func (c *Copies) Describe(ctx context.Context) (crypto.PublicKey, []*x509.Certificate, error) {
	if err := c.decide(ctx); err != nil {
		return nil, nil, err
	}
	var failed error
	for _, i := range c.inOrder() {
		r := c.all[i]
		found, err := c.find(ctx, r)
		if err != nil {
			c.note(ctx, r, err)
		} else if found, err = c.keys.FindFresh(ctx, r.reference); err == nil {
			err = c.check(r, found.Public)
		}
		if err == nil {
			return found.Public, c.keepChain(i, found.Chain), nil
		}
		if ctx.Err() != nil || c.keys.isClosed() {
			return nil, nil, err
		}
		if failed == nil {
			failed = err
		}
	}
	if failed == nil {
		failed = c.noneLeft()
	}
	return nil, nil, failed
}

// inOrder returns the places of the copies that may be asked, those that are not left out first.
func (c *Copies) inOrder() (places []int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, r := range c.all {
		if len(c.all) == 1 || r.rank() < never {
			places = append(places, i)
		}
	}
	slices.SortStableFunc(places, func(a, b int) int { return min(c.all[a].rank(), 2) - min(c.all[b].rank(), 2) })
	return places
}

// keepChain returns the certificates of the key: those that one copy has, or those of one before it in the list that is
// left out now. The leaf of a key does not change with the module that signs.
func (c *Copies) keepChain(i int, chain []*x509.Certificate) []*x509.Certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.chain == nil || i <= c.chainOf {
		c.chain, c.chainOf = chain, i
	}
	return c.chain
}

// Sign signs bytes, as Key.Sign does.
func (c *Copies) Sign(ctx context.Context, data []byte, algorithm string) ([]byte, error) {
	return c.Use(ctx, func(k *Key) ([]byte, error) { return k.Sign(ctx, c.name, data, algorithm) })
}

// Use uses the key in the copy that is next, and if that fails, in another one. So a use has one result, whichever
// module it is from.
func (c *Copies) Use(ctx context.Context, do func(*Key) ([]byte, error)) ([]byte, error) {
	if err := c.decide(ctx); err != nil {
		return nil, err
	}
	var failed error
	unsure := false // a module that failed may have signed: the failure says so whatever another one says
	var tried []*replica
	began := time.Now()
	for uses := 0; uses < maxTries && (failed == nil || time.Since(began) < c.total); {
		r := c.take(tried)
		if r == nil {
			break
		}
		result, used, err := c.useIn(ctx, r, do)
		c.note(ctx, r, err)
		if err == nil {
			return result, nil
		}
		if failure.Is(err, failure.Invalid) || ctx.Err() != nil || c.keys.isClosed() {
			if unsure {
				err = failed
			}
			return nil, err
		}
		if used {
			uses++
		}
		tried = append(tried, r)
		if !unsure {
			failed, unsure = err, used && (failure.Is(err, failure.Unavailable) || failure.Is(err, failure.Timeout) ||
				failure.Is(err, failure.Internal))
		}
		if len(tried) < len(c.all) {
			slog.Warn("a module failed, and another is asked", "key", c.name, "module", r.reference.Key.String(), "error", err)
		}
	}
	if failed == nil {
		failed = c.noneLeft()
	}
	return nil, failed
}

// useIn uses the key in one copy. used reports whether it came to that.
func (c *Copies) useIn(ctx context.Context, r *replica, do func(*Key) ([]byte, error)) (result []byte, used bool,
	err error) {
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		r.uses--
	}()
	found, err := c.find(ctx, r)
	if err != nil {
		return nil, false, err
	}
	result, err = do(found)
	return result, true, err
}

// find returns a copy that has the public key of the key.
func (c *Copies) find(ctx context.Context, r *replica) (*Key, error) {
	found, err := c.keys.Find(ctx, r.reference)
	if err == nil {
		err = c.check(r, found.Public)
	}
	return found, err
}

// take returns the copy that is next, and counts a use of it, or returns nil. One that is left out is next if there is
// no other: all modules may have failed together, and may work again before they are probed.
func (c *Copies) take(tried []*replica) *replica {
	c.mu.Lock()
	defer c.mu.Unlock()
	var best *replica
	for i := range c.all {
		r := c.all[(c.next+i)%len(c.all)]
		switch {
		case slices.Contains(tried, r), len(c.all) > 1 && r.rank() == never:
		case best == nil, r.rank() < best.rank(), r.rank() == best.rank() && r.uses < best.uses:
			best = r
		}
	}
	if best != nil {
		c.next = slices.Index(c.all, best) + 1
		best.uses++
	}
	return best
}

// never is the rank of a copy that an operator has to mend.
const never = 4

// rank returns how soon a copy is next; 0 is first.
func (r *replica) rank() int {
	switch {
	case r.failed == nil && r.trial && r.uses > 0: // one use tells whether it works
		return 1
	case r.failed == nil:
		return 0
	case failure.Is(r.failed, failure.Unavailable):
		return 2
	case failure.Is(r.failed, failure.Timeout), failure.Is(r.failed, failure.Internal):
		return 3
	}
	return never
}

// leaves reports whether a copy that has failed is left out: one that is busy, or that lacks a mechanism, is not.
func leaves(err error) bool {
	switch failure.From(err).Kind {
	case failure.Unavailable, failure.Timeout, failure.Internal, failure.Denied, failure.NotFound, failure.Conflict:
		return true
	}
	return false
}

// note takes note of how a use of a copy ended.
func (c *Copies) note(ctx context.Context, r *replica, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.looked = true
	switch {
	case err == nil:
		if len(c.all) > 1 && (r.failed != nil || r.trial) {
			slog.Info("a module works again", "key", c.name, "module", r.reference.Key.String())
		}
		r.failed, r.trial, r.wait = nil, false, 0
	case ctx.Err() == nil && !c.keys.isClosed() && leaves(err):
		c.leaveOut(r, err)
	}
}
