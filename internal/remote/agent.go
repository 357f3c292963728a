package remote

import (
	"context"
	"net/http"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
)

// Agent returns the state of the agent that the settings name.
func (b *Backend) Agent(ctx context.Context, s *config.Settings) (brokerapi.Agent, error) {
	return b.agent(ctx, s, http.MethodGet, brokerapi.AgentPath)
}

// LockAgent has the agent forget its PIN and its login.
func (b *Backend) LockAgent(ctx context.Context, s *config.Settings) (brokerapi.Agent, error) {
	return b.agent(ctx, s, http.MethodPost, brokerapi.AgentLockPath)
}

// StopAgent has the agent end when the requests in flight are answered.
func (b *Backend) StopAgent(ctx context.Context, s *config.Settings) (brokerapi.Agent, error) {
	return b.agent(ctx, s, http.MethodPost, brokerapi.AgentStopPath)
}

func (b *Backend) agent(ctx context.Context, s *config.Settings, method, path string) (a brokerapi.Agent, err error) {
	c, err := b.connections.to(s)
	if err != nil {
		return a, err
	}
	defer c.release()
	err = c.do(ctx, call{method: method, path: path, into: &a})
	return a, err
}
