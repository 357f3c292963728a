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

// Allow says whether a certificate may be issued for the subject of another one, which is of another key. nil allows
// none.
type Allow func(holder Entry) bool

// AllowSubjectOf allows the subject of one certificate, by its serial number in hex; of none if that is empty.
func AllowSubjectOf(serial string) Allow {
	return func(holder Entry) bool { return serial != "" && holder.Serial == plainSerial(serial) }
}

// plainSerial returns a serial number that a person wrote as certs.Serial writes it.
func plainSerial(text string) string {
	return strings.ToLower(strings.ReplaceAll(text, ":", ""))
}

// identity is the subject of a certificate as a set of attributes, in the form in which they are compared.
type identity map[string]bool

// parseIdentity reads a subject in DER. RFC 5280, section 7.1, compares names after the string preparation of RFC 4518;
// this takes more names for the same, since the question is whether people or a trust policy could: order, string
// types, case, compatibility forms, space and what can't be seen make no difference.
func parseIdentity(rawSubject []byte) (identity, error) {
	var name pkix.RDNSequence
	if rest, err := asn1.Unmarshal(rawSubject, &name); err != nil || len(rest) > 0 {
		return nil, errors.Join(errors.New("it is no distinguished name"), err)
	}
	id := identity{}
	for _, rdn := range name {
		for _, attribute := range rdn {
			value, isText := attribute.Value.(string)
			if !isText {
				return nil, fmt.Errorf("its attribute %s is no text", attribute.Type)
			}
			id[attribute.Type.String()+"="+fold(value)] = true
		}
	}
	return id, nil
}

// identityOf reads the subject of a certificate, or of the template for one.
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

// same reports whether one of two subjects has all attributes of the other. A trust policy names the attributes that a
// signer has to have and does not look at others, so such two may be the same signer to it.
func (id identity) same(other identity) bool {
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

// holders returns the certificates of other keys that have the subject of a template, oldest first, whatever became of
// them.
func (l *ledger) holders(template *x509.Certificate, fingerprint string) ([]Entry, error) {
	wanted, err := identityOf(template)
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't use the subject %q: %w",
			template.Subject, err).
			WithHint("give it one with --subject")
	}
	var found []Entry
	for _, e := range l.entries {
		if e.der == nil || e.PublicKey == fingerprint {
			continue
		}
		if id, err := parseIdentity(e.rawSubject); err != nil || wanted.same(id) {
			found = append(found, e) // what can't be read is not ruled out
		}
	}
	return found, nil
}

// checkSubject fails when the subject of a signer's certificate is that of another key's, or of the CA or an issuer of
// it.
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
			err = failure.New(failure.Invalid, "the subject %q is that of the CA %q", template.Subject, found[0].Subject).
				WithHint("give the signer a subject of its own with --subject")
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
		WithHint("if both are to be the same signer, add --allow-subject-of " + e.Serial +
			" (in a ceremony: allow-subject-of); else give it another subject with --subject")
}
