package publisher

import (
	"context"
	"crypto"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

// signers returns the signers of snapshot and timestamp. The broker signs for the publisher of this repository.
func (p *Publisher) signers(ctx context.Context, r *followed) (all []*tuf.Signer, err error) {
	for _, key := range []string{r.Snapshot, r.Timestamp} {
		public, err := p.options.Public(ctx, key)
		if err != nil {
			return nil, err
		}
		s, err := tuf.NewSignerOf(public, func(ctx context.Context, payload []byte, o crypto.SignerOpts) ([]byte, error) {
			return p.sign(ctx, r.Name, key, public, payload, o)
		})
		if err != nil {
			return nil, err
		}
		all = append(all, s)
		if r.Snapshot == r.Timestamp {
			break
		}
	}
	return all, nil
}

// sign asks the broker for a signature.
func (p *Publisher) sign(ctx context.Context, repository, key string, public crypto.PublicKey, payload []byte,
	o crypto.SignerOpts) ([]byte, error) {
	algorithm, err := brokerapi.AlgorithmOf(public, o)
	if err != nil {
		return nil, err
	}
	outcome, err := p.options.Sign(ctx, identity.Publisher(repository), key,
		brokerapi.SignatureRequest{Payload: payload, Algorithm: algorithm})
	if err != nil {
		return nil, err
	}
	if outcome.Signature == nil {
		return nil, failure.New(failure.Denied, "the rule %q of key %q has the publisher wait for people or a time",
			outcome.Request.Rule, key).WithHint("give the publisher a rule without approvals and time-lock")
	}
	return outcome.Signature.Signature, nil
}
