// Package signer turns a payload into a Notation signature: it finds the key's certificate chain, holds it against
// Notation's rules, has the key sign, and verifies the result before anyone else sees it.
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
	Raw   []byte              // RSASSA-PSS as RFC 8017 has it, or r||s, each as long as the curve's order
	Spec  key.Spec            // the key's
	Chain []*x509.Certificate // leaf first, self-signed root last
}

// Describe returns the spec of the key that the settings name. A certificate-chain file with one leaf answers alone,
// and the module is not loaded.
func Describe(ctx context.Context, s *keystore.Reference) (key.Spec, error) {
	file, err := chainFile(s)
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

func chainFile(s *keystore.Reference) ([]*x509.Certificate, error) {
	if s.CertificateChain == "" {
		return nil, nil
	}
	return certs.ReadFile(s.CertificateChain)
}

// Sign signs a payload with the key that the settings name, which has to be of the spec that was asked for. All that
// can be wrong without the module is found before the module is loaded, and all that can be wrong with the chain before
// it signs.
func Sign(ctx context.Context, s *keystore.Reference, spec key.Spec, payload []byte) (*Signature, error) {
	file, err := chainFile(s)
	if err != nil {
		return nil, err
	}
	leaves := certs.Leaves(file)
	if len(leaves) == 1 {
		leaf := leaves[0]
		if err := fits(leaf, spec); err != nil {
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
		return j.signAs(ctx, leaves[0])
	}
	return j.signByKey(ctx)
}

// fits checks that a leaf's key is of the spec that Notation asked for.
func fits(leaf *x509.Certificate, want key.Spec) error {
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

// A job is one signature under way.
type job struct {
	store    keystore.Store
	settings *keystore.Reference
	spec     key.Spec
	payload  []byte
	file     []*x509.Certificate // from certificate-chain
	key      keystore.Key
}

// signAs signs with a leaf that the user named: the only one in the certificate-chain file.
func (j *job) signAs(ctx context.Context, leaf *x509.Certificate) (*Signature, error) {
	signature, err := j.try(ctx, leaf)
	if err == nil || j.key == nil {
		return signature, err
	}
	// Only now is it worth the calls to ask whether the certificate is the key's at all.
	if public, readErr := j.key.ReadPublic(ctx); readErr == nil && !certs.SameKey(public, leaf.PublicKey) {
		return nil, failure.New(failure.Invalid,
			"the leaf certificate of %q in %s belongs to another key than the one on the token", leaf.Subject,
			j.settings.CertificateChain).
			WithHint("name the certificate that was issued for this key, or the key that belongs to the certificate")
	}
	return nil, err
}

// signFromToken signs with a leaf from the token. The certificate under the key's own label and id is most likely its
// own, and costs the fewest calls; the signature proves it. When it is not, or does not do, the key's public half
// decides.
func (j *job) signFromToken(ctx context.Context) (*Signature, error) {
	leaf, err := j.store.Leaf(ctx)
	if err != nil {
		return nil, err
	}
	if leaf == nil {
		return j.signByKey(ctx)
	}
	signature, err := j.try(ctx, leaf)
	if err != nil && worthAnother(err) {
		return j.signByKey(ctx)
	}
	return signature, err
}

// signByKey signs with the certificate that has the key's public half, wherever it is.
func (j *job) signByKey(ctx context.Context) (*Signature, error) {
	chain, err := j.findChain(ctx)
	if err != nil {
		return nil, err
	}
	return j.signWith(ctx, chain)
}

// errNotVerified is returned when the module's signature is not the leaf's.
var errNotVerified = errors.New("it does not verify")

// worthAnother reports whether another certificate could mend a failure.
func worthAnother(err error) bool {
	return failure.Is(err, failure.Invalid) || errors.Is(err, errNotVerified)
}

// findChain finds the chain by the key's public half.
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
	if chain, err := certs.ChainOf(public, j.file, keystore.IssuerLookup(ctx, j.store), time.Now()); chain != nil || err != nil {
		return chain, err
	}
	there, err := j.store.Certificates(ctx)
	if err != nil {
		return nil, err
	}
	if chain, err := certs.ChainOf(public, append(there, j.file...), nil, time.Now()); chain != nil || err != nil {
		return chain, err
	}
	where := "on the token"
	if j.settings.CertificateChain != "" {
		where = "in " + j.settings.CertificateChain + " or on the token"
	}
	return nil, failure.New(failure.Invalid, "there is no certificate for the key %s %s", j.settings.Key, where).
		WithHint("make one with 'notation-hsm cert self-sign', or have 'notation-hsm cert csr' signed by your CA; then " +
			"'notation-hsm cert import', or name its file in certificate-chain")
}

// try makes a signature with one leaf.
func (j *job) try(ctx context.Context, leaf *x509.Certificate) (*Signature, error) {
	chain, err := certs.Chain(leaf, j.file, keystore.IssuerLookup(ctx, j.store), time.Now())
	if err != nil {
		return nil, err
	}
	if err := certs.Check(chain, time.Now()); err != nil {
		return nil, err
	}
	return j.signWith(ctx, chain)
}

// signWith makes a signature with a chain that was checked.
func (j *job) signWith(ctx context.Context, chain []*x509.Certificate) (*Signature, error) {
	leaf := chain[0]
	for _, cert := range j.file {
		if !slices.ContainsFunc(chain, cert.Equal) {
			slog.Info("a certificate of the file is not part of the chain", "subject", cert.Subject.String())
		}
	}
	if err := fits(leaf, j.spec); err != nil {
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
			"the signature of key %s was thrown away: with the certificate of %q %w", j.settings.Key, leaf.Subject, err).
			WithHint("check that the certificate belongs to this key; if it does, the module made a wrong signature")
	}
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); ok {
		if raw, err = rawECDSA(raw, (public.Params().BitSize+7)/8); err != nil {
			return nil, err
		}
	}
	return &Signature{Raw: raw, Spec: j.spec, Chain: chain}, nil
}

// verify checks a signature as any verifier will.
func (j *job) verify(public crypto.PublicKey, signature []byte) error {
	h := j.spec.Hash.New()
	h.Write(j.payload)
	digest := h.Sum(nil)
	switch p := public.(type) {
	case *rsa.PublicKey:
		if rsa.VerifyPSS(p, j.spec.Hash, digest, signature, &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}) == nil {
			return nil
		}
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(p, digest, signature) {
			return nil
		}
	}
	return errNotVerified
}
