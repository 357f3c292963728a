package ca

import (
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"golang.org/x/text/unicode/norm"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Allow reports whether a certificate may have the subject of holder, a certificate of another key. nil allows none.
type Allow func(holder Entry) bool

// AllowSubjectOf allows the subject of one certificate, by its serial number in hex; an empty serial allows none.
func AllowSubjectOf(serial string) Allow {
	return func(holder Entry) bool { return serial != "" && holder.Serial == plainSerial(serial) }
}

// plainSerial returns a serial number as certs.Serial writes it: lower case, without colons.
func plainSerial(text string) string {
	return strings.ToLower(strings.ReplaceAll(text, ":", ""))
}

// identity is the subject of a certificate as a set of attributes, normalised for comparison.
type identity map[string]bool

// parseIdentity reads a subject in DER. RFC 5280, section 7.1, compares names after the string preparation of RFC 4518.
// This comparison treats more names as equal, because people or a trust policy may: it ignores order, string types,
// case, compatibility forms, space and invisible characters.
func parseIdentity(rawSubject []byte) (identity, error) {
	var name pkix.RDNSequence
	if rest, err := asn1.Unmarshal(rawSubject, &name); err != nil || len(rest) > 0 {
		return nil, errors.Join(errors.New("it is not a distinguished name"), err)
	}
	id := identity{}
	for _, rdn := range name {
		for _, attribute := range rdn {
			value, isText := attribute.Value.(string)
			if !isText {
				return nil, fmt.Errorf("its attribute %s is not text", attribute.Type)
			}
			id[attribute.Type.String()+"="+fold(value)] = true
		}
	}
	return id, nil
}

// identityOf returns the identity of a certificate or a template.
func identityOf(cert *x509.Certificate) (identity, error) {
	if cert.RawSubject != nil {
		return parseIdentity(cert.RawSubject)
	}
	raw, err := asn1.Marshal(cert.Subject.ToRDNSequence())
	if err != nil {
		return nil, err
	}
	return parseIdentity(raw)
}

func fold(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) || !unicode.IsGraphic(r) {
			return -1
		}
		least := r // of all cases of the letter
		for other := unicode.SimpleFold(r); other != r; other = unicode.SimpleFold(other) {
			least = min(least, other)
		}
		return least
	}, norm.NFKC.String(text))
}

// contains reports whether one of two subjects has all attributes of the other. A trust policy lists attributes that a
// signer must have and ignores others, so it may take such two for the same signer.
func (id identity) contains(other identity) bool {
	if len(id) > len(other) {
		id, other = other, id
	}
	for attribute := range id {
		if !other[attribute] {
			return false
		}
	}
	return len(id) > 0
}

// holders returns the certificates of other keys with the subject of a template, oldest first, expired and revoked ones
// included. A subject that cannot be read counts as equal.
func (l *ledger) holders(template *x509.Certificate, fingerprint string) ([]Entry, error) {
	wanted, err := identityOf(template)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot use the subject %q: %w", template.Subject, err).
			WithHint("set another subject with --subject")
	}
	var found []Entry
	for _, e := range l.entries {
		if e.der == nil || e.PublicKey == fingerprint {
			continue
		}
		if id, err := parseIdentity(e.rawSubject); err != nil || wanted.contains(id) {
			found = append(found, e)
		}
	}
	return found, nil
}

// checkSubject fails when the subject of a signer's certificate is the subject of another key's certificate, of the CA,
// or of one of its issuers.
func (a *Authority) checkSubject(l *ledger, template *x509.Certificate, public crypto.PublicKey, allow Allow) error {
	fingerprint, err := certs.KeyFingerprint(public)
	if err != nil {
		return err
	}
	above := newLedger(a.Certificate())
	for _, ca := range a.chain {
		above.entries = append(above.entries, newEntry(ca, ca.NotBefore))
	}
	if found, err := above.holders(template, fingerprint); err != nil || len(found) > 0 {
		if err == nil {
			err = failure.New(failure.Invalid, "the subject %q belongs to the CA %q", template.Subject, found[0].Subject).
				WithHint("set a subject of the signer's own with --subject")
		}
		return err
	}
	return l.checkSubject(template, fingerprint, allow)
}

func (l *ledger) checkSubject(template *x509.Certificate, fingerprint string, allow Allow) error {
	found, err := l.holders(template, fingerprint)
	if err != nil || len(found) == 0 {
		return err
	}
	for _, e := range found {
		if allow != nil && allow(e) {
			return nil
		}
	}
	e := found[len(found)-1]
	return failure.New(failure.Denied,
		"another key has a certificate with this subject: %s of %q, %s", e.Serial, e.Subject, e.State()).
		WithHint("set another subject with --subject; or, if both keys are the same signer's, add --allow-subject-of " +
			e.Serial + " (in a ceremony: allow-subject-of)")
}
