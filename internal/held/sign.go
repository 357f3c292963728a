package held

import (
	"context"
	"crypto"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Sign signs bytes by an algorithm that CheckAlgorithm allows. The signature is verified before it is returned. name is
// what the caller calls the key.
func (h *Key) Sign(ctx context.Context, name string, data []byte, algorithm string) ([]byte, error) {
	opts, err := brokerapi.Options(h.Public, algorithm)
	if err != nil {
		return nil, err
	}
	signature, err := h.Use(ctx, func(k keystore.Key) ([]byte, error) { return k.SignMessage(ctx, data, opts) })
	if err != nil {
		return nil, err
	}
	if !brokerapi.Verify(h.Public, data, signature, opts) {
		return nil, failure.New(failure.Internal, "cannot sign with key %q: the module's signature does not verify", name).
			WithHint("report the wrong signature to the vendor of the module")
	}
	return signature, nil
}

// CheckClock fails with Denied for a signature of an image whose signing time is more than skew from now. A certificate
// may begin to be valid at another time.
func CheckClock(artifact *payload.Artifact, now time.Time, skew time.Duration) error {
	if t := artifact.SigningTime; artifact.Format == payload.Notation && t.Sub(now).Abs() > skew {
		return failure.New(failure.Denied, "the signing time %s is more than %s from the broker's clock, which says %s",
			t.Format(time.RFC3339), skew, now.UTC().Format(time.RFC3339)).WithHint("set the clock of the client")
	}
	return nil
}

// CheckAlgorithm fails with Invalid for an algorithm that the key does not sign with, as brokerapi.Options has it, and
// for one that a format does not allow: RSASSA-PKCS1-v1_5, unless readers of the format take it, and for notation every
// one but that which Notation prescribes for the key.
func CheckAlgorithm(artifact *payload.Artifact, public crypto.PublicKey, algorithm string) error {
	if _, err := brokerapi.Options(public, algorithm); err != nil {
		return err
	}
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
