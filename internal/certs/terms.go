package certs

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Terms are the choices for a certificate. Everything else follows from what the certificate is for.
type Terms struct {
	Subject string `yaml:"subject"` // for ParseSubject
	Days    int    `yaml:"days"`    // validity
	CDP     string `yaml:"cdp"`     // URL of its issuer's CRL
	OCSP    string `yaml:"ocsp"`    // URL of an OCSP responder

	// For CAs only.
	PathLength *int     `yaml:"path-length"` // how many CAs may follow below; nil means any
	Permit     []string `yaml:"permit"`      // name constraints, such as dns:example.com
	Exclude    []string `yaml:"exclude"`
}

// LeafTemplate returns the template of a leaf certificate that Notation accepts: not a CA, with the critical key usage
// digitalSignature and the extended key usage codeSigning. Without an issuer it is for a self-signed certificate.
// Without a subject in the terms, the caller sets one.
func LeafTemplate(t Terms, issuer *x509.Certificate) (*x509.Certificate, error) {
	if t.PathLength != nil || len(t.Permit) > 0 || len(t.Exclude) > 0 {
		return nil, failure.New(failure.Invalid, "a leaf certificate cannot have a path length or name constraints").
			WithHint("set them on the CA")
	}
	template, err := t.template(issuer)
	if err != nil {
		return nil, err
	}
	template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageDigitalSignature,
		[]x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	return template, nil
}

// CATemplate returns the template of a CA certificate, whose key signs certificates and CRLs. Without an issuer it is
// for a root, otherwise for an intermediate.
func CATemplate(t Terms, issuer *x509.Certificate) (*x509.Certificate, error) {
	template, err := t.template(issuer)
	if err != nil {
		return nil, err
	}
	template.IsCA, template.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
	if template.Subject.CommonName == "" {
		return nil, failure.New(failure.Invalid, "a CA needs a subject").
			WithHint(`as in: --subject "CN=Example Root,O=Example,C=CH,ST=Zurich"`)
	}
	if t.PathLength != nil {
		if *t.PathLength < 0 {
			return nil, failure.New(failure.Invalid, "invalid path length %d", *t.PathLength).
				WithHint("give the number of CAs that may follow below, 0 for a CA that issues to signers only")
		}
		template.MaxPathLen, template.MaxPathLenZero = *t.PathLength, *t.PathLength == 0
	}
	if issuer != nil {
		if err := allowsCA(issuer, template); err != nil {
			return nil, err
		}
	}
	return template, t.constrain(template)
}

func (t Terms) template(issuer *x509.Certificate) (*x509.Certificate, error) {
	if t.Days == 0 {
		return nil, failure.New(failure.Invalid, "the validity of the certificate is missing").
			WithHint("give the number of days, as in --days 365 (in a ceremony: days: 365)")
	}
	if t.Days < 1 || t.Days > 36525 {
		return nil, failure.New(failure.Invalid, "invalid validity of %d days", t.Days).
			WithHint("give a number from 1 to 36525")
	}
	start := time.Now().UTC().Truncate(time.Second).Add(-time.Minute) // the clock of a verifier may be slow
	if issuer != nil && start.Before(issuer.NotBefore) {
		start = issuer.NotBefore
	}
	template := &x509.Certificate{NotBefore: start, NotAfter: start.AddDate(0, 0, t.Days), BasicConstraintsValid: true}
	if issuer != nil && template.NotAfter.After(issuer.NotAfter) {
		hint := "create a new CA"
		if left := int(issuer.NotAfter.Sub(start).Hours() / 24); left > 0 {
			hint = fmt.Sprintf("give at most %d days, or create a new CA first", left)
		}
		return nil, failure.New(failure.Invalid, "a certificate for %d days would outlive its issuer %q, which ends on %s",
			t.Days, issuer.Subject, issuer.NotAfter.UTC().Format(time.DateOnly)).
			WithHint(hint)
	}
	if t.Subject != "" {
		var err error
		if template.Subject, err = ParseSubject(t.Subject); err != nil {
			return nil, err
		}
	}
	for _, l := range []struct {
		url, name string
		into      *[]string
	}{{t.CDP, "CRL", &template.CRLDistributionPoints}, {t.OCSP, "OCSP", &template.OCSPServer}} {
		if l.url == "" {
			continue
		}
		if issuer == nil {
			return nil, failure.New(failure.Invalid, "a root certificate cannot have a %s URL: it cannot be revoked", l.name).
				WithHint("leave the URL out; a root is removed from trust stores instead")
		}
		// CRLs and OCSP answers are signed, and https would need a revocation check itself. Notation accepts http only.
		if u, err := url.Parse(l.url); err != nil || u.Scheme != "http" || u.Host == "" {
			return nil, failure.New(failure.Invalid, "invalid %s URL %q: it does not begin with http://", l.name, l.url).
				WithHint("write it like http://pki.example.com/signing.crl; Notation accepts no other scheme")
		}
		*l.into = []string{l.url}
	}
	return template, nil
}

// allowsCA verifies that an issuer may certify a new CA.
func allowsCA(issuer, template *x509.Certificate) error {
	if issuer.Subject.String() == template.Subject.String() {
		return failure.New(failure.Invalid, "an intermediate cannot have the subject of its issuer, %q", issuer.Subject).
			WithHint("give each CA its own subject")
	}
	limit, limited := pathLength(issuer)
	if !limited {
		return nil
	}
	if limit == 0 {
		return failure.New(failure.Invalid, "the CA %q may not issue to CAs: its path length is 0", issuer.Subject).
			WithHint("use another --parent")
	}
	if own, set := pathLength(template); set && own >= limit {
		return failure.New(failure.Invalid, "invalid path length %d: that of the issuer %q is %d", own, issuer.Subject,
			limit).WithHint(fmt.Sprintf("use a path length of at most %d", limit-1))
	}
	return nil
}

// pathLength returns the path length constraint of a CA, if it has one. crypto/x509 has two encodings of none.
func pathLength(cert *x509.Certificate) (limit int, limited bool) {
	return cert.MaxPathLen, cert.MaxPathLen > 0 || (cert.MaxPathLen == 0 && cert.MaxPathLenZero)
}

// constrain sets the name constraints (RFC 5280, section 4.2.1.10), which are critical.
func (t Terms) constrain(template *x509.Certificate) error {
	for _, side := range []struct {
		names           []string
		dns, email, uri *[]string
		ip              *[]*net.IPNet
	}{
		{t.Permit, &template.PermittedDNSDomains, &template.PermittedEmailAddresses, &template.PermittedURIDomains,
			&template.PermittedIPRanges},
		{t.Exclude, &template.ExcludedDNSDomains, &template.ExcludedEmailAddresses, &template.ExcludedURIDomains,
			&template.ExcludedIPRanges},
	} {
		for _, text := range side.names {
			kind, value, _ := strings.Cut(text, ":")
			list := map[string]*[]string{"dns": side.dns, "email": side.email, "uri": side.uri}[strings.ToLower(kind)]
			_, network, err := net.ParseCIDR(value)
			switch {
			case list != nil && value != "":
				*list = append(*list, value)
			case strings.EqualFold(kind, "ip") && err == nil:
				*side.ip = append(*side.ip, network)
			default:
				return failure.New(failure.Invalid, "invalid name constraint %q", text).
					WithHint("write dns:example.com, email:example.com, uri:example.com or ip:192.0.2.0/24")
			}
			template.PermittedDNSDomainsCritical = true // the whole extension, despite the name
		}
	}
	return nil
}
