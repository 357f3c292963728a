package layerkey

import (
	"bytes"
	"context"
	"errors"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// JWE is a packet that holds the options of a layer in JWE, with a checked structure.
type JWE struct{ parsed parsedPacket }

// ParseJWE parses a packet in JWE: JSON as ocicrypt and Seal write it. It fails with Invalid.
func ParseJWE(data []byte) (JWE, error) {
	if len(data) > packetLimit {
		return JWE{}, damaged(schemeJWE, errors.New("it is too large"))
	}
	parsed, err := packet{schemeJWE, data}.parse()
	return JWE{parsed}, err
}

// Open returns the options of the layer, unwrapped with a key; name is for messages. It uses the key only for wrapped
// keys that fit it. It fails with Invalid if none opens, and with the failure of the module if that fails.
func (j JWE) Open(ctx context.Context, name string, k keystore.Key) ([]byte, error) {
	c := newCandidate(name, k.Public(), nil, k)
	keys := &Keys{candidates: []*candidate{c}, references: []string{name}}
	layer := opening{keys: keys}
	for _, wrapped := range j.parsed.keys {
		if options, err := layer.try(ctx, j.parsed, wrapped); options != nil || err != nil {
			return options, err
		}
	}
	return nil, layer.failure()
}

// unwrapper is a key that unwraps the options of a layer itself, from a packet in JWE: a broker's. Such a key decrypts
// nothing else.
type unwrapper interface {
	UnwrapLayerKey(ctx context.Context, jwe []byte) (options []byte, err error)
}

// ask has an unwrapper open a packet. It fails with Unsupported for packets in other schemes than JWE. An unwrapper
// looks at all wrapped keys of a packet, so that it is asked once, however many of them fit the key.
func (c *candidate) ask(ctx context.Context, u unwrapper, p parsedPacket) ([]byte, error) {
	if p.scheme != schemeHSM && p.scheme != schemeJWE {
		return nil, failure.New(failure.Unsupported, "a broker does not open wrapped keys of the scheme %s", p.scheme).
			WithHint("encrypt the image with 'hsm-image encrypt' or with jwe:, or use the module directly")
	}
	if c.refused != nil && bytes.Equal(c.asked, p.data) {
		return nil, c.refused
	}
	options, err := u.UnwrapLayerKey(ctx, p.data)
	if err == nil {
		err = checkOptions(p.scheme, options)
	}
	c.asked, c.refused = p.data, err
	if err != nil {
		return nil, err
	}
	return options, nil
}
