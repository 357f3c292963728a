package remote

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/x509"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// remoteKey is a key of a broker.
type remoteKey struct {
	client    *client
	name      string
	described brokerapi.Key
	public    interface{ Equal(crypto.PublicKey) bool }
}

func (s *store) key(described brokerapi.Key) (*remoteKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(described.Public)
	if err != nil {
		return nil, s.client.nonsense("public key", err)
	}
	public, ok := parsed.(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return nil, failure.New(failure.Unsupported, "the broker's key %q is of type %T", described.Name, parsed).
			WithHint("name an RSA or EC key")
	}
	name := s.name
	if name == "" {
		name = described.URI
	}
	return &remoteKey{client: s.client, name: name, described: described, public: public}, nil
}

// Public returns the public half that the broker showed.
func (k *remoteKey) Public() crypto.PublicKey { return k.public }

// ReadPublic returns the same.
func (k *remoteKey) ReadPublic(context.Context) (crypto.PublicKey, error) { return k.public, nil }

// Info returns what the broker said of the key.
func (k *remoteKey) Info(context.Context) (key.Info, error) {
	d := k.described
	return key.Info{URI: d.URI, Label: d.Label, ID: d.ID, Public: k.public, Sign: d.Sign, Decrypt: d.Decrypt,
		Derive: d.Derive}, nil
}

// SignMessage has the broker sign a message that it understands. It fails with Denied for one that the key may not
// sign.
func (k *remoteKey) SignMessage(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	algorithm, err := brokerapi.AlgorithmOf(k.public, opts)
	if err != nil {
		return nil, err
	}
	var answer brokerapi.Signature
	err = k.client.post(ctx, brokerapi.SignaturesPath(k.name),
		brokerapi.SignatureRequest{Payload: message, Algorithm: algorithm}, &answer)
	return answer.Signature, err
}

// UnwrapLayerKey has the broker open the wrapped key of an image layer, JSON of a JWE as ocicrypt writes it. It returns
// the options of the layer, ocicrypt's JSON with the key.
func (k *remoteKey) UnwrapLayerKey(ctx context.Context, jwe []byte) ([]byte, error) {
	var answer brokerapi.LayerKey
	err := k.client.post(ctx, brokerapi.LayerKeysPath(k.name), brokerapi.LayerKeyRequest{JWE: jwe}, &answer)
	return answer.Options, err
}

// Sign fails with Denied: a broker has to read what it signs.
func (k *remoteKey) Sign(context.Context, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, k.refuse("sign a bare hash")
}

// Decrypt fails with Denied: a broker decrypts layer keys alone.
func (k *remoteKey) Decrypt(context.Context, []byte, crypto.DecrypterOpts) ([]byte, error) {
	return nil, k.refuse("decrypt anything but layer keys in JWE")
}

// ECDH fails with Denied: a broker decrypts layer keys alone.
func (k *remoteKey) ECDH(context.Context, *ecdh.PublicKey) ([]byte, error) {
	return nil, k.refuse("decrypt anything but layer keys in JWE")
}

func (k *remoteKey) refuse(what string) error {
	return failure.New(failure.Denied, "cannot use the broker's key %q: a broker does not %s", k.name, what).
		WithHint("to use the module directly, name the key by its URI there and unset NOTATION_HSM_BROKER")
}

// receives returns whether a broker unwraps layer keys with a key.
func receives(k brokerapi.Key) key.Receives {
	if !slices.Contains(k.Formats, payload.LayerKey) {
		return key.Receives{Refusal: "the broker does not unwrap layer keys with it"}
	}
	return key.Receives{}
}
