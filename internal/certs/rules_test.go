package certs

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestRules names the certificate and the rule that it breaks, and what to do.
func TestRules(t *testing.T) {
	t.Parallel()
	root := softhsmtest.NewCA(t, "Root", nil)
	public := &newKey(t).PublicKey
	critical := []byte{3, 2, 7, 0x80} // digitalSignature
	for name, c := range map[string]struct {
		leaf func(*x509.Certificate)
		rule string
		hint string
	}{
		"accepted": {func(*x509.Certificate) {}, "", ""},
		"expired":  {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "expired on", "renew"},
		"not yet":  {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, "not valid before", "clock"},
		"a CA": {func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign },
			"is a CA certificate", "leaf"},
		"no usage": {func(c *x509.Certificate) { c.KeyUsage = 0 }, "no key usage", "cert csr"},
		"two usages": {func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement },
			"digitalSignature only", "no other"},
		"not critical": {func(c *x509.Certificate) {
			c.KeyUsage, c.ExtraExtensions = 0, extension(oidKeyUsage, false, critical)
		}, "not marked critical", "critical"},
		"other uses": {func(c *x509.Certificate) {
			c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageTimeStamping}
		}, "server authentication and time stamping", "codeSigning"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			template := softhsmtest.Template("leaf")
			c.leaf(template)
			expectRule(t, []*x509.Certificate{root.Issue(t, template, public), root.Cert}, "leaf", c.rule, c.hint)
		})
	}
	for name, c := range map[string]struct {
		issuer func(*x509.Certificate)
		rule   string
	}{
		"not a CA": {func(c *x509.Certificate) { c.IsCA = false }, "is not a CA"},
		"signs only": {func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature },
			"does not include keyCertSign"},
		"an expired CA":    {func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }, "expired on"},
		"a future CA":      {func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Hour) }, "not valid before"},
		"a CA of no usage": {func(c *x509.Certificate) { c.KeyUsage = 0 }, "no key usage"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			intermediate := softhsmtest.NewCA(t, "Intermediate", root)
			template := softhsmtest.Template("Intermediate")
			template.IsCA, template.KeyUsage, template.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
			c.issuer(template)
			chain := []*x509.Certificate{intermediate.Issue(t, softhsmtest.Template("leaf"), public),
				root.Issue(t, template, &intermediate.Key.PublicKey), root.Cert}
			expectRule(t, chain, "Intermediate", c.rule, "")
		})
	}
	// Whatever this package cannot explain, notation-core-go still refuses.
	stranger := softhsmtest.NewCA(t, "Root", nil)
	chain := []*x509.Certificate{root.Issue(t, softhsmtest.Template("leaf"), public), stranger.Cert}
	expectRule(t, chain, "leaf", "certificate chain", "")
}

func expectRule(t *testing.T, chain []*x509.Certificate, name, rule, hint string) {
	t.Helper()
	err := Check(chain, time.Now())
	if rule == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), rule) || !strings.Contains(err.Error(), name) ||
		!strings.Contains(failure.From(err).Hint, hint) {
		t.Errorf("%v, hint %q", err, failure.From(err).Hint)
	}
}
