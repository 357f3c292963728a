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

// Leaves returns the certificates that are not a CA's, without duplicates.
func Leaves(certs []*x509.Certificate) []*x509.Certificate {
	var leaves []*x509.Certificate
	for _, cert := range certs {
		if !cert.IsCA && !slices.ContainsFunc(leaves, cert.Equal) {
			leaves = append(leaves, cert)
		}
	}
	return leaves
}

// LeafOf returns the certificate of a public key, or nil. Of several, such as a renewed one beside the old one, it
// prefers one that is not a CA's, then one that is valid at the given time, then the one that expires last.
func LeafOf(public crypto.PublicKey, certs []*x509.Certificate, now time.Time) *x509.Certificate {
	if leaves := leavesOf(public, certs, now); len(leaves) > 0 {
		return leaves[0]
	}
	return nil
}

// ChainOf returns the chain of a public key's certificate, as Chain does. Of several certificates it takes the first in
// LeafOf's order whose chain is complete and passes Check: a module may have others for the key that lead to no root,
// such as an attestation. If none passes, it returns the failure of the first. Without any certificate it returns
// neither a chain nor a failure.
func ChainOf(public crypto.PublicKey, known []*x509.Certificate,
	find func(*x509.Certificate) ([]*x509.Certificate, error), now time.Time) ([]*x509.Certificate, error) {
	var first error
	for _, leaf := range leavesOf(public, known, now) {
		chain, err := Chain(leaf, known, find, now)
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

// leavesOf returns the certificates of a public key in LeafOf's order.
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

// order returns the result of a comparison by whether the first value comes first.
func order(first bool) int {
	if first {
		return -1
	}
	return 1
}

// SameKey reports whether two public keys are equal.
func SameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// Bounds of the search for a chain. Certificates with the same name may sign each other in any number of ways.
const (
	maxChain  = 10  // certificates; longer than any chain in use
	maxChecks = 256 // signatures verified for one chain; a chain of three certificates needs five
)

// Chain returns the chain of a leaf, from the leaf to its self-signed root. The issuers are among known, or among what
// find returns for a certificate without a known issuer (nil: nothing). Of several chains, such as those by an expired
// issuer and by its renewed certificate, it returns the first that passes Check at the given time. If none passes, it
// returns the first, so that Check tells what is wrong with it.
//
// It fails with kind Invalid when no chain leads to a root, and names the missing issuer.
func Chain(leaf *x509.Certificate, known []*x509.Certificate, find func(*x509.Certificate) ([]*x509.Certificate, error),
	now time.Time) ([]*x509.Certificate, error) {
	s := search{known: known, find: find, now: now}
	chain, end, err := s.extend([]*x509.Certificate{leaf})
	switch {
	case chain != nil || err != nil:
		return chain, err
	case s.refused != nil:
		return s.refused, nil
	case s.checks > maxChecks:
		return nil, failure.New(failure.Invalid,
			"cannot complete the certificate chain of %q: too many certificates have the names of its issuers", leaf.Subject).
			WithHint("name a file with the leaf and its issuers only")
	}
	return nil, failure.New(failure.Invalid,
		"cannot complete the certificate chain of %q: the certificate of issuer %q is missing", leaf.Subject, end.Issuer).
		WithHint("add the certificate of that issuer to certificate-chain or to the token; a chain ends with a " +
			"self-signed root")
}

// search is a search for one chain.
type search struct {
	known   []*x509.Certificate
	find    func(*x509.Certificate) ([]*x509.Certificate, error)
	now     time.Time
	checks  int                 // signatures that were verified
	roots   int                 // chains that ended with a root
	refused []*x509.Certificate // the first chain that ends with a root and does not pass Check
}

// extend tries each issuer of the last certificate, since several certificates may have the same name: cross-signed,
// renewed with a new key, or renewed with the old one. It returns the first chain that ends with a root and passes
// Check. Without one, it returns the certificate at the end of the longest path, whose issuer is missing.
func (s *search) extend(chain []*x509.Certificate) (found []*x509.Certificate, end *x509.Certificate, err error) {
	last := chain[len(chain)-1]
	if s.issued(last, last) {
		s.roots++
		if Check(chain, s.now) == nil {
			return chain, nil, nil
		}
		if s.refused == nil {
			s.refused = chain
		}
		return nil, last, nil
	}
	end = last
	if len(chain) == maxChain {
		return nil, end, nil
	}
	try := func(candidates []*x509.Certificate) (done bool) {
		for _, candidate := range candidates {
			if slices.ContainsFunc(chain, candidate.Equal) || !s.issued(last, candidate) {
				continue
			}
			var deeper *x509.Certificate
			// The full slice expression makes append copy, so that candidates do not overwrite each other's chain.
			found, deeper, err = s.extend(append(chain[:len(chain):len(chain)], candidate))
			if found != nil || err != nil {
				return true
			}
			end = deeper
		}
		return false
	}
	before := s.roots
	if try(s.known) || s.find == nil || s.roots > before {
		return found, end, err
	}
	more, err := s.find(last)
	if err != nil {
		return nil, nil, err
	}
	try(more)
	return found, end, err
}

// issued reports whether issuer has the name of cert's issuer and the key that signed cert. After maxChecks signatures
// it reports false. Whether issuer is a CA, and whether the hash is secure, is left to Check.
func (s *search) issued(cert, issuer *x509.Certificate) bool {
	if s.checks > maxChecks || !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return false
	}
	s.checks++
	err := issuer.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature)
	var insecure x509.InsecureAlgorithmError
	return err == nil || errors.As(err, &insecure)
}
