package remote

import (
	"context"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
)

// Policy returns the policy in force.
func (b *Backend) Policy(ctx context.Context, s *config.Settings) (p brokerapi.Policy, err error) {
	return p, b.read(ctx, s, brokerapi.PolicyPath, &p)
}

// Keys returns the keys of a broker.
func (b *Backend) Keys(ctx context.Context, s *config.Settings) (all brokerapi.Keys, err error) {
	return all, b.read(ctx, s, brokerapi.KeysPath, &all)
}

func (b *Backend) read(ctx context.Context, s *config.Settings, path string, into any) error {
	c, err := b.connections.to(s)
	if err != nil {
		return err
	}
	defer c.release()
	return c.get(ctx, path, into)
}

// ProposePolicy proposes a policy, in YAML, and returns the request.
func (b *Backend) ProposePolicy(ctx context.Context, s *config.Settings, policy []byte) (brokerapi.Request, error) {
	return b.propose(ctx, s, brokerapi.PolicyPath, brokerapi.NewPolicy{Policy: string(policy)}, "")
}

// Propose proposes the change to which a path of the API belongs, and returns the request.
func (b *Backend) Propose(ctx context.Context, s *config.Settings, path string) (brokerapi.Request, error) {
	return b.propose(ctx, s, path, nil, "")
}
