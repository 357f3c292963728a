package certs

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"errors"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Leaves returns the certificates that are not a CA's, each once.
func Leaves(certs []*x509.Certificate) []*x509.Certificate {
	var leaves []*x509.Certificate
	for _, cert := range certs {
		if !cert.IsCA && !slices.ContainsFunc(leaves, cert.Equal) {
			leaves = append(leaves, cert)
		}
	}
	return leaves
}

// LeafOf returns the certificate of a public key, or nil. Of several, such as a renewed one beside the old, it is one
// that is no CA's, that is valid now, and that ends last, in this order.
func LeafOf(public crypto.PublicKey, certs []*x509.Certificate, now time.Time) *x509.Certificate {
	if leaves := leavesOf(public, certs, now); len(leaves) > 0 {
		return leaves[0]
	}
	return nil
}

// ChainOf returns the chain of a public key's certificate, ordered and checked for a time. Of several certificates it
// is the first in LeafOf's order whose chain is whole and passes Check: a module may show others for the key that no
// root stands behind, such as an attestation. When none passes, the failure is that of the first; with no certificate
// at all it returns neither.
func ChainOf(public crypto.PublicKey, known []*x509.Certificate,
	more func(*x509.Certificate) ([]*x509.Certificate, error), now time.Time) ([]*x509.Certificate, error) {
	var first error
	for _, leaf := range leavesOf(public, known, now) {
		chain, err := Chain(leaf, known, more, now)
		if err == nil {
			if err = Check(chain, now); err == nil {
				return chain, nil
			}
		}
		if first == nil {
			first = err
		}
	}
	return nil, first
}

// leavesOf returns the certificates of a public key, the likeliest first.
func leavesOf(public crypto.PublicKey, certs []*x509.Certificate, now time.Time) []*x509.Certificate {
	var leaves []*x509.Certificate
	for _, cert := range certs {
		if SameKey(cert.PublicKey, public) {
			leaves = append(leaves, cert)
		}
	}
	valid := func(c *x509.Certificate) bool { return !now.Before(c.NotBefore) && !now.After(c.NotAfter) }
	slices.SortStableFunc(leaves, func(a, b *x509.Certificate) int {
		switch {
		case a.IsCA != b.IsCA:
			return order(b.IsCA)
		case valid(a) != valid(b):
			return order(valid(a))
		}
		return b.NotAfter.Compare(a.NotAfter)
	})
	return leaves
}

func order(first bool) int {
	if first {
		return -1
	}
	return 1
}

// SameKey reports whether two public keys are one.
func SameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// Bounds of the search for a chain. Certificates of one name may sign each other in any number of ways.
const (
	maxChain  = 10  // certificates; longer than any chain in use
	maxChecks = 256 // signatures verified for one chain; a chain of three needs five
)

// Chain orders certificates from the leaf to its self-signed root. The issuers are among known, or what more finds for
// a certificate (nil: nothing more). Of several chains, such as those through an expired issuer and its renewed
// certificate, it is the first that passes Check at a time; when none does, it is the first of all, so that Check says
// what is wrong with it.
//
// It fails with kind Invalid when no chain reaches a root, and names the issuer that is missing.
func Chain(leaf *x509.Certificate, known []*x509.Certificate, more func(*x509.Certificate) ([]*x509.Certificate, error),
	now time.Time) ([]*x509.Certificate, error) {
	s := search{known: known, more: more, now: now}
	chain, missing, err := s.extend([]*x509.Certificate{leaf})
	switch {
	case chain != nil || err != nil:
		return chain, err
	case s.refused != nil:
		return s.refused, nil
	case s.checks > maxChecks:
		return nil, failure.New(failure.Invalid,
			"the search for the certificate chain of %q ended after %d signatures: too many certificates have its "+
				"issuers' names", leaf.Subject, maxChecks).
			WithHint("name a file with the leaf and its issuers alone")
	}
	return nil, failure.New(failure.Invalid,
		"the certificate chain of %q is not whole: the certificate of its issuer %q is missing", leaf.Subject, missing.Issuer).
		WithHint("add the certificate of that issuer to certificate-chain, or to the token; the chain has to reach a " +
			"self-signed root")
}

// search is the search for one chain.
type search struct {
	known   []*x509.Certificate
	more    func(*x509.Certificate) ([]*x509.Certificate, error)
	now     time.Time
	checks  int                 // signatures that were verified
	whole   int                 // chains that reached a root
	refused []*x509.Certificate // the first chain that reaches a root and does not pass Check
}

// extend tries each issuer of the last certificate in turn, since a name may have several certificates (cross-signed,
// renewed with a new key, or for longer with the old one), and returns the first chain that ends in a root and passes
// Check. Else it returns the deepest certificate without an issuer.
func (s *search) extend(chain []*x509.Certificate) (whole []*x509.Certificate, missing *x509.Certificate, err error) {
	last := chain[len(chain)-1]
	if s.issued(last, last) {
		s.whole++
		if Check(chain, s.now) == nil {
			return chain, nil, nil
		}
		if s.refused == nil {
			s.refused = chain
		}
		return nil, last, nil
	}
	missing = last
	if len(chain) == maxChain {
		return nil, missing, nil
	}
	try := func(candidates []*x509.Certificate) bool {
		for _, candidate := range candidates {
			if slices.ContainsFunc(chain, candidate.Equal) || !s.issued(last, candidate) {
				continue
			}
			var deeper *x509.Certificate
			// The full slice expression keeps one branch of the search from writing over another's chain.
			whole, deeper, err = s.extend(append(chain[:len(chain):len(chain)], candidate))
			if whole != nil || err != nil {
				return true
			}
			missing = deeper
		}
		return false
	}
	before := s.whole
	if try(s.known) || s.more == nil || s.whole > before {
		return whole, missing, err
	}
	found, err := s.more(last)
	if err != nil {
		return nil, nil, err
	}
	try(found)
	return whole, missing, err
}

// issued reports whether issuer issued cert, as long as the search has signatures left to verify.
func (s *search) issued(cert, issuer *x509.Certificate) bool {
	if s.checks > maxChecks || !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return false
	}
	s.checks++
	return issued(cert, issuer)
}

// issued reports whether issuer's name and key are those that cert was issued under. What else is wrong with either is
// for Check to say, so a CA that is none and a hash that is no longer trusted pass here.
func issued(cert, issuer *x509.Certificate) bool {
	if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return false
	}
	err := issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
	var insecure x509.InsecureAlgorithmError
	return err == nil || errors.As(err, &insecure)
}
