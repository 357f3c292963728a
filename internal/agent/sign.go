package agent

import (
	"context"
	"crypto"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
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
	if err := checkClock(artifact, time.Now()); err != nil {
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
	opts, err := brokerapi.Options(h.public, r.Algorithm)
	if err != nil {
		return nil, err
	}
	if err := checkAlgorithm(artifact, h.public, r.Algorithm); err != nil {
		return nil, err
	}
	if a.options.Confirm != nil {
		if err := a.options.Confirm(ctx, name, artifact); err != nil {
			return nil, err
		}
	}
	signature, err := s.use(ctx, h, func(k keystore.Key) ([]byte, error) { return k.SignMessage(ctx, r.Payload, opts) })
	if err != nil {
		return nil, err
	}
	if !brokerapi.Verify(h.public, r.Payload, signature, opts) {
		return nil, failure.New(failure.Internal, "cannot sign with key %q: the module's signature does not verify", name).
			WithHint("report the wrong signature to the vendor of the module")
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

// checkClock fails with Denied for a signature of an image whose signing time is not now. A certificate may begin to be
// valid at another time.
func checkClock(artifact *payload.Artifact, now time.Time) error {
	if t := artifact.SigningTime; artifact.Format == payload.Notation && t.Sub(now).Abs() > maxSkew {
		return failure.New(failure.Denied, "the signing time %s is more than %s from the broker's clock, which says %s",
			t.Format(time.RFC3339), maxSkew, now.UTC().Format(time.RFC3339)).WithHint("set the clock of the client")
	}
	return nil
}

// checkAlgorithm fails with Invalid for an algorithm that a format does not allow: RSASSA-PKCS1-v1_5, unless readers of
// the format take it, and for notation every one but that which Notation prescribes for the key.
func checkAlgorithm(artifact *payload.Artifact, public crypto.PublicKey, algorithm string) error {
	if artifact.Format == payload.Notation {
		spec, err := key.SpecOf(public)
		if err == nil && algorithm != string(spec.Algorithm) {
			err = failure.New(failure.Invalid, "Notation signs with %s by this key, not with %q", spec.Algorithm, algorithm).
				WithHint("use " + string(spec.Algorithm))
		}
		return err
	}
	if artifact.Format == payload.TUF && strings.HasPrefix(algorithm, "RSASSA-PKCS1-v1_5-") {
		return failure.New(failure.Invalid, "the format tuf is not signed with %s", algorithm).
			WithHint("use RSASSA-PSS-SHA-256")
	}
	return nil
}

// logUse logs a use of a key, so that its owner can see later what it was used for: by the digest of the artifact,
// which not every format has, and by that of the bytes.
func logUse(ctx context.Context, use, key string, artifact *payload.Artifact, data []byte) {
	by := peerIn(ctx)
	slog.InfoContext(ctx, use, "key", key, "format", artifact.Format, "name", artifact.Name, "digest", artifact.Digest,
		"payload", fmt.Sprintf("sha256:%x", sha256.Sum256(data)), "caller", by.pid, "user", by.uid,
		"program", by.executable)
}
