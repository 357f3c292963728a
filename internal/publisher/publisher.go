// Package publisher publishes the signed tags of repositories with the keys of a broker: it is the one publisher of
// package tags, as a process that runs for long.
//
// It is a caller of the broker like any other. Each signature is a request that the policy decides, with an intent and
// an outcome in the log. So a key that is blocked, a limit that is met, or a rule that does not apply stops
// publications.
package publisher

import (
	"context"
	"crypto"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
)

// How often a repository is looked at. A failure may come after signatures, which are in the log: so the pause doubles
// with each one.
const (
	interval = 5 * time.Second
	maxPause = time.Minute
	reread   = 5 * time.Minute // after which what is published is read, though nothing is proposed
	timeout  = 5 * time.Minute // of one round, which moves at most 256 MiB
)

// Repository is a repository whose tags are published.
type Repository struct {
	Name                string // HOST/PATH in normal form
	Root                []byte // the pinned root.json
	Snapshot, Timestamp string // names of keys in the policy
}

// Options are what a publisher works with.
type Options struct {
	Repositories []Repository
	Registries   *repository.Registries
	Dir          string // folder that remembers what was seen, of this publisher alone
	// Sign is that of a broker.
	Sign func(ctx context.Context, caller identity.Caller, key string, r brokerapi.SignatureRequest) (*broker.Outcome,
		error)
	// Public returns the public half of a key of the policy.
	Public     func(ctx context.Context, key string) (crypto.PublicKey, error)
	Registerer prometheus.Registerer
}

// Publisher publishes the tags of repositories.
type Publisher struct {
	options      Options
	metrics      *metrics
	repositories []*followed
	interval     time.Duration // less in tests
}

// followed is a repository with what is known of it.
type followed struct {
	Repository
	tags    *tags.Repository
	signers []*tuf.Signer // nil until the keys were read
	told    string        // what was logged last: why something is not published
	report  *tags.Report  // of the last publication; nil after a failure
	read    time.Time     // when report was made
}

// New returns a publisher, which has to be run.
func New(o Options) *Publisher {
	p := &Publisher{options: o, metrics: newMetrics(o.Registerer), interval: interval}
	for _, r := range o.Repositories {
		p.metrics.add(r.Name)
		p.repositories = append(p.repositories, &followed{Repository: r, tags: &tags.Repository{Name: r.Name,
			Registries: reached{o.Registries}, Root: r.Root, Dir: tuf.Folder(o.Dir, r.Name)}})
	}
	return p
}

// reached gives each round its limits.
type reached struct{ *repository.Registries }

// Repository returns a repository of a listed registry.
func (r reached) Repository(name string) *remote.Repository {
	return r.Registries.Repository(name, tufstore.Round)
}

// Run publishes until ctx ends. A repository that fails does not keep others waiting.
func (p *Publisher) Run(ctx context.Context) {
	var group sync.WaitGroup
	for _, r := range p.repositories {
		group.Go(func() { p.follow(ctx, r) })
	}
	group.Wait()
}

// follow publishes the tags of one repository until ctx ends.
func (p *Publisher) follow(ctx context.Context, r *followed) {
	pause := p.interval
	for {
		report, err := p.round(ctx, r)
		if ctx.Err() != nil {
			return
		}
		p.metrics.count(r.Name, report, err)
		r.tell(report, err)
		if err == nil {
			pause = p.interval
		} else {
			pause = min(2*pause, maxPause)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// round publishes what is proposed, or what half of its lifetime has passed of. While nothing is proposed, it does not
// read what is published in each round: registries that limit pulls count that as one.
func (p *Publisher) round(ctx context.Context, r *followed) (report *tags.Report, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if r.report != nil && time.Since(r.read) < reread {
		if waiting, err := r.tags.Waiting(ctx); err != nil || !waiting {
			report := *r.report
			report.Published = false
			return &report, err
		}
	}
	r.report = nil
	if r.signers == nil {
		if r.signers, err = p.signers(ctx, r); err != nil {
			return nil, err
		}
	}
	if report, err = r.tags.Publish(ctx, r.signers, false); err != nil {
		r.signers = nil // the policy may have other keys
		return nil, err
	}
	r.report, r.read = report, time.Now()
	return report, nil
}
