package agent

import (
	"net/http"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// agentOperations are the operations on the agent itself, by method and path.
func (a *Agent) agentOperations() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"GET " + brokerapi.AgentPath: httpapi.Answer(func(*http.Request) (*brokerapi.Agent, int, error) {
			return a.status(), http.StatusOK, nil
		}),
		"POST " + brokerapi.AgentLockPath: httpapi.Answer(func(*http.Request) (*brokerapi.Agent, int, error) {
			a.lockFor("a request")
			return a.status(), http.StatusOK, nil
		}),
		"POST " + brokerapi.AgentStopPath: httpapi.Answer(func(*http.Request) (*brokerapi.Agent, int, error) {
			a.stop() // requests in flight are answered, and so is this one
			return a.status(), http.StatusAccepted, nil
		}),
	}
}

// status returns the state of the agent.
func (a *Agent) status() *brokerapi.Agent {
	a.mu.Lock()
	s := &brokerapi.Agent{
		Token: a.token.URI, Label: a.token.Label, Locked: a.current == nil, Formats: a.options.Formats,
		Confirm: a.options.Confirm != nil, Started: a.started.UTC(),
	}
	if !a.unlocked.IsZero() {
		s.Unlocked = a.unlocked.UTC()
	}
	a.mu.Unlock()
	if s.Token == "" {
		s.Token = a.options.Token
	}
	a.uses.mu.Lock()
	s.Uses = a.uses.made
	a.uses.mu.Unlock()
	if a.options.Idle > 0 {
		left := int64(a.uses.left(a.options.Idle) / time.Second)
		s.IdleLeft = &left
	}
	if a.options.Refusals != nil {
		s.Refused = a.options.Refusals.Last()
	}
	return s
}
