package identity

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// maxNames is the largest number of subject alternative names of a kind in a caller's certificate.
const maxNames = 64

const hintCertificateName = "write a SPIFFE ID, or the subject as openssl x509 -subject -nameopt RFC2253 prints it"

// certificateRules say which certificates are callers.
type certificateRules struct {
	all            bool     // every certificate that the TLS server verified
	allow          []string // SPIFFE IDs and subjects
	administrators []string
}

func newCertificateRules(config *MTLS, administrators []Administrator) (rules certificateRules) {
	if config != nil {
		rules.all, rules.allow = len(config.Allow) == 0, config.Allow
	}
	for _, one := range administrators {
		if one.MTLS != "" {
			rules.administrators = append(rules.administrators, one.MTLS)
		}
	}
	return rules
}

// caller returns the caller with the certificate of a connection.
func (r certificateRules) caller(state *tls.ConnectionState, now time.Time) (Caller, error) {
	if err := checkChains(state, now); err != nil {
		return Caller{}, failure.New(failure.Denied, "cannot accept the client certificate: %w", err).
			WithHint("connect again with a valid certificate of the broker's client CA")
	}
	leaf := state.PeerCertificates[0]
	subject, err := certificateName(leaf)
	if err != nil {
		return Caller{}, failure.New(failure.Denied, "cannot accept the client certificate: %w", err).
			WithHint("issue a certificate with one SPIFFE ID, or with a subject")
	}
	admin := isAdministrator(r.administrators, subject)
	if !admin && !r.all && !slices.Contains(r.allow, subject) {
		return Caller{}, failure.New(failure.Denied, "cannot accept the client certificate: %q is not listed", subject).
			WithHint("add it to callers.mtls of the broker")
	}
	return Caller{Issuer: IssuerMTLS, Subject: subject, Claims: certificateClaims(leaf), Admin: admin}, nil
}

// checkChains verifies that the TLS server verified the certificate, and that a chain of it has not expired since: a
// connection, or a session that is resumed, can outlive its certificate.
func checkChains(state *tls.ConnectionState, now time.Time) error {
	if !verified(state) {
		return errors.New("no client CA of the broker issued it")
	}
	valid := func(c *x509.Certificate) bool { return !now.Before(c.NotBefore) && !now.After(c.NotAfter) }
	for _, chain := range state.VerifiedChains {
		if len(chain) > 0 && chain[0].Equal(state.PeerCertificates[0]) &&
			!slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return !valid(c) }) {
			return nil
		}
	}
	return errors.New("it, or its CA, is not valid now")
}

// certificateName returns the SPIFFE ID of a certificate or, if it has none, its subject as in RFC 4514.
func certificateName(leaf *x509.Certificate) (string, error) {
	if leaf.IsCA {
		return "", errors.New("it is a CA's")
	}
	if len(leaf.URIs) > maxNames || len(leaf.DNSNames) > maxNames {
		return "", fmt.Errorf("it has more than %d names", maxNames)
	}
	isSPIFFE := func(u *url.URL) bool { return strings.EqualFold(u.Scheme, "spiffe") }
	if !slices.ContainsFunc(leaf.URIs, isSPIFFE) {
		return subjectName(leaf.RawSubject)
	}
	if len(leaf.URIs) > 1 { // SPIFFE's X509-SVID, section 2
		return "", errors.New("it has a SPIFFE ID and another URI")
	}
	id, err := spiffeid.FromURI(leaf.URIs[0])
	if err != nil {
		return "", fmt.Errorf("its SPIFFE ID is malformed: %w", err)
	}
	if id.Path() == "" {
		return "", errors.New("its SPIFFE ID has no path, so it is a trust domain's")
	}
	return id.String(), nil
}

// subjectName returns a subject in DER as RFC 4514 writes it. Unlike pkix.Name, it keeps the order of the attributes
// and repeated ones, so that two subjects never have the same text.
func subjectName(raw []byte) (string, error) {
	var sequence pkix.RDNSequence
	if rest, err := asn1.Unmarshal(raw, &sequence); err != nil || len(rest) > 0 {
		return "", errors.New("its subject is malformed")
	}
	name := sequence.String()
	switch {
	case name == "":
		return "", errors.New("it has neither a SPIFFE ID nor a subject")
	case len(name) > maxSubject || strings.ContainsFunc(name, unicode.IsControl):
		return "", errors.New("its subject is too long, or has control characters")
	}
	return name, nil
}

// certificateClaims returns what policies can read of a certificate.
func certificateClaims(leaf *x509.Certificate) map[string]any {
	uris := make([]string, len(leaf.URIs))
	for n, u := range leaf.URIs {
		uris[n] = u.String()
	}
	subject, err := subjectName(leaf.RawSubject)
	if err != nil {
		subject = ""
	}
	return map[string]any{
		"san_uri":             list(uris),
		"san_dns":             list(leaf.DNSNames),
		"serial":              leaf.SerialNumber.Text(16),
		"subject":             subject,
		"common_name":         leaf.Subject.CommonName,
		"organization":        list(leaf.Subject.Organization),
		"organizational_unit": list(leaf.Subject.OrganizationalUnit),
	}
}

// list returns texts as a list of claims.
func list(texts []string) []any {
	values := make([]any, len(texts))
	for n, text := range texts {
		values[n] = text
	}
	return values
}

// checkCertificateName fails for a text that no certificate has as its name.
func checkCertificateName(name string) error {
	if strings.HasPrefix(strings.ToLower(name), "spiffe:") {
		id, err := spiffeid.FromString(name)
		if err == nil && id.Path() == "" {
			err = errors.New("it is a trust domain")
		}
		if err != nil {
			return fmt.Errorf("%q is not a SPIFFE ID: %w", name, err)
		}
		return nil
	}
	if !strings.Contains(name, "=") {
		return fmt.Errorf("%q is neither a SPIFFE ID nor a subject", name)
	}
	return nil
}
