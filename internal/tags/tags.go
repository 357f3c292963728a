// Package tags signs what the tags of an image repository are, and publishes it in the registry.
//
// Whoever holds the key of a role signs the role's files, and proposes them (package tufstore). One publisher, who
// holds the keys of snapshot and timestamp, verifies proposals and publishes them. A Repository is both: it publishes
// when it is given these keys, and otherwise waits until the publisher has.
package tags

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"time"

	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
)

// Registries reach registries: as the user of a command does, or as the config of a broker says.
type Registries interface {
	// Repository returns a repository by its name, with limits for one round of work.
	Repository(name string) *remote.Repository
}

// Repository is an image repository with the tags that are signed in it.
type Repository struct {
	Name       string // HOST/PATH
	Registries Registries
	Root       []byte // the pinned root.json
	Dir        string // the folder that remembers what was seen, of this repository alone
	// OnWait is called once, if not nil, when a change is proposed and is not published within seconds.
	OnWait func()

	mutex sync.Mutex
	seen  []*tufstore.Proposal // of the last round, whose files are not read again
}

// current is what is published and proposed at one moment.
type current struct {
	store     *tufstore.Store
	published *tufstore.Published
	view      *tuf.View
	pending   []*tuf.Proposal
	stored    map[string]*tufstore.Proposal // by ID
	refused   []string                      // why proposals are none
}

// store returns the repository's metadata, with the limits of one round.
func (r *Repository) store() *tufstore.Store { return tufstore.New(r.Registries.Repository(r.Name)) }

// read returns what is published and proposed. Proposals are read first: one that is published in between is then seen
// twice, instead of not at all.
func (r *Repository) read(ctx context.Context) (*current, error) {
	c := &current{store: r.store(), stored: map[string]*tufstore.Proposal{}}
	r.mutex.Lock()
	c.store.Reuse(r.seen)
	r.mutex.Unlock()
	proposals, err := c.store.Proposals(ctx)
	if err != nil {
		return nil, err
	}
	r.mutex.Lock()
	r.seen = proposals
	r.mutex.Unlock()
	if err := r.readPublished(ctx, c); err != nil {
		return nil, err
	}
	for _, stored := range proposals {
		p, err := tuf.ReadProposal(stored.Tag, stored.Files)
		if stored.Refused != nil {
			err = stored.Refused
		}
		if err != nil {
			c.refused = append(c.refused, stored.Tag+": "+err.Error())
			continue
		}
		c.pending, c.stored[p.ID] = append(c.pending, p), stored
	}
	return c, nil
}

// readPublished reads what is published. Expired metadata count: who signs renews them.
func (r *Repository) readPublished(ctx context.Context, c *current) (err error) {
	if c.published, err = c.store.Published(ctx); err != nil {
		return err
	}
	c.view, err = tuf.Client{Root: r.Root, Dir: r.Dir, Expired: true}.Update(ctx, c.published)
	return err
}

// View returns what is published, for those who read. Expired metadata are refused unless expired is set.
func (r *Repository) View(ctx context.Context, expired bool) (*tuf.View, *tufstore.Published, error) {
	published, err := r.store().Published(ctx)
	if err != nil {
		return nil, nil, err
	}
	v, err := tuf.Client{Root: r.Root, Dir: r.Dir, Expired: expired}.Update(ctx, published)
	return v, published, err
}

// Waiting reports whether proposals wait. It costs less than a publication in which nothing is new.
func (r *Repository) Waiting(ctx context.Context) (bool, error) { return r.store().Waiting(ctx) }

// Report is what a publication did.
type Report struct {
	Published bool         `json:"published"` // false: nothing was new
	Versions  tuf.Versions `json:"versions"`
	Expiry    tuf.Expiry   `json:"expiry"`
	Proposals int          `json:"proposals"`          // that are in it
	Held      []string     `json:"held,omitempty"`     // why other proposals are not
	Refused   []string     `json:"refused,omitempty"`  // why what looks like a proposal is none
	Restored  bool         `json:"restored,omitempty"` // someone else had overwritten or deleted the reserved tag
	Kept      []string     `json:"kept,omitempty"`     // why published proposals were not deleted
}

// Publish publishes proposals, with a new snapshot and timestamp by signers. If nothing is new, it publishes only when
// renew is set or half of their lifetime has passed. One publisher of this machine works at a time; there must be no
// other machine's.
func (r *Repository) Publish(ctx context.Context, signers []*tuf.Signer, renew bool) (*Report, error) {
	return r.publish(ctx, signers, renew, func(*current) error { return nil })
}

// publish is Publish with what add adds to the proposals.
func (r *Repository) publish(ctx context.Context, signers []*tuf.Signer, renew bool, add func(*current) error) (*Report,
	error) {
	unlock, err := state.Lock(ctx, filepath.Join(r.Dir, "publisher"))
	if err != nil {
		return nil, err
	}
	defer unlock()
	c, restored, err := r.readOrRestore(ctx)
	if err != nil {
		return nil, err
	}
	if err := add(c); err != nil {
		return nil, err
	}
	made, err := c.view.Publish(ctx, c.pending, signers, renew)
	if err != nil {
		return nil, err
	}
	report := &Report{Held: made.Held, Refused: c.refused, Proposals: len(made.In), Restored: restored}
	if made.Files != nil {
		if err := c.store.Publish(ctx, c.published, made.Files, made.Keep); err != nil {
			return nil, err
		}
		report.Published = true
		before := c.view.Versions()
		if err := r.readPublished(ctx, c); err != nil { // as everyone will
			return nil, err
		}
		if c.view.Versions().Timestamp <= before.Timestamp { // the next round would publish again, and so on
			return nil, failure.New(failure.Conflict, "the registry does not serve what was published in %s", r.Name).
				WithHint("check that the registry can overwrite the tag " + tufstore.Tag + ", and that nobody else publishes")
		}
	}
	if err := r.rememberPublished(c.published); err != nil {
		return nil, err
	}
	report.Versions, report.Expiry = c.view.Versions(), c.view.Expiry()
	for _, id := range made.In {
		if c.stored[id] == nil {
			continue // of add
		}
		if err := c.store.Withdraw(ctx, c.stored[id]); err != nil {
			report.Kept = append(report.Kept, err.Error())
		}
	}
	return report, nil
}

// own is the ID of the proposal that a publisher makes for itself, which is stored nowhere.
const own = "own"

// publishOwn publishes a change without storing it as a proposal, unless it needs more signatures or is held.
func (r *Repository) publishOwn(ctx context.Context, ch change, result *Result) error {
	_, err := r.publish(ctx, ch.signers, false, func(c *current) error {
		if published, proposed, err := ch.done(c); err != nil || published || proposed {
			return err
		}
		made, err := ch.amend(c)
		if errors.Is(err, tuf.ErrPending) {
			return nil // publish that first
		}
		if err != nil || made.Lacking > 0 {
			return err
		}
		result.Files += len(made.Files)
		proposal, err := tuf.ReadProposal(own, made.Files)
		if err == nil {
			c.pending = append(c.pending, proposal)
		}
		return err
	})
	return err
}

// Result is what became of a change.
type Result struct {
	Role      string `json:"role"`
	Published bool   `json:"published"`
	Lacking   int    `json:"lacking,omitempty"` // signatures that the role still needs
	Files     int    `json:"files"`             // that were signed
}

// maxRounds bounds how often a change is signed anew because others sign at the same time.
const maxRounds = 50

// change is a change that is signed, proposed and published.
type change struct {
	role    string
	signers []*tuf.Signer
	// amend signs the change on top of what is published and proposed.
	amend func(*current) (*tuf.Amended, error)
	// done reports whether the change is published, or is in a complete proposal with those of all others.
	done func(*current) (published, proposed bool, err error)
}

// apply signs a change, proposes it, and publishes it if it can, or waits until it is published. It proposes it again
// as long as others propose the same role without it. After wait it returns what there is: a proposal.
func (r *Repository) apply(ctx context.Context, ch change, wait time.Duration) (*Result, error) {
	result := &Result{Role: ch.role}
	deadline := time.Now().Add(wait)
	pause := 200 * time.Millisecond
	tried, told := false, false
	for round := 0; ; {
		c, err := r.read(ctx)
		if err != nil {
			return nil, err
		}
		published, proposed, err := ch.done(c)
		if err != nil || published {
			result.Published = published
			return result, err
		}
		if !proposed {
			if !tried && c.view.CanPublish(c.pending, ch.signers) {
				tried = true // if it is held, it is proposed
				if err := r.publishOwn(ctx, ch, result); err != nil {
					return nil, err
				}
				continue
			}
			if round++; round > maxRounds {
				return nil, failure.New(failure.Conflict,
					"cannot propose the change of role %s of %s: others change it all the time",
					ch.role, r.Name).WithHint("run this again")
			}
			made, err := ch.amend(c)
			if errors.Is(err, tuf.ErrPending) && time.Now().Before(deadline) { // the publisher has to be first
				if err := pauseUntil(ctx, &pause, deadline); err != nil {
					return nil, err
				}
				continue
			}
			if err != nil {
				return nil, err
			}
			p, err := c.store.Propose(ctx, made.Files)
			if err != nil {
				return nil, err
			}
			r.mutex.Lock()
			r.seen = append(r.seen, p)
			r.mutex.Unlock()
			result.Files += len(made.Files)
			if result.Lacking = made.Lacking; result.Lacking > 0 {
				return result, nil
			}
			continue
		}
		if c.view.CanPublish(c.pending, ch.signers) {
			if _, err := r.Publish(ctx, ch.signers, false); err != nil {
				return nil, err
			}
			if round++; round > maxRounds {
				return result, nil
			}
			if wait == 0 {
				wait = time.Minute
				deadline = time.Now().Add(wait)
			}
		}
		if !time.Now().Before(deadline) {
			return result, nil
		}
		if pause > time.Second && r.OnWait != nil && !told {
			told = true
			r.OnWait()
		}
		if err := pauseUntil(ctx, &pause, deadline); err != nil {
			return result, err
		}
	}
}

// pauseUntil waits for a pause, which is longer each time, but not beyond a deadline.
func pauseUntil(ctx context.Context, pause *time.Duration, deadline time.Time) error {
	select {
	case <-ctx.Done():
		return failure.New(failure.Timeout, "interrupted while waiting for the publisher").
			WithHint("the change stays proposed; see: hsm-image tag status")
	case <-time.After(min(*pause, time.Until(deadline))):
	}
	*pause = min(2**pause, 5*time.Second)
	return nil
}
