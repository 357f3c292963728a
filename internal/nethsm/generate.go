package nethsm

import (
	"context"
	"encoding/json"
	"net/http"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// generation is a KeyGenerateRequestData of the API.
type generation struct {
	Mechanisms   []string      `json:"mechanisms"`
	Type         string        `json:"type"`
	Length       int           `json:"length,omitempty"`
	ID           string        `json:"id"`
	Restrictions *restrictions `json:"restrictions,omitempty"`
}

type restrictions struct {
	Tags []string `json:"tags,omitempty"`
}

// Generate generates a key with the label as its ID, as the administrator. The key gets the mechanisms of its usage and
// spec alone. The id of the request is ignored: a key of a NetHSM has one name.
func (b *Backend) Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	store, err := b.open(s)
	if err != nil {
		return key.Info{}, err
	}
	defer store.Close()
	if r.Wrappable {
		return key.Info{}, errNoWrapping()
	}
	k, err := store.generate(ctx, r)
	if err != nil {
		return key.Info{}, err
	}
	return k.readInfo(ctx, store.change)
}

func (s *Store) generate(ctx context.Context, r key.Request) (*Key, error) {
	g, err := newGeneration(r)
	if err != nil {
		return nil, err
	}
	k := s.key(r.Label)
	exists, err := k.exists(ctx, s.change)
	if err != nil {
		return nil, err
	}
	if exists {
		return nil, failure.New(failure.Conflict, "the NetHSM has a key %s already", k.name()).
			WithHint("choose another label, or use that key: see 'notation-hsm key show " + k.name() + "'")
	}
	body, err := json.Marshal(g)
	if err != nil {
		return nil, err
	}
	_, err = s.change(ctx, request{
		what: "generating key " + k.name(), method: http.MethodPost, path: "/keys/generate", body: body,
		slow: r.Spec.IsRSA(),
		// A moment ago there was no key of this name, so one with the requested properties is that of this request.
		took:      func(ctx context.Context) (bool, error) { return k.matches(ctx, g) },
		uncertain: "the key may exist: see 'notation-hsm key list --token nethsm:'",
	}, http.StatusCreated, http.StatusNoContent)
	return k, err
}

// newGeneration returns the API's form of a request. It fails with Invalid for a label that is no key ID, and with
// Unsupported for an EC key to decrypt.
func newGeneration(r key.Request) (generation, error) {
	if !isKeyID(r.Label) {
		return generation{}, failure.New(failure.Invalid, "invalid key ID %q", r.Label).
			WithHint(`use letters, digits and "_.-", at most 128 of them`)
	}
	g := generation{ID: r.Label, Type: map[int]string{256: "EC_P256", 384: "EC_P384", 521: "EC_P521"}[r.Spec.Bits]}
	if len(r.Tags) > 0 {
		g.Restrictions = &restrictions{r.Tags}
	}
	if r.Spec.IsRSA() {
		g.Type, g.Length = "RSA", r.Spec.Bits
	}
	switch {
	case r.Usage == key.Decrypt && !r.Spec.IsRSA():
		return generation{}, failure.New(failure.Unsupported,
			"cannot generate an %s key to decrypt: a NetHSM does not support ECDH", r.Spec.Name).
			WithHint("use an RSA key, as in --spec RSA-3072")
	case r.Usage == key.Decrypt: // OAEP alone: errors of PKCS #1 v1.5 reveal plaintexts
		g.Mechanisms = []string{"RSA_Decryption_OAEP_SHA1", "RSA_Decryption_OAEP_SHA256", "RSA_Decryption_OAEP_SHA384",
			"RSA_Decryption_OAEP_SHA512"}
	case r.Spec.IsRSA():
		g.Mechanisms = []string{"RSA_Signature_PSS_" + hashNames[r.Spec.Hash]}
	default:
		g.Mechanisms = []string{"ECDSA_Signature"}
	}
	return g, nil
}
