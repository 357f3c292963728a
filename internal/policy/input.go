package policy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// inputLimits bound a request in JSON.
var inputLimits = bound.Limits{Bytes: 256 << 10, Depth: bound.Depth, Elements: 10_000}

// inputNames are the names in a request, by the path of their object. caller.claims and artifact.annotations have any.
var inputNames = map[string][]string{
	"":         {"key", "action", "caller", "artifact", "time", "break_glass"},
	"caller":   {"issuer", "subject", "claims"},
	"artifact": {"format", "media_type", "digest", "size", "annotations", "repository", "name", "expiry"},
}

// ParseInput reads a request in JSON, to try a policy on. It fails for unknown names. The action is Use if the request
// has none, and the time is now.
func ParseInput(data []byte, now time.Time) (Action, Input, error) {
	const hint = "see docs/policy.md for an example"
	if err := bound.JSON(data, inputLimits); err != nil {
		return "", Input{}, failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint(hint)
	}
	if err := checkNames(data, ""); err != nil {
		return "", Input{}, failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint(hint)
	}
	var r struct {
		Key    string `json:"key"`
		Action Action `json:"action"`
		Caller struct {
			Issuer  string         `json:"issuer"`
			Subject string         `json:"subject"`
			Claims  map[string]any `json:"claims"`
		} `json:"caller"`
		Artifact struct {
			Format      payload.Format    `json:"format"`
			MediaType   string            `json:"media_type"`
			Digest      string            `json:"digest"`
			Size        int64             `json:"size"`
			Annotations map[string]string `json:"annotations"`
			Repository  string            `json:"repository"`
			Name        string            `json:"name"`
			Expiry      int64             `json:"expiry"`
		} `json:"artifact"`
		Time       time.Time `json:"time"`
		BreakGlass string    `json:"break_glass"`
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := decoder.Decode(&r); err != nil {
		return "", Input{}, failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint(hint)
	}
	if r.Action == "" {
		r.Action = Use
	}
	if !slices.Contains(Actions, r.Action) {
		return "", Input{}, failure.New(failure.Invalid, "cannot read the request: unknown action %.50q", string(r.Action)).
			WithHint("use one of: " + join(Actions))
	}
	if r.Time.IsZero() {
		r.Time = now
	}
	return r.Action, Input{
		Key: r.Key, Time: r.Time, BreakGlass: r.BreakGlass, Artifact: Artifact(r.Artifact),
		Caller: Caller{Issuer: r.Caller.Issuer, Subject: r.Caller.Subject, Claims: r.Caller.Claims},
	}, nil
}

// checkNames verifies the names of a JSON object, and of those in it, by exact case. The decoder checks the values.
func checkNames(data []byte, path string) error {
	var values map[string]json.RawMessage
	if err := json.Unmarshal(data, &values); err != nil {
		return err
	}
	for name, value := range values {
		if !slices.Contains(inputNames[path], name) {
			return fmt.Errorf("unknown name %.50q; known are %s", name, strings.Join(inputNames[path], ", "))
		}
		if path == "" && inputNames[name] != nil {
			if err := checkNames(value, name); err != nil {
				return err
			}
		}
	}
	return nil
}
