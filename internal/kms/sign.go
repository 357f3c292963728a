package kms

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"slices"

	"github.com/sigstore/sigstore/pkg/signature/kms/cliplugin/common"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// publicKey returns the key's public half, as PEM of a SubjectPublicKeyInfo.
func publicKey(ctx context.Context, reference *keystore.Reference, _ *request, _ io.Reader) (*common.PluginResp,
	error) {
	public, err := readPublic(ctx, reference)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil, failure.New(failure.Unsupported, "cannot encode the public key of %s: %w", reference.Key, err).
			WithHint("name an RSA or elliptic curve key")
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	return &common.PluginResp{PublicKey: &common.PublicKeyResp{PublicKeyPEM: text}}, nil
}

// readPublic returns the key's public half, without a login where the module allows that.
func readPublic(ctx context.Context, reference *keystore.Reference) (crypto.PublicKey, error) {
	store, err := reference.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return store.Public(ctx)
}

// signMessage signs the message on stdin: RSASSA-PKCS1-v1_5 (RFC 8017 section 8.2), or ECDSA in ASN.1 DER, as cosign
// verifies them. It signs no bare digest, since what that is for cannot be seen, and returns no signature that does not
// verify.
func signMessage(ctx context.Context, reference *keystore.Reference, r *request, stdin io.Reader) (*common.PluginResp,
	error) {
	message, err := readMessage(ctx, stdin, messageLimit)
	if err != nil {
		return nil, err
	}
	hash, err := r.hash()
	if err != nil {
		return nil, err
	}
	digest := digestOf(hash, message)
	if given := r.message.Digest; given != nil && !bytes.Equal(digest, *given) {
		return nil, failure.New(failure.Denied, "cannot sign a digest that is not that of the message").
			WithHint("have the message itself signed")
	}
	var signature []byte
	err = reference.WithKey(ctx, func(_ keystore.Store, k keystore.Key) (err error) {
		if signature, err = k.SignMessage(ctx, message, hash); err != nil {
			return err
		}
		if !verifies(k.Public(), hash, digest, signature) {
			return failure.New(failure.Internal, "cannot sign with key %s: its signature does not verify", reference.Key).
				WithHint("sign again; if it fails again, report the wrong signatures to the vendor of the module")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &common.PluginResp{SignMessage: &common.SignMessageResp{Signature: signature}}, nil
}

// verifySignature fails with Denied unless the request's signature of the message on stdin, or of a digest alone,
// verifies with the key. The module only shows the public half.
func verifySignature(ctx context.Context, reference *keystore.Reference, r *request, stdin io.Reader) (
	*common.PluginResp, error) {
	if r.VerifySignature == nil {
		return nil, failure.New(failure.Invalid, "the request has no signature to verify").WithHint(byCosign)
	}
	message, err := readMessage(ctx, stdin, messageLimit)
	if err != nil {
		return nil, err
	}
	hash, err := r.hash()
	if err != nil {
		return nil, err
	}
	public, err := readPublic(ctx, reference)
	if err != nil {
		return nil, err
	}
	signature, verified := r.VerifySignature.Signature, false
	switch given := r.message.Digest; {
	case given == nil:
		// Cosign signs with the hash of the key's curve, and then asks for SHA-256 here.
		verified = verifies(public, hash, digestOf(hash, message), signature) ||
			verifies(public, hashOfKey(public), digestOf(hashOfKey(public), message), signature)
	case len(message) == 0 || bytes.Equal(digestOf(hash, message), *given):
		verified = verifies(public, hash, *given, signature)
	}
	if !verified {
		return nil, failure.New(failure.Denied, "the signature does not verify with key %s", reference.Key).
			WithHint("verify it with the key that it was made with")
	}
	return &common.PluginResp{VerifySignature: &common.VerifySignatureResp{}}, nil
}

// hash returns the hash of a message: the one that the request names with the message, else that of the digest that
// comes with the message, else the one that it names with the key.
func (r *request) hash() (crypto.Hash, error) {
	hash, given := r.InitOptions.HashFunc, r.message.Digest
	if given != nil {
		hash = map[int]crypto.Hash{32: crypto.SHA256, 48: crypto.SHA384, 64: crypto.SHA512}[len(*given)]
	}
	if r.message.HashFunc != nil {
		hash = *r.message.HashFunc
	}
	if !slices.Contains([]crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512}, hash) {
		return 0, failure.New(failure.Unsupported, "cannot sign or verify with hash %d of Go's package crypto", hash).
			WithHint("use SHA-256, SHA-384 or SHA-512")
	}
	if given != nil && len(*given) != hash.Size() {
		return 0, failure.New(failure.Invalid, "the digest has %d bytes, not the %d of %s", len(*given), hash.Size(), hash).
			WithHint("pass the message itself")
	}
	return hash, nil
}

// hashOfKey returns the hash that cosign signs with for a key: of P-384 and P-521 the one of this length, else SHA-256.
func hashOfKey(public crypto.PublicKey) crypto.Hash {
	if p, ok := public.(*ecdsa.PublicKey); ok {
		switch p.Params().BitSize {
		case 384:
			return crypto.SHA384
		case 521:
			return crypto.SHA512
		}
	}
	return crypto.SHA256
}

func digestOf(hash crypto.Hash, message []byte) []byte {
	h := hash.New()
	h.Write(message)
	return h.Sum(nil)
}

// verifies reports whether a signature of a digest verifies with a public key.
func verifies(public crypto.PublicKey, hash crypto.Hash, digest, signature []byte) bool {
	switch p := public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(p, hash, digest, signature) == nil
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(p, digest, signature)
	}
	return false
}
