package nethsm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// State is what an instance says of itself (SystemState in the API).
type State string

const (
	Unprovisioned State = "Unprovisioned"
	Locked        State = "Locked"
	Operational   State = "Operational"
	Failed        State = "Failed"
	unknownState  State = "unknown"
)

// stateOf asks an instance for its state, which it tells anyone.
func (c *client) stateOf(ctx context.Context, instance string) State {
	a, _, err := c.send(ctx, instance, request{what: "asking for the state", method: http.MethodGet,
		path: "/health/state"}, nil)
	if err != nil || a.status != http.StatusOK {
		return unknownState
	}
	state, err := parseState(a.body)
	if err != nil {
		return unknownState
	}
	return state
}

func parseState(body []byte) (State, error) {
	var health struct {
		State State `json:"state"`
	}
	if err := json.Unmarshal(body, &health); err != nil {
		return "", err
	}
	switch health.State {
	case Unprovisioned, Locked, Operational, Failed:
		return health.State, nil
	}
	return "", fmt.Errorf("its state is %q", clip(string(health.State)))
}
