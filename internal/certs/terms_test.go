package certs

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

func extension(id asn1.ObjectIdentifier, critical bool, value []byte) []pkix.Extension {
	return []pkix.Extension{{Id: id, Critical: critical, Value: value}}
}

func number(n int) *int { return &n }

// newRoot returns a root for 10 days, whose key is thrown away.
func newRoot(t *testing.T, pathLength *int) *x509.Certificate {
	t.Helper()
	template, err := CATemplate(Terms{Subject: "CN=Root", Days: 10, PathLength: pathLength}, nil)
	if err != nil {
		t.Fatal(err)
	}
	k := newKey(t)
	cert, err := Sign(k, template, nil, k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestTermsRefused refuses terms that would make a certificate that nobody accepts.
func TestTermsRefused(t *testing.T) {
	t.Parallel()
	root, last, one := newRoot(t, nil), newRoot(t, number(0)), newRoot(t, number(1))
	for name, c := range map[string]struct {
		terms   Terms
		issuer  *x509.Certificate
		message string
	}{
		"no subject":             {Terms{Days: 1}, nil, "a CA needs a subject"},
		"malformed subject":      {Terms{Subject: "Root", Days: 1}, nil, "invalid subject"},
		"no days":                {Terms{Subject: "CN=a"}, nil, "validity of the certificate is missing"},
		"negative days":          {Terms{Subject: "CN=a", Days: -1}, nil, "invalid validity of -1 days"},
		"a thousand years":       {Terms{Subject: "CN=a", Days: 365000}, nil, "invalid validity of 365000 days"},
		"longer than its issuer": {Terms{Subject: "CN=a", Days: 11}, root, "would outlive its issuer"},
		"the issuer's subject":   {Terms{Subject: "CN=Root", Days: 1}, root, "cannot have the subject of its issuer"},
		"below a last CA":        {Terms{Subject: "CN=a", Days: 1}, last, "its path length is 0"},
		"too many below":         {Terms{Subject: "CN=a", Days: 1, PathLength: number(1)}, one, "invalid path length 1"},
		"negative path length":   {Terms{Subject: "CN=a", Days: 1, PathLength: number(-1)}, nil, "invalid path length -1"},
		"a root with a CRL":      {Terms{Subject: "CN=a", Days: 1, CDP: "http://a.example.com/a.crl"}, nil, "CRL URL"},
		"a root with OCSP":       {Terms{Subject: "CN=a", Days: 1, OCSP: "http://a.example.com"}, nil, "OCSP URL"},
		"a CRL by https":         {Terms{Subject: "CN=a", Days: 1, CDP: "https://a.example.com/a.crl"}, root, "http://"},
		"OCSP without a host":    {Terms{Subject: "CN=a", Days: 1, OCSP: "http:///ocsp"}, root, "http://"},
		"a constraint of no kind": {Terms{Subject: "CN=a", Days: 1, Permit: []string{"example.com"}}, root,
			"invalid name constraint"},
		"of another kind": {Terms{Subject: "CN=a", Days: 1, Exclude: []string{"host:example.com"}}, root,
			"invalid name constraint"},
		"an empty constraint": {Terms{Subject: "CN=a", Days: 1, Permit: []string{"dns:"}}, root, "invalid name constraint"},
		"a single address": {Terms{Subject: "CN=a", Days: 1, Permit: []string{"ip:192.0.2.1"}}, root,
			"invalid name constraint"},
	} {
		if _, err := CATemplate(c.terms, c.issuer); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), c.message) || failure.From(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, terms := range []Terms{{Days: 1, PathLength: number(1)}, {Days: 1, Permit: []string{"dns:a.example.com"}},
		{Days: 1, Exclude: []string{"dns:a.example.com"}}} {
		if _, err := LeafTemplate(terms, root); !failure.Is(err, failure.Invalid) {
			t.Errorf("a leaf with %+v: %v", terms, err)
		}
	}
	if _, err := CATemplate(Terms{Subject: "CN=a", Days: 1, PathLength: number(0)}, one); err != nil {
		t.Errorf("a path length that is one less: %v", err)
	}
}

// TestDescribe shows every field that terms set. What is shown of a template is what the certificate has.
func TestDescribe(t *testing.T) {
	t.Parallel()
	template, err := CATemplate(Terms{Subject: "CN=Below,O=Example", Days: 1, PathLength: number(0),
		CDP: "http://pki.example.com/a.crl", OCSP: "http://ocsp.example.com",
		Permit:  []string{"dns:example.com", "ip:192.0.2.0/24"},
		Exclude: []string{"email:example.com", "uri:example.com"}}, newRoot(t, nil))
	if err != nil {
		t.Fatal(err)
	}
	k := newKey(t)
	cert, err := Sign(k, template, nil, k.Public())
	if err != nil {
		t.Fatal(err)
	}
	serial := Serial(cert)
	if len(serial) != 40 || len(Fingerprint(cert)) != 64 {
		t.Errorf("serial number %s, fingerprint %s", serial, Fingerprint(cert))
	}
	shown := func(cert *x509.Certificate) map[string]string {
		fields := map[string]string{}
		for _, row := range Describe(cert, "CN=Root") {
			fields[row[0]] = row[1]
		}
		return fields
	}
	day := func(at time.Time) string { return at.UTC().Format("2006-01-02 15:04:05 MST") }
	want := map[string]string{"Subject:": "CN=Below,O=Example", "Issuer:": "CN=Root", "Serial:": serial,
		"Not before:": day(cert.NotBefore), "Not after:": day(cert.NotAfter),
		"Basic constraints:": "critical, CA, path length 0", "Key usage:": "critical, keyCertSign, cRLSign",
		"Permitted names:": "dns:example.com, ip:192.0.2.0/24", "Excluded names:": "email:example.com, uri:example.com",
		"CRL:": "http://pki.example.com/a.crl", "OCSP:": "http://ocsp.example.com"}
	if got := shown(cert); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v\nand not\n%v", got, want)
	}
	delete(want, "Serial:")
	if got := shown(template); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%v\nand not\n%v", got, want)
	}
	if !cert.PermittedDNSDomainsCritical {
		t.Error("the name constraints are not critical")
	}
}

// TestSelfSign makes certificates, and requests for certificates, that Notation accepts.
func TestSelfSign(t *testing.T) {
	t.Parallel()
	k := newKey(t)
	subject, err := ParseSubject("CN=release,OU=Build,O=Example,C=ch,ST=Zurich,L=Zurich,STREET=Main 1," +
		"POSTALCODE=8000,SERIALNUMBER=7")
	if err != nil {
		t.Fatal(err)
	}
	der, err := SelfSign(k, subject, 1)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := Parse(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := Check(certs, time.Now()); err != nil {
		t.Error(err)
	}
	if got := certs[0].Subject.String(); got != subject.String() || !strings.Contains(got, "C=CH") ||
		len(LacksIdentity(certs[0].Subject)) != 0 {
		t.Errorf("the subject is %s", got)
	}
	if again, err := Parse(Encode(certs)); err != nil || !again[0].Equal(certs[0]) {
		t.Errorf("as PEM it is %v, %v", again, err)
	}
	if der, err = Request(k, subject); err != nil {
		t.Fatal(err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil || request.CheckSignature() != nil || request.Subject.String() != subject.String() {
		t.Fatalf("%+v, %v", request, err)
	}
	template := softhsmtest.Template("release")
	template.KeyUsage, template.ExtKeyUsage, template.ExtraExtensions = 0, nil, request.Extensions
	root := softhsmtest.NewCA(t, "Root", nil)
	if err := Check([]*x509.Certificate{root.Issue(t, template, &k.PublicKey), root.Cert}, time.Now()); err != nil {
		t.Errorf("a certificate with the extensions of the request: %v", err)
	}
}

// TestSubjectRefused says which part of a subject is wrong.
func TestSubjectRefused(t *testing.T) {
	t.Parallel()
	for text, message := range map[string]string{
		"release": `the part "release" has no value`, "CN=": `the part "CN=" has no value`,
		"O=Example": "no common name", "CN=a,Colour=red": `unknown part "Colour"`, "CN=a,C=CHE": "not two letters",
		"": "has no value",
	} {
		if _, err := ParseSubject(text); !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), message) {
			t.Errorf("%q: %v", text, err)
		}
	}
	name, err := ParseSubject(`CN=a\,b\=c`)
	if err != nil || name.CommonName != "a,b=c" || strings.Join(LacksIdentity(name), " ") != "C ST O" {
		t.Errorf("%+v, %v", name, err)
	}
}
