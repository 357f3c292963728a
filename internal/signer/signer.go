// Package signer makes a Notation signature of a payload: it finds the key's certificate chain, checks it against
// Notation's rules, has the key sign, and verifies the signature before it returns it.
//
// The chain comes from the file that the setting certificate-chain names, or from the token. The signature is
// RSASSA-PSS for RSA keys and ECDSA for elliptic curve keys, with the hash that Notation prescribes for the key's spec.
package signer

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Signature is what Notation's generate-signature returns.
type Signature struct {
	Raw   []byte              // RSASSA-PSS (RFC 8017), or r||s, both in big-endian and as long as the curve's order
	Spec  key.Spec            // of the key that signed
	Chain []*x509.Certificate // leaf first, self-signed root last
}

// Describe returns the spec of the key that the settings name. It takes it from the leaf in the certificate-chain file
// if there is exactly one, without loading the module; else it asks the token. It fails with Invalid for a key that
// Notation does not sign with.
func Describe(ctx context.Context, s *keystore.Reference) (key.Spec, error) {
	file, err := readChainFile(s)
	if err != nil {
		return key.Spec{}, err
	}
	if leaves := certs.Leaves(file); len(leaves) == 1 {
		return key.SpecOf(leaves[0].PublicKey)
	}
	store, err := s.Open(ctx)
	if err != nil {
		return key.Spec{}, err
	}
	defer store.Close()
	public, err := store.Public(ctx)
	if err != nil {
		return key.Spec{}, err
	}
	return key.SpecOf(public)
}

// readChainFile returns the certificates in the certificate-chain file, or none where the setting is empty.
func readChainFile(s *keystore.Reference) ([]*x509.Certificate, error) {
	if s.CertificateChain == "" {
		return nil, nil
	}
	return certs.ReadFile(s.CertificateChain)
}

// Sign signs a payload with the key that the settings name. It fails with Invalid when the key is not of spec, and when
// Notation would refuse the chain. What is wrong with the file is found before the module is loaded, and what is wrong
// with the chain before the key signs.
func Sign(ctx context.Context, s *keystore.Reference, spec key.Spec, payload []byte) (*Signature, error) {
	file, err := readChainFile(s)
	if err != nil {
		return nil, err
	}
	leaves := certs.Leaves(file)
	if len(leaves) == 1 {
		leaf := leaves[0]
		if err := checkSpec(leaf, spec); err != nil {
			return nil, err
		}
		if chain, err := certs.Chain(leaf, file, nil, time.Now()); err == nil {
			if err := certs.Check(chain, time.Now()); err != nil {
				return nil, err
			}
		}
	}
	store, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	j := job{store: store, spec: spec, payload: payload, file: file, settings: s}
	switch len(leaves) {
	case 0:
		return j.signFromToken(ctx)
	case 1:
		return j.signWithFileLeaf(ctx, leaves[0])
	default: // the file does not say which leaf is the key's
		return j.signByKey(ctx)
	}
}

// Chain returns the checked chain that Sign signs with, leaf first. It fails as Sign does.
func Chain(ctx context.Context, s *keystore.Reference) ([]*x509.Certificate, error) {
	file, err := readChainFile(s)
	if err != nil {
		return nil, err
	}
	store, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	j := job{store: store, file: file, settings: s}
	var leaf *x509.Certificate
	switch leaves := certs.Leaves(file); len(leaves) {
	case 0:
		leaf, err = store.Leaf(ctx)
	case 1:
		leaf = leaves[0]
	}
	if err != nil {
		return nil, err
	}
	if leaf != nil {
		public, err := store.Public(ctx)
		if err != nil {
			return nil, err
		}
		chain, err := certs.Chain(leaf, file, keystore.IssuerLookup(ctx, store), time.Now())
		if err == nil && certs.SameKey(public, leaf.PublicKey) && certs.Check(chain, time.Now()) == nil {
			return chain, nil
		}
	}
	return j.findChain(ctx)
}

// checkSpec fails with Invalid unless a leaf's key is of the spec that Notation asked for.
func checkSpec(leaf *x509.Certificate, want key.Spec) error {
	spec, err := key.SpecOf(leaf.PublicKey)
	if err != nil {
		return err
	}
	if spec != want {
		return failure.New(failure.Invalid,
			"the request asks for a signature of an %s key, but the certificate of %q is for %s", want.Name, leaf.Subject,
			spec.Name).
			WithHint("the key or its certificate was changed between describe-key and generate-signature; sign again")
	}
	return nil
}

// A job makes one signature.
type job struct {
	store    keystore.Store
	settings *keystore.Reference
	spec     key.Spec
	payload  []byte
	file     []*x509.Certificate // in the certificate-chain file
	key      keystore.Key        // nil until it is opened
}

// signWithFileLeaf signs with the only leaf in the certificate-chain file.
func (j *job) signWithFileLeaf(ctx context.Context, leaf *x509.Certificate) (*Signature, error) {
	signature, err := j.signWithLeaf(ctx, leaf)
	if err == nil || j.key == nil {
		return signature, err
	}
	// The public half is read after a failure only: reading it takes calls that a good signature does not need.
	if public, readErr := j.key.ReadPublic(ctx); readErr == nil && !certs.SameKey(public, leaf.PublicKey) {
		return nil, failure.New(failure.Invalid,
			"the leaf certificate of %q in %s belongs to another key than the one on the token", leaf.Subject,
			j.settings.CertificateChain).
			WithHint("name the certificate that was issued for this key, or the key that belongs to the certificate")
	}
	return nil, err
}

// signFromToken signs with a leaf from the token. It first takes the certificate with the key's label and id, which
// takes the fewest calls: its chain is checked like any other, and the signature shows whether it is the key's. If
// either fails, signFromToken looks for the certificate that has the key's public half.
func (j *job) signFromToken(ctx context.Context) (*Signature, error) {
	leaf, err := j.store.Leaf(ctx)
	if err != nil {
		return nil, err
	}
	if leaf == nil {
		return j.signByKey(ctx)
	}
	signature, err := j.signWithLeaf(ctx, leaf)
	if err != nil && anotherLeafMaySign(err) {
		return j.signByKey(ctx)
	}
	return signature, err
}

// signByKey signs with the certificate that has the key's public half, in the file or on the token.
func (j *job) signByKey(ctx context.Context) (*Signature, error) {
	chain, err := j.findChain(ctx)
	if err != nil {
		return nil, err
	}
	return j.signWithChain(ctx, chain)
}

// errNotVerified is the cause when the module's signature does not verify with the leaf's public key.
var errNotVerified = errors.New("its signature does not verify")

// anotherLeafMaySign reports whether another certificate may do after a failure: the chain was refused, or the
// certificate is another key's.
func anotherLeafMaySign(err error) bool {
	return failure.Is(err, failure.Invalid) || errors.Is(err, errNotVerified)
}

// findChain returns the checked chain of the certificate that has the key's public half. It searches the file with the
// token's issuers first, since reading every certificate of a token is slow. It fails with NotFound without such a
// certificate, and with Invalid when Notation refuses the chain.
func (j *job) findChain(ctx context.Context) ([]*x509.Certificate, error) {
	var public crypto.PublicKey
	var err error
	if j.key == nil {
		if j.key, err = j.store.Key(ctx, nil); err != nil {
			return nil, err
		}
		public = j.key.Public()
	} else if public, err = j.key.ReadPublic(ctx); err != nil {
		return nil, err
	}
	chain, err := certs.ChainOf(public, j.file, keystore.IssuerLookup(ctx, j.store), time.Now())
	if chain != nil || err != nil {
		return chain, err
	}
	onToken, err := j.store.Certificates(ctx)
	if err != nil {
		return nil, err
	}
	chain, err = certs.ChainOf(public, append(onToken, j.file...), nil, time.Now())
	if chain != nil || err != nil {
		return chain, err
	}
	if j.settings.Key.Broker && j.settings.CertificateChain == "" {
		return nil, failure.New(failure.NotFound, "the broker has no certificate for the key %s", j.settings.Key).
			WithHint("have the broker's operator store one beside the key, with 'notation-hsm cert import'; " +
				"or set certificate-chain to its file")
	}
	where := "on the token"
	if j.settings.CertificateChain != "" {
		where = "in " + j.settings.CertificateChain + " or on the token"
	}
	return nil, failure.New(failure.NotFound, "there is no certificate for the key %s %s", j.settings.Key, where).
		WithHint("make one with 'notation-hsm cert self-sign', or have the request of 'notation-hsm cert csr' signed by " +
			"your CA; then import it with 'notation-hsm cert import', or set certificate-chain to its file")
}

// signWithLeaf finds and checks the chain of a leaf, and signs with it.
func (j *job) signWithLeaf(ctx context.Context, leaf *x509.Certificate) (*Signature, error) {
	chain, err := certs.Chain(leaf, j.file, keystore.IssuerLookup(ctx, j.store), time.Now())
	if err != nil {
		return nil, err
	}
	if err := certs.Check(chain, time.Now()); err != nil {
		return nil, err
	}
	return j.signWithChain(ctx, chain)
}

// signWithChain signs with the key of a checked chain's leaf. It returns no signature that does not verify with the
// leaf.
func (j *job) signWithChain(ctx context.Context, chain []*x509.Certificate) (*Signature, error) {
	leaf := chain[0]
	for _, cert := range j.file {
		if !slices.ContainsFunc(chain, cert.Equal) {
			slog.Info("a certificate of the file is not part of the chain", "subject", cert.Subject.String())
		}
	}
	if err := checkSpec(leaf, j.spec); err != nil {
		return nil, err
	}
	var err error
	if j.key, err = j.store.Key(ctx, leaf.PublicKey); err != nil {
		return nil, err
	}
	raw, err := j.key.SignMessage(ctx, j.payload, j.spec.SignerOpts())
	if err != nil {
		return nil, err
	}
	if err := j.verify(leaf.PublicKey, raw); err != nil {
		return nil, failure.New(failure.Internal,
			"cannot sign with key %s and the certificate of %q: %w", j.settings.Key, leaf.Subject, err).
			WithHint("check that the certificate belongs to this key; if it does, report the wrong signature to the vendor of " +
				"the module")
	}
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); ok {
		if raw, err = rawECDSA(raw, (public.Params().BitSize+7)/8); err != nil {
			return nil, err
		}
	}
	return &Signature{Raw: raw, Spec: j.spec, Chain: chain}, nil
}

// verify fails with errNotVerified unless a signature of the payload verifies with a public key. An ECDSA signature is
// in ASN.1 DER.
func (j *job) verify(public crypto.PublicKey, signature []byte) error {
	h := j.spec.Hash.New()
	h.Write(j.payload)
	digest := h.Sum(nil)
	switch p := public.(type) {
	case *rsa.PublicKey:
		options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}
		if rsa.VerifyPSS(p, j.spec.Hash, digest, signature, options) == nil {
			return nil
		}
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(p, digest, signature) {
			return nil
		}
	}
	return errNotVerified
}
