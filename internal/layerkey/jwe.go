package layerkey

import (
	"context"
	"crypto"
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rsa"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"

	"github.com/go-jose/go-jose/v4"
	josecipher "github.com/go-jose/go-jose/v4/cipher"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// The algorithms of ocicrypt and Seal. Others are refused: each would widen what a crafted annotation can ask of a
// module.
var (
	keyAlgorithms = []jose.KeyAlgorithm{jose.RSA_OAEP, jose.RSA_OAEP_256, jose.ECDH_ES_A128KW, jose.ECDH_ES_A192KW,
		jose.ECDH_ES_A256KW}
	contentAlgorithms = []jose.ContentEncryption{jose.A256GCM}
)

// A wrappedKey is one recipient's entry in a packet: the content's key, or the options, encrypted to the recipient.
type wrappedKey struct {
	RecipientInfo
	index     int             // in the packet
	rsaSize   int             // of the recipient's key, in bytes, or 0
	curve     ecdh.Curve      // of the recipient's key, or nil
	encrypted []byte          // with RSA, or with AES key wrap after ECDH
	header    jose.Header     // of a JWE
	epk       *ecdh.PublicKey // the ephemeral public key of ECDH-ES
}

// jweBounds are those of a JWE with 32 recipients, which is go-jose's limit, each with all headers that are allowed.
var jweBounds = bound.Limits{Bytes: packetLimit, Depth: bound.Depth, Elements: 2048}

func parseJWE(scheme string, data []byte) (parsedPacket, error) {
	if err := checkJWE(data); err != nil {
		return parsedPacket{}, err
	}
	jwe, err := jose.ParseEncryptedJSON(string(data), keyAlgorithms, contentAlgorithms)
	if err != nil {
		return parsedPacket{}, err
	}
	keys, err := jweKeys(scheme, jwe)
	open := func(ctx context.Context, wrapped wrappedKey, k keystore.Key) ([]byte, error) {
		return openJWE(ctx, jwe, wrapped, k)
	}
	return parsedPacket{keys: keys, open: open}, err
}

// errSkipped makes DecryptMulti go on to the next recipient.
var errSkipped = errors.New("skipped")

// decrypter is a jose.OpaqueKeyDecrypter.
type decrypter func(encrypted []byte, header jose.Header) ([]byte, error)

// DecryptKey calls d.
func (d decrypter) DecryptKey(encrypted []byte, header jose.Header) ([]byte, error) {
	return d(encrypted, header)
}

// jweKeys returns the wrapped keys of a JWE. go-jose has no other way to list them than to decrypt.
func jweKeys(scheme string, jwe *jose.JSONWebEncryption) (keys []wrappedKey, bad error) {
	_, _, _, _ = jwe.DecryptMulti(decrypter(func(encrypted []byte, header jose.Header) ([]byte, error) {
		wrapped, err := jweKey(scheme, encrypted, header)
		if err != nil {
			bad = err
		}
		keys = append(keys, wrapped)
		return nil, errSkipped
	}))
	return keys, bad
}

// jweKey returns one wrapped key of a JWE.
func jweKey(scheme string, encrypted []byte, header jose.Header) (wrappedKey, error) {
	wrapped := wrappedKey{RecipientInfo: RecipientInfo{Algorithm: header.Algorithm}, header: header, encrypted: encrypted}
	if isThumbprint(header.KeyID) {
		wrapped.KeyID = header.KeyID
	} else if scheme == schemeHSM {
		return wrapped, errors.New("the kid of a recipient is not a thumbprint")
	} // with the scheme jwe, whoever encrypts chooses the kid
	if alg := jose.KeyAlgorithm(header.Algorithm); alg == jose.RSA_OAEP || alg == jose.RSA_OAEP_256 {
		wrapped.rsaSize = len(encrypted)
		return wrapped, nil
	}
	text, err := json.Marshal(header.ExtraHeaders["epk"])
	if err != nil {
		return wrapped, err
	}
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(text, &jwk); err != nil {
		return wrapped, err
	}
	public, ok := jwk.Key.(*ecdsa.PublicKey)
	if !ok {
		return wrapped, errors.New("its epk is not a public key on an elliptic curve")
	}
	// ECDH fails for a point that is not on the curve, which must not reach the module.
	if wrapped.epk, err = public.ECDH(); err != nil {
		return wrapped, err
	}
	wrapped.curve = wrapped.epk.Curve()
	return wrapped, nil
}

// openJWE decrypts the content of a JWE by one of its wrapped keys.
func openJWE(ctx context.Context, jwe *jose.JSONWebEncryption, wrapped wrappedKey, k keystore.Key) ([]byte, error) {
	at := -1
	var failed error
	_, _, plain, err := jwe.DecryptMulti(decrypter(func([]byte, jose.Header) ([]byte, error) {
		at++
		if at != wrapped.index {
			return nil, errSkipped
		}
		cek, err := contentKey(ctx, wrapped, k)
		failed = err
		return cek, err
	}))
	if failed != nil {
		return nil, failed
	}
	return plain, err
}

// contentKey decrypts the content's key with the private key (RFC 7518 sections 4.3 and 4.6).
func contentKey(ctx context.Context, wrapped wrappedKey, k keystore.Key) ([]byte, error) {
	switch jose.KeyAlgorithm(wrapped.Algorithm) {
	case jose.RSA_OAEP:
		return k.Decrypt(ctx, wrapped.encrypted, &rsa.OAEPOptions{Hash: crypto.SHA1})
	case jose.RSA_OAEP_256:
		return k.Decrypt(ctx, wrapped.encrypted, &rsa.OAEPOptions{Hash: crypto.SHA256})
	case jose.ECDH_ES_A128KW:
		return unwrapAgreed(ctx, wrapped, k, 16)
	case jose.ECDH_ES_A192KW:
		return unwrapAgreed(ctx, wrapped, k, 24)
	}
	return unwrapAgreed(ctx, wrapped, k, 32)
}

// unwrapAgreed unwraps a content key that is wrapped with AES key wrap (RFC 3394), under a key of size bytes that is
// derived from the shared secret of ECDH-ES.
func unwrapAgreed(ctx context.Context, wrapped wrappedKey, k keystore.Key, size int) ([]byte, error) {
	shared, err := k.ECDH(ctx, wrapped.epk)
	if err != nil {
		return nil, err
	}
	defer clear(shared)
	parties := make([][]byte, 2)
	for i, name := range []jose.HeaderKey{"apu", "apv"} {
		text, _ := wrapped.header.ExtraHeaders[name].(string) // both are optional
		if parties[i], err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return nil, errors.New("its " + string(name) + " is not base64url")
		}
	}
	bits := binary.BigEndian.AppendUint32(nil, uint32(size)*8) //nolint:gosec // 16, 24 or 32
	kek := make([]byte, size)
	defer clear(kek)
	kdf := josecipher.NewConcatKDF(crypto.SHA256, shared, prefixed([]byte(wrapped.Algorithm)), prefixed(parties[0]),
		prefixed(parties[1]), bits, nil)
	if _, err := io.ReadFull(kdf, kek); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return josecipher.KeyUnwrap(block, wrapped.encrypted)
}

// prefixed returns data after its length in 4 bytes, big-endian: an input of the key derivation (RFC 7518 section
// 4.6.2).
func prefixed(data []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...) //nolint:gosec // a packet is smaller
}
