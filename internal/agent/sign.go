package agent

import (
	"context"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// sign signs bytes with the key that a caller names, if they are of a format that keys here may sign. The signature is
// verified before it is returned.
func (a *Agent) sign(ctx context.Context, name string, r brokerapi.SignatureRequest) (*brokerapi.Signature, error) {
	artifact, err := payload.Read(r.Payload)
	if err != nil {
		return nil, err
	}
	if err := a.allow(artifact); err != nil {
		return nil, err
	}
	if artifact.Format == payload.LayerKey {
		return nil, failure.New(failure.Denied, "the key of an image layer is decrypted, not signed")
	}
	if artifact.Algorithm != "" && artifact.Algorithm != r.Algorithm {
		return nil, failure.New(failure.Invalid, "the payload is for the algorithm %s, not %q", artifact.Algorithm,
			r.Algorithm)
	}
	s, err := a.session()
	if err != nil {
		return nil, err
	}
	h, err := s.find(ctx, name)
	if err != nil {
		return nil, err
	}
	opts, err := brokerapi.Options(h.public, r.Algorithm)
	if err != nil {
		return nil, err
	}
	if a.options.Confirm != nil {
		if err := a.options.Confirm(ctx, name, artifact); err != nil {
			return nil, err
		}
	}
	signature, err := h.key.SignMessage(ctx, r.Payload, opts)
	if err != nil {
		return nil, err
	}
	if !brokerapi.Verify(h.public, r.Payload, signature, opts) {
		return nil, failure.New(failure.Internal, "cannot sign with key %q: the module's signature does not verify", name).
			WithHint("report the wrong signature to the vendor of the module")
	}
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
