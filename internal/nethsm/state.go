package nethsm

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
)

// State is the state of an instance (SystemState in the API).
type State string

// The states of the API, and unknown for an instance that does not report one.
const (
	Unprovisioned State = "Unprovisioned"
	Locked        State = "Locked"
	Operational   State = "Operational"
	Failed        State = "Failed"
	unknownState  State = "unknown"
)

// stateOf asks an instance for its state, which needs no credentials. It returns unknownState when that fails.
func (c *client) stateOf(ctx context.Context, instance string) State {
	a, _, err := c.send(ctx, instance, request{what: "reading the state", method: http.MethodGet,
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

// parseState reads a SystemState of the API.
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
	return "", fmt.Errorf("unknown state %q", truncate(string(health.State)))
}

// checkReady fails unless an instance is operational. It warns of instances with the wrong TLS certificate.
func (c *client) checkReady(ctx context.Context) error {
	// Unlike the state, readiness is a status, so do asks another instance when this one is not ready.
	r := request{what: "looking for the NetHSM", method: http.MethodGet, path: "/health/ready"}
	a, err := c.do(ctx, r)
	if err != nil {
		return err
	}
	if err := r.want(a, http.StatusOK); err != nil {
		return err
	}
	c.forEachInstance(func(_ int, url string) {
		if _, failed := c.try(ctx, min(dialLimit, c.settings.Timeout), url, r); failed != nil {
			c.backend.warnUnauthenticated(failed)
		}
	})
	return nil
}

// askOne sends a request to one instance alone and reads the response.
func (c *client) askOne(ctx context.Context, url string, r request, read func(body []byte) error) error {
	if r.as != nil {
		if err := c.readPassphrase(ctx, r.as); err != nil {
			return err
		}
	}
	a, failed := c.try(ctx, c.settings.Timeout, url, r)
	if failed != nil {
		return failed.err
	}
	if err := r.want(a, http.StatusOK); err != nil {
		return err
	}
	return read(a.body)
}
