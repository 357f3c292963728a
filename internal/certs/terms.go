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

// Terms is what may be chosen about a certificate. The rest follows from what the certificate is for.
type Terms struct {
	Subject string `yaml:"subject"` // as ParseSubject reads it
	Days    int    `yaml:"days"`    // how long it is valid
	CDP     string `yaml:"cdp"`     // URL that its issuer's CRL is published at
	OCSP    string `yaml:"ocsp"`    // URL of an OCSP responder

	// For a CA alone.
	PathLength *int     `yaml:"path-length"` // how many CAs may follow below; nil is no limit
	Permit     []string `yaml:"permit"`      // name constraints, such as dns:example.com
	Exclude    []string `yaml:"exclude"`
}

// LeafTemplate is a signer's certificate that Notation accepts: not a CA, key usage digital signature (critical),
// extended key usage code signing. Without an issuer it is self-signed. Without a subject in the terms the caller sets
// one.
func LeafTemplate(t Terms, issuer *x509.Certificate) (*x509.Certificate, error) {
	if t.PathLength != nil || len(t.Permit) > 0 || len(t.Exclude) > 0 {
		return nil, failure.New(failure.Invalid, "path length and name constraints have no meaning in a signer's certificate").
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

// CATemplate is the certificate of a CA, which signs certificates and CRLs: a root without an issuer, else an
// intermediate.
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
			return nil, failure.New(failure.Invalid, "%d is no path length",
				*t.PathLength).
				WithHint("it is the number of CAs that may follow below: 0 for a CA that issues to signers alone")
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
		return nil, failure.New(failure.Invalid, "nothing says how many days the certificate is to be valid").
			WithHint("as in: --days 365 (in a ceremony: days: 365)")
	}
	if t.Days < 1 || t.Days > 36525 {
		return nil, failure.New(failure.Invalid, "a certificate can't be valid for %d days", t.Days).
			WithHint("give it at least one day and at most a hundred years")
	}
	start := time.Now().UTC().Truncate(time.Second).Add(-time.Minute) // another clock may be slow
	if issuer != nil && start.Before(issuer.NotBefore) {
		start = issuer.NotBefore
	}
	template := &x509.Certificate{NotBefore: start, NotAfter: start.AddDate(0, 0, t.Days), BasicConstraintsValid: true}
	if issuer != nil && template.NotAfter.After(issuer.NotAfter) {
		hint := "make a new CA"
		if left := int(issuer.NotAfter.Sub(start).Hours() / 24); left > 0 {
			hint = fmt.Sprintf("at most %d days are left; or make a new CA first", left)
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
			return nil, failure.New(failure.Invalid,
				"a root can't be revoked, so an address for %s has no meaning in it", l.name).
				WithHint("leave it out: a root is put into trust stores, and taken out of them")
		}
		// The list and the answers are signed, and https would need a revocation check of its own; Notation takes http alone.
		if u, err := url.Parse(l.url); err != nil || u.Scheme != "http" || u.Host == "" {
			return nil, failure.New(failure.Invalid,
				"the %s address %q is no http:// address, and Notation takes no other", l.name, l.url).
				WithHint("as in: http://pki.example.com/signing.crl")
		}
		*l.into = []string{l.url}
	}
	return template, nil
}

// allowsCA holds a new CA against what its issuer may certify.
func allowsCA(issuer, template *x509.Certificate) error {
	if issuer.Subject.String() == template.Subject.String() {
		return failure.New(failure.Invalid, "an intermediate can't have the subject of its issuer, %q", issuer.Subject).
			WithHint("give each CA a subject of its own")
	}
	limit, limited := pathLength(issuer)
	if !limited {
		return nil
	}
	if limit == 0 {
		return failure.New(failure.Invalid, "the CA %q may not issue to CAs: its path length is 0",
			issuer.Subject).
			WithHint("use another --parent")
	}
	if own, set := pathLength(template); set && own >= limit {
		hint := fmt.Sprintf("use a path length of at most %d", limit-1)
		return failure.New(failure.Invalid, "a path length of %d is too much below %q, whose own is %d", own,
			issuer.Subject, limit).
			WithHint(hint)
	}
	return nil
}

// pathLength returns the path length constraint of a CA, if it has one; crypto/x509 has two ways to say that it has
// none.
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
			const hint = "write dns:example.com, email:example.com, uri:example.com or ip:192.0.2.0/24"
			kind, value, _ := strings.Cut(text, ":")
			into := map[string]*[]string{"dns": side.dns, "email": side.email, "uri": side.uri}[strings.ToLower(kind)]
			switch {
			case value == "":
				return failure.New(failure.Invalid, "the name constraint %q names nothing", text).WithHint(hint)
			case into != nil:
				*into = append(*into, value)
			case strings.EqualFold(kind, "ip"):
				_, network, err := net.ParseCIDR(value)
				if err != nil {
					return failure.New(failure.Invalid, "the name constraint %q is no range of addresses", text).WithHint(hint)
				}
				*side.ip = append(*side.ip, network)
			default:
				return failure.New(failure.Invalid, "the name constraint %q is of an unknown kind", text).WithHint(hint)
			}
			template.PermittedDNSDomainsCritical = true // the whole extension, despite the name
		}
	}
	return nil
}
