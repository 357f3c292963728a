package broker

import (
	"context"
	"crypto/sha256"
	"log/slog"
	"strconv"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// adopt puts into force what a checkpoint covers, or what replicas have sealed.
func (b *Broker) adopt() {
	b.tell()
	s, current := b.state, b.inForce.Load()
	covered := int64(0)
	if newest := b.published.Load(); newest != nil {
		covered = newest.Size
	}
	if b.replica != nil && b.sealedByReplica {
		covered = s.Size
	}
	if (current == nil || current.index != s.Index) && s.Index < covered {
		next, err := b.load(s)
		if err != nil {
			slog.Error("cannot read the policy in force", "error", err)
			why := badPolicy
			b.readOnly.Store(&why)
			return
		}
		b.inForce.Store(next)
	}
	if b.sealed.Load() {
		return
	}
	why := b.readOnly.Load()
	if why != nil && *why == badPolicy { // it has been read now
		why = nil
		b.readOnly.Store(nil)
	}
	if differs := s.Config != hashOf(b.options.Config); differs && why == nil {
		reason := newConfig
		b.readOnly.Store(&reason)
	} else if !differs && why != nil && *why == newConfig {
		b.readOnly.Store(nil)
	}
}

// load reads the policy in force. Its SHA-256 is in the log, so that another one in the store is none.
func (b *Broker) load(s *state) (*inForce, error) {
	digest, err := parseHash(s.Policy)
	if err != nil {
		return nil, err
	}
	data, err := b.options.Store.Document(context.Background(), digest)
	if err != nil {
		return nil, err
	}
	if sha256.Sum256(data) != digest {
		return nil, failure.New(failure.Internal, "the policy in the store is not the one of the log")
	}
	p, err := policy.Parse(data)
	if err != nil {
		return nil, err
	}
	in := &inForce{policy: p, digest: s.Policy, since: s.Since, index: s.Index}
	b.people(in)
	return in, nil
}

// origin returns the name of the log: another one in each epoch but the first.
func (b *Broker) origin() string {
	if b.state == nil || b.state.Epoch <= 1 {
		return b.options.Log.Origin
	}
	return b.options.Log.Origin + "/" + strconv.FormatInt(b.state.Epoch, 10)
}
