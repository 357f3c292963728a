package agent

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/held"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// maxSkew is how far the signing time of what is signed can be from the agent's clock. So nobody obtains, while the
// agent runs, signatures that claim to be from before a certificate was revoked, or from next year.
const maxSkew = 5 * time.Minute

// sign signs bytes with the key that a caller names, if they are of a format that keys here may sign. The signature is
// verified before it is returned.
func (a *Agent) sign(ctx context.Context, name string, r brokerapi.SignatureRequest) (*brokerapi.Signature, error) {
	artifact, err := payload.Read(r.Payload)
	if err != nil {
		return nil, err
	}
	if artifact.Format == payload.LayerKey {
		return nil, failure.New(failure.Denied, "the key of an image layer is decrypted, not signed").
			WithHint("post it to the layer keys of the key")
	}
	if err := a.allow(artifact); err != nil {
		return nil, err
	}
	if artifact.Algorithm != "" && artifact.Algorithm != r.Algorithm {
		return nil, failure.New(failure.Invalid, "the payload is for the algorithm %s, not %.60q", artifact.Algorithm,
			r.Algorithm).WithHint("ask for " + artifact.Algorithm)
	}
	if err := held.CheckClock(artifact, time.Now(), maxSkew); err != nil {
		return nil, err
	}
	s, err := a.session()
	if err != nil {
		return nil, err
	}
	h, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	if err := held.CheckAlgorithm(artifact, h.Public, r.Algorithm); err != nil {
		return nil, err
	}
	if a.options.Confirm != nil {
		if err := a.options.Confirm(ctx, name, artifact); err != nil {
			return nil, err
		}
	}
	signature, err := h.Sign(ctx, name, r.Payload, r.Algorithm)
	if err != nil {
		return nil, err
	}
	logUse(ctx, "signed", name, artifact, r.Payload)
	return &brokerapi.Signature{Signature: signature, Algorithm: r.Algorithm, Artifact: *artifact}, nil
}

// allow fails with Denied for an artifact of a format that keys here may not sign.
func (a *Agent) allow(artifact *payload.Artifact) error {
	if slices.Contains(a.options.Formats, artifact.Format) {
		return nil
	}
	return failure.New(failure.Denied, "the agent does not accept the format %s", artifact.Format).
		WithHint("start 'hsm-broker agent' with --formats " + string(artifact.Format) + " added, if its keys may be used so")
}

// logUse logs a use of a key, so that its owner can see later what it was used for: by the digest of the artifact,
// which not every format has, and by that of the bytes.
func logUse(ctx context.Context, use, key string, artifact *payload.Artifact, data []byte) {
	by := peerIn(ctx)
	slog.InfoContext(ctx, use, "key", key, "format", artifact.Format, "name", artifact.Name, "digest", artifact.Digest,
		"payload", fmt.Sprintf("sha256:%x", sha256.Sum256(data)), "caller", by.pid, "user", by.uid,
		"program", by.executable)
}
