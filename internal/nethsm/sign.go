package nethsm

import (
	"context"
	"crypto"
	"crypto/rsa"
	"encoding/asn1"
	"encoding/base64"
	"errors"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// hashNames are the names of hashes in the modes and mechanisms of the API.
var hashNames = map[crypto.Hash]string{
	crypto.SHA1: "SHA1", crypto.SHA224: "SHA224", crypto.SHA256: "SHA256", crypto.SHA384: "SHA384",
	crypto.SHA512: "SHA512",
}

// signing is SignRequestData of the API.
type signing struct {
	Mode    string `json:"mode"`
	Message string `json:"message"` // base64
}

// Sign signs a digest. *rsa.PSSOptions select RSASSA-PSS (RFC 8017, section 8.1) with a salt as long as the digest,
// whatever its SaltLength; a crypto.Hash selects PKCS #1 v1.5 or ECDSA. An ECDSA signature is ASN.1 DER.
func (k *Key) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	hash := opts.HashFunc()
	name, known := hashNames[hash]
	if !known || len(digest) != hash.Size() {
		return nil, failure.New(failure.Internal, "cannot sign a digest of %d bytes with %v", len(digest), hash)
	}
	public, err := k.knownPublic(ctx)
	if err != nil {
		return nil, err
	}
	s := signing{Mode: "ECDSA"}
	if _, isRSA := public.(*rsa.PublicKey); isRSA {
		s.Mode = "PSS_" + name
		if _, pss := opts.(*rsa.PSSOptions); !pss {
			s.Mode = "PKCS1"
			if digest, err = digestInfo(digest, hash); err != nil {
				return nil, err
			}
		}
	}
	s.Message = base64.StdEncoding.EncodeToString(digest)
	r := request{what: "signing with key " + k.name(), path: "/sign"}
	var answer struct {
		Signature string `json:"signature"`
	}
	if err := k.use(ctx, r, s, &answer); err != nil {
		return nil, err
	}
	signature, err := base64.StdEncoding.DecodeString(answer.Signature)
	if err != nil || len(signature) == 0 {
		return nil, malformed(r.what, errors.New("no signature"))
	}
	return signature, nil
}

// SignMessage hashes the message and signs the digest: a NetHSM does not hash.
func (k *Key) SignMessage(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if !opts.HashFunc().Available() {
		return nil, failure.New(failure.Internal, "hash %v is not available", opts.HashFunc())
	}
	h := opts.HashFunc().New()
	h.Write(message)
	return k.Sign(ctx, h.Sum(nil), opts)
}

// hashOIDs are the object identifiers of the hashes (RFC 8017, appendix B.1).
var hashOIDs = map[crypto.Hash]asn1.ObjectIdentifier{
	crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1}, crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
	crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
}

// digestInfo returns a digest in the structure that RSASSA-PKCS1-v1_5 signs, in DER (RFC 8017, section 9.2).
func digestInfo(digest []byte, hash crypto.Hash) ([]byte, error) {
	oid, ok := hashOIDs[hash]
	if !ok {
		return nil, failure.New(failure.Internal, "cannot sign with PKCS #1 v1.5 and %v", hash)
	}
	type algorithm struct {
		Algorithm  asn1.ObjectIdentifier
		Parameters asn1.RawValue
	}
	return asn1.Marshal(struct {
		Algorithm algorithm
		Digest    []byte
	}{algorithm{oid, asn1.NullRawValue}, digest})
}
