package certs

import (
	"crypto/x509"
	"encoding/asn1"
	"strings"
	"time"

	notation "github.com/notaryproject/notation-core-go/x509"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Check verifies that Notation accepts a chain, leaf first, at a time (Notary Project signature specification,
// "Certificate Requirements"). notation-core-go decides. The failure, of kind Invalid, names the first certificate that
// breaks a rule, the rule, and what to do.
func Check(chain []*x509.Certificate, now time.Time) error {
	err := notation.ValidateCodeSigningCertChain(chain, &now)
	if err == nil {
		return nil
	}
	for i, cert := range chain {
		if what, hint := explain(cert, i == 0, now); what != "" {
			return failure.New(failure.Invalid, "Notation does not accept the certificate of %q: %s", cert.Subject, what).
				WithHint(hint)
		}
	}
	return failure.New(failure.Invalid, "Notation does not accept the certificate chain of %q: %w", chain[0].Subject, err).
		WithHint("see the certificate requirements of the Notary Project")
}

var oidKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 15}

// explain returns the first rule that a certificate breaks and what to do, or "".
func explain(cert *x509.Certificate, leaf bool, now time.Time) (what, hint string) {
	const again = "; 'notation-hsm cert self-sign' and 'cert csr' make certificates that Notation accepts"
	day := func(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 MST") }
	critical, present := keyUsage(cert)
	switch {
	case now.After(cert.NotAfter):
		return "it expired on " + day(cert.NotAfter), "renew the certificate"
	case now.Before(cert.NotBefore):
		return "it is not valid before " + day(cert.NotBefore), "wait until then, or check the clock of this machine"
	case insecure(cert.SignatureAlgorithm):
		return "its signature uses " + cert.SignatureAlgorithm.String(), "use a certificate signed with SHA-256 or better"
	case leaf && cert.IsCA:
		return "it is a CA certificate, and Notation signs with an end-entity certificate only",
			"issue a leaf certificate for the signing key" + again
	case !leaf && !cert.IsCA:
		return "it issued another certificate of the chain but is not a CA", "use an issuer with basic constraints CA:TRUE"
	case !present:
		return "it has no key usage", "issue it with the key usage extension, critical" + again
	case !critical:
		return "its key usage is not marked critical", "issue it again with a critical key usage" + again
	case leaf && (cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 || cert.KeyUsage&^allowedUsages != 0):
		return "its key usage is not digitalSignature only",
			"issue it with the key usage digitalSignature and no other" + again
	case !leaf && cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return "its key usage does not include keyCertSign", "use an issuer with the key usage keyCertSign"
	}
	if names := wrongUsages(cert); leaf && names != "" {
		return "its extended key usage includes " + names, "issue it with the extended key usage codeSigning, or none" + again
	}
	return "", ""
}

// allowedUsages are the key usages that a leaf may have.
const allowedUsages = x509.KeyUsageDigitalSignature | x509.KeyUsageContentCommitment

// keyUsage reports whether a certificate has a key usage, and whether it is critical.
func keyUsage(cert *x509.Certificate) (critical, present bool) {
	for _, e := range cert.Extensions {
		if e.Id.Equal(oidKeyUsage) {
			return e.Critical, true
		}
	}
	return false, false
}

// insecure reports whether a signature algorithm uses MD5, SHA-1 or an older hash.
func insecure(a x509.SignatureAlgorithm) bool {
	switch a {
	case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
		return true
	}
	return false
}

// wrongUsages returns the names of the extended key usages that a leaf must not have.
func wrongUsages(cert *x509.Certificate) string {
	var names []string
	for _, usage := range cert.ExtKeyUsage {
		for wrong, name := range map[x509.ExtKeyUsage]string{
			x509.ExtKeyUsageServerAuth: "server authentication", x509.ExtKeyUsageClientAuth: "client authentication",
			x509.ExtKeyUsageEmailProtection: "email protection", x509.ExtKeyUsageTimeStamping: "time stamping",
			x509.ExtKeyUsageOCSPSigning: "OCSP signing",
		} {
			if usage == wrong {
				names = append(names, name)
			}
		}
	}
	return strings.Join(names, " and ")
}
