package remote

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// remoteKey is a key of a broker.
type remoteKey struct {
	client    *client
	name      string // by which the broker is asked for it
	described brokerapi.Key
	public    interface{ Equal(crypto.PublicKey) bool }
	chain     []*x509.Certificate // leaf first
}

// newKey returns a key that a broker has described. It fails with Internal for a public key or a certificate that does
// not parse.
func newKey(c *client, name string, described brokerapi.Key) (*remoteKey, error) {
	parsed, err := x509.ParsePKIXPublicKey(described.Public)
	if err != nil {
		return nil, c.invalid("public key", err)
	}
	public, ok := parsed.(interface{ Equal(crypto.PublicKey) bool })
	if !ok {
		return nil, failure.New(failure.Unsupported, "the broker's key %q is of type %T", name, parsed).
			WithHint("name an RSA or EC key")
	}
	k := &remoteKey{client: c, name: name, described: described, public: public}
	for _, der := range described.Chain {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, c.invalid("certificate", err)
		}
		k.chain = append(k.chain, cert)
	}
	return k, nil
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

// Formats returns what the broker accepts for the key.
func (k *remoteKey) Formats() []payload.Format { return k.described.Formats }

// State returns "ready", "blocked" or "unavailable" for a key of a team's broker, and "" for one of an agent.
func (k *remoteKey) State() string { return k.described.State }

// SignMessage has the broker sign a message that it understands. It fails with Denied for one that the key may not
// sign, and with Internal for a signature that does not verify.
func (k *remoteKey) SignMessage(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	algorithm, err := brokerapi.AlgorithmOf(k.public, opts)
	if err != nil {
		return nil, err
	}
	answer, err := k.signature(ctx, message, algorithm)
	if err != nil {
		return nil, err
	}
	if !brokerapi.Verify(k.public, message, answer.Signature, opts) {
		return nil, k.client.invalid("signature", errors.New("it does not verify"))
	}
	return answer.Signature, nil
}

// signature asks for a signature. Where people have to agree first, or a time lock runs, it waits as long as the
// settings say, and asks again for the same bytes.
func (k *remoteKey) signature(ctx context.Context, message []byte, algorithm string) (answer brokerapi.Signature,
	err error) {
	c, began := k.client, time.Now()
	sign, err := use(brokerapi.SignaturesPath(k.name), k.name, message,
		brokerapi.SignatureRequest{Payload: message, Algorithm: algorithm, Repository: c.repository}, &answer)
	if err != nil {
		return answer, err
	}
	var accepted brokerapi.Request
	sign.accepted = &accepted
	if err := c.do(ctx, sign); err != nil || accepted.ID == "" {
		return answer, err
	}
	r, err := c.checked(accepted, "")
	if err == nil && !r.State.Settled() && c.approvalWait > 0 {
		r, err = c.waitFor(ctx, r.ID, c.approvalWait)
	}
	switch {
	case err != nil:
		return answer, err
	case !r.State.Settled():
		return answer, waits(r)
	case Outcome(r) != nil:
		return answer, Outcome(r)
	case time.Since(began) > c.window:
		return answer, failure.New(failure.Unavailable,
			"%s is approved, but what was to be signed is older than %s by now", Place(r), c.window).
			WithHint("run it again: the approval still counts")
	}
	accepted = brokerapi.Request{}
	if err := c.do(ctx, sign); err != nil || accepted.ID == "" {
		return answer, err
	}
	if r, err = c.checked(accepted, ""); err != nil {
		return answer, err
	}
	return answer, waits(r)
}

// waits returns the failure of a signature that cannot be made yet.
func waits(r brokerapi.Request) error {
	why := ""
	if r.Reason != "" {
		why = " (" + r.Reason + ")"
	}
	return failure.New(failure.Unavailable, "the broker does not sign yet: %s%s", Place(r), why).
		WithHint("run it again once the request is approved, or set approval-wait to wait for it")
}

// UnwrapLayerKey has the broker unwrap the key of an image layer from a JWE, in JSON as ocicrypt writes it. It returns
// the options of the layer, ocicrypt's JSON with the key.
func (k *remoteKey) UnwrapLayerKey(ctx context.Context, jwe []byte) ([]byte, error) {
	var answer brokerapi.LayerKey
	unwrap, err := use(brokerapi.LayerKeysPath(k.name), k.name, jwe, brokerapi.LayerKeyRequest{JWE: jwe}, &answer)
	if err == nil {
		err = k.client.do(ctx, unwrap)
	}
	if err == nil && len(answer.Options) == 0 {
		err = k.client.invalid("layer key", errors.New("it is empty"))
	}
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

// receives returns what the broker said of the key as a recipient's. A broker that does not unwrap layer keys does not
// tell: another one, where the image is opened, may.
func (k *remoteKey) receives() key.Receives {
	said := k.described.Receives
	if said == nil {
		return key.Receives{}
	}
	r := key.Receives{Refusal: said.Refusal, Sure: said.Sure}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
		if slices.Contains(said.OAEP, hash.String()) {
			r.OAEP = append(r.OAEP, hash)
		}
	}
	return r
}
