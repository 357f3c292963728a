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

// A candidate is a key that the user named, or one of those on the token.
type candidate struct {
	name   string
	public crypto.PublicKey // nil if it can't be read: such a key is passed over
	store  keystore.Store
	key    keystore.Key // once it is open

	// What locks are held against, of each lock.
	kid     string
	rsaSize int
	curve   ecdh.Curve
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

// fits reports whether a lock may be the key's: by its kid if it has one, else by the kind and size of the key.
func (c *candidate) fits(l lock) bool {
	if l.KeyID != "" {
		return l.KeyID == c.kid
	}
	return c.rsaSize > 0 && l.rsaSize == c.rsaSize || c.curve != nil && l.curve == c.curve
}

// optionsBounds are those of a layer's options, which have one key and one nonce.
var optionsBounds = bound.Limits{Bytes: 16 << 10, Depth: bound.Depth, Elements: 256}

// open opens a wrapped key with one of its locks.
func (c *candidate) open(ctx context.Context, w wrapping, l lock) (options []byte, err error) {
	if c.key == nil {
		if c.key, err = c.store.Key(ctx, c.public); err != nil {
			return nil, err
		}
	}
	options, err = w.open(ctx, l, c.key)
	var known *failure.Error
	switch {
	case errors.As(err, &known):
		return nil, err
	case err != nil:
		return nil, failure.New(failure.Invalid,
			"the wrapped key for %s does not open with it: the annotation was changed, or is another image's: %w", c.name, err).
			WithHint("get the image's manifest again from where it was published")
	case bound.JSON(options, optionsBounds) != nil || !bytes.HasPrefix(bytes.TrimSpace(options), []byte("{")):
		return nil, damaged(w.scheme, errors.New("what it holds is no key of a layer"))
	}
	return options, nil
}
