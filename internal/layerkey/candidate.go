package layerkey

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// A candidate is a private key that may open a layer: one that the user named, or one on the token.
type candidate struct {
	name   string
	public crypto.PublicKey // nil if it cannot be read: such a key fits no wrapped key
	store  keystore.Store
	key    keystore.Key // nil until it is opened

	// From the public key, to compare with wrapped keys.
	kid     string     // the JWK thumbprint
	rsaSize int        // of the modulus, in bytes, or 0
	curve   ecdh.Curve // or nil

	asked   []byte // the packet that an unwrapper was asked to open last
	refused error  // what it answered
}

func newCandidate(name string, public crypto.PublicKey, store keystore.Store, key keystore.Key) *candidate {
	c := &candidate{name: name, public: public, store: store, key: key}
	if public == nil {
		return c
	}
	c.kid = thumbprint(public)
	switch p := public.(type) {
	case *rsa.PublicKey:
		c.rsaSize = p.Size()
	case *ecdsa.PublicKey:
		if own, err := p.ECDH(); err == nil {
			c.curve = own.Curve()
		}
	}
	return c
}

// fits reports whether a wrapped key may be for this private key: by the kid if the wrapped key has one, else by the
// type and size of the key.
func (c *candidate) fits(wrapped wrappedKey) bool {
	if wrapped.KeyID != "" {
		return wrapped.KeyID == c.kid
	}
	return c.rsaSize > 0 && wrapped.rsaSize == c.rsaSize || c.curve != nil && wrapped.curve == c.curve
}

// optionsBounds are those of a layer's options, which hold one key and one nonce.
var optionsBounds = bound.Limits{Bytes: 16 << 10, Depth: bound.Depth, Elements: 256}

// open returns the options of a packet, by one of its wrapped keys.
func (c *candidate) open(ctx context.Context, p parsedPacket, wrapped wrappedKey) (options []byte, err error) {
	if c.key == nil {
		if c.key, err = c.store.Key(ctx, c.public); err != nil {
			return nil, err
		}
	}
	if u, ok := c.key.(unwrapper); ok {
		return c.ask(ctx, u, p)
	}
	options, err = p.open(ctx, wrapped, c.key)
	var known *failure.Error
	switch {
	case errors.As(err, &known):
		return nil, err
	case err != nil:
		return nil, failure.New(failure.Invalid,
			"the wrapped key for %s does not open with it: the annotation was changed, or is another image's: %w", c.name, err).
			WithHint(hintManifest)
	}
	return options, checkOptions(p.scheme, options)
}

// checkOptions fails with Invalid unless options are a JSON object within optionsBounds.
func checkOptions(scheme string, options []byte) error {
	if bound.JSON(options, optionsBounds) != nil || !bytes.HasPrefix(bytes.TrimSpace(options), []byte("{")) {
		return damaged(scheme, errors.New("it does not hold the key of a layer"))
	}
	return nil
}
