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

// The algorithms that ocicrypt and Seal make, and no others: each widens what a crafted annotation can ask of a module.
var (
	keyAlgorithms = []jose.KeyAlgorithm{jose.RSA_OAEP, jose.RSA_OAEP_256, jose.ECDH_ES_A128KW, jose.ECDH_ES_A192KW,
		jose.ECDH_ES_A256KW}
	contentAlgorithms = []jose.ContentEncryption{jose.A256GCM}
)

// A lock is one recipient's part of a packet: what the private key is asked to open.
type lock struct {
	Holder
	index     int
	rsaSize   int             // of the key, in bytes, or 0
	curve     ecdh.Curve      // of the key, or nil
	encrypted []byte          // what an RSA key decrypts
	header    jose.Header     // of a JWE
	epk       *ecdh.PublicKey // of ECDH-ES
}

// jweBounds allow for go-jose's 32 recipients, each with all headers that are allowed.
var jweBounds = bound.Limits{Bytes: packetLimit, Depth: bound.Depth, Elements: 2048}

func parseJWE(scheme string, data []byte) (wrapping, error) {
	if err := checkJWE(data); err != nil {
		return wrapping{}, err
	}
	jwe, err := jose.ParseEncryptedJSON(string(data), keyAlgorithms, contentAlgorithms)
	if err != nil {
		return wrapping{}, err
	}
	locks, err := jweLocks(scheme, jwe)
	open := func(ctx context.Context, l lock, k keystore.Key) ([]byte, error) { return openJWE(ctx, jwe, l, k) }
	return wrapping{locks: locks, open: open}, err
}

// errSeen makes DecryptMulti go on to the next recipient.
var errSeen = errors.New("seen")

// decrypter is a jose.OpaqueKeyDecrypter.
type decrypter func(encrypted []byte, header jose.Header) ([]byte, error)

func (d decrypter) DecryptKey(encrypted []byte, header jose.Header) ([]byte, error) {
	return d(encrypted, header)
}

// jweLocks lists the recipients of a JWE, which go-jose shows to those alone who open it.
func jweLocks(scheme string, jwe *jose.JSONWebEncryption) (locks []lock, bad error) {
	_, _, _, _ = jwe.DecryptMulti(decrypter(func(encrypted []byte, header jose.Header) ([]byte, error) {
		l, err := jweLock(scheme, encrypted, header)
		if err != nil {
			bad = err
		}
		locks = append(locks, l)
		return nil, errSeen
	}))
	return locks, bad
}

func jweLock(scheme string, encrypted []byte, header jose.Header) (lock, error) {
	l := lock{Holder: Holder{Algorithm: header.Algorithm}, header: header, encrypted: encrypted}
	if isThumbprint(header.KeyID) {
		l.KeyID = header.KeyID
	} else if scheme == schemeHSM {
		return l, errors.New("the kid of a recipient is no thumbprint")
	} // elsewhere a kid is whatever the publisher calls the key
	if alg := jose.KeyAlgorithm(header.Algorithm); alg == jose.RSA_OAEP || alg == jose.RSA_OAEP_256 {
		l.rsaSize = len(encrypted)
		return l, nil
	}
	text, err := json.Marshal(header.ExtraHeaders["epk"])
	if err != nil {
		return l, err
	}
	var jwk jose.JSONWebKey
	if err := json.Unmarshal(text, &jwk); err != nil {
		return l, err
	}
	public, ok := jwk.Key.(*ecdsa.PublicKey)
	if !ok {
		return l, errors.New("its epk is no public key on an elliptic curve")
	}
	if l.epk, err = public.ECDH(); err != nil { // a point that is not on the curve must not reach the module
		return l, err
	}
	l.curve = l.epk.Curve()
	return l, nil
}

// openJWE opens a JWE by the lock that is the key's.
func openJWE(ctx context.Context, jwe *jose.JSONWebEncryption, l lock, k keystore.Key) ([]byte, error) {
	at := -1
	var failed error
	_, _, plain, err := jwe.DecryptMulti(decrypter(func([]byte, jose.Header) ([]byte, error) {
		at++
		if at != l.index {
			return nil, errSeen
		}
		cek, err := contentKey(ctx, l, k)
		failed = err
		return cek, err
	}))
	if failed != nil {
		return nil, failed
	}
	return plain, err
}

// contentKey has the private key open the content's key (RFC 7518 sections 4.3 and 4.6).
func contentKey(ctx context.Context, l lock, k keystore.Key) ([]byte, error) {
	switch jose.KeyAlgorithm(l.Algorithm) {
	case jose.RSA_OAEP:
		return k.Decrypt(ctx, l.encrypted, &rsa.OAEPOptions{Hash: crypto.SHA1})
	case jose.RSA_OAEP_256:
		return k.Decrypt(ctx, l.encrypted, &rsa.OAEPOptions{Hash: crypto.SHA256})
	case jose.ECDH_ES_A128KW:
		return unwrapAgreed(ctx, l, k, 16)
	case jose.ECDH_ES_A192KW:
		return unwrapAgreed(ctx, l, k, 24)
	}
	return unwrapAgreed(ctx, l, k, 32)
}

// unwrapAgreed opens what is wrapped with AES key wrap under a key of size bytes, which both sides derive from their
// shared secret.
func unwrapAgreed(ctx context.Context, l lock, k keystore.Key, size int) ([]byte, error) {
	shared, err := k.ECDH(ctx, l.epk)
	if err != nil {
		return nil, err
	}
	defer clear(shared)
	parties := make([][]byte, 2)
	for i, name := range []jose.HeaderKey{"apu", "apv"} {
		text, _ := l.header.ExtraHeaders[name].(string) // most leave them out
		if parties[i], err = base64.RawURLEncoding.DecodeString(text); err != nil {
			return nil, errors.New("its " + string(name) + " is not base64url")
		}
	}
	bits := binary.BigEndian.AppendUint32(nil, uint32(size)*8) //nolint:gosec // 16, 24 or 32
	kek := make([]byte, size)
	defer clear(kek)
	kdf := josecipher.NewConcatKDF(crypto.SHA256, shared, prefixed([]byte(l.Algorithm)), prefixed(parties[0]),
		prefixed(parties[1]), bits, nil)
	if _, err := io.ReadFull(kdf, kek); err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(kek)
	if err != nil {
		return nil, err
	}
	return josecipher.KeyUnwrap(block, l.encrypted)
}

// prefixed is data with its length before it, as RFC 7518 section 4.6.2 feeds the key derivation.
func prefixed(data []byte) []byte {
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(data))), data...) //nolint:gosec // a packet is smaller
}
