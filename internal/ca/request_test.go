package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

type attribute struct {
	id    asn1.ObjectIdentifier
	tag   int // string type
	value string
}

var (
	commonName   = asn1.ObjectIdentifier{2, 5, 4, 3}
	organisation = asn1.ObjectIdentifier{2, 5, 4, 10}
	unit         = asn1.ObjectIdentifier{2, 5, 4, 11}
)

// rawName encodes a subject with one attribute in each RDN.
func rawName(t testing.TB, attributes ...attribute) []byte {
	t.Helper()
	var all []byte
	for _, a := range attributes {
		value := asn1.RawValue{Tag: a.tag, Bytes: []byte(a.value)}
		der, err := asn1.Marshal([]any{a.id, value})
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, asn1Wrap(t, asn1.TagSet, der)...)
	}
	return asn1Wrap(t, asn1.TagSequence, all)
}

func asn1Wrap(t testing.TB, tag int, content []byte) []byte {
	t.Helper()
	der, err := asn1.Marshal(asn1.RawValue{Tag: tag, IsCompound: true, Bytes: content})
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// TestIdentity compares subjects with "CN=Release Team,O=Example" in UTF8String.
func TestIdentity(t *testing.T) {
	const utf8, printable, t61, bmp, ia5 = asn1.TagUTF8String, asn1.TagPrintableString, asn1.TagT61String,
		asn1.TagBMPString, asn1.TagIA5String
	org := attribute{organisation, utf8, "Example"}
	own, err := parseIdentity(rawName(t, attribute{commonName, utf8, "Release Team"}, org))
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		name []attribute
		same bool
	}{
		"itself":          {[]attribute{{commonName, utf8, "Release Team"}, org}, true},
		"case":            {[]attribute{{commonName, utf8, "rElease TEAM"}, org}, true},
		"space":           {[]attribute{{commonName, utf8, " Release   Team "}, org}, true},
		"no space":        {[]attribute{{commonName, utf8, "ReleaseTeam"}, org}, true},
		"hard space":      {[]attribute{{commonName, utf8, "Release\u00a0Team"}, org}, true},
		"zero width":      {[]attribute{{commonName, utf8, "Rel\u200bease Te\u00adam"}, org}, true},
		"a control":       {[]attribute{{commonName, utf8, "Release\x00 Team\x7f"}, org}, true},
		"PrintableString": {[]attribute{{commonName, printable, "Release Team"}, org}, true},
		"T61String":       {[]attribute{{commonName, t61, "Release Team"}, org}, true},
		"IA5String":       {[]attribute{{commonName, ia5, "Release Team"}, org}, true},
		"BMPString": {[]attribute{{commonName, bmp, "\x00R\x00e\x00l\x00e\x00a\x00s\x00e\x00 \x00T\x00e\x00a\x00m"},
			org}, true},
		"full width":        {[]attribute{{commonName, utf8, "Ｒｅｌｅａｓｅ Team"}, org}, true},
		"a long s":          {[]attribute{{commonName, utf8, "Releaſe Team"}, org}, true},
		"order":             {[]attribute{org, {commonName, utf8, "Release Team"}}, true},
		"more":              {[]attribute{{commonName, utf8, "Release Team"}, {unit, utf8, "Other"}, org}, true},
		"another CN first":  {[]attribute{{commonName, utf8, "Mallory"}, {commonName, utf8, "Release Team"}, org}, true},
		"another CN after":  {[]attribute{{commonName, utf8, "Release Team"}, {commonName, utf8, "Mallory"}, org}, true},
		"less":              {[]attribute{{commonName, utf8, "Release Team"}}, true},
		"another CN":        {[]attribute{{commonName, utf8, "Release Teams"}, org}, false},
		"another O":         {[]attribute{{commonName, utf8, "Release Team"}, {organisation, utf8, "Example 2"}}, false},
		"in another place":  {[]attribute{{unit, utf8, "Release Team"}, {commonName, utf8, "Mallory"}, org}, false},
		"nothing":           {nil, false},
		"nothing in common": {[]attribute{{commonName, utf8, "Mallory"}, {unit, utf8, "x"}}, false},
	} {
		id, err := parseIdentity(rawName(t, c.name...))
		if err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if own.contains(id) != c.same || id.contains(own) != c.same {
			t.Errorf("%s: it is the same: %v", what, !c.same)
		}
	}
	if _, err := parseIdentity(rawName(t, attribute{commonName, asn1.TagInteger, "\x01"})); err == nil {
		t.Error("a number is a name")
	}
}

// TestSubjectOfAnother verifies that no key gets the subject of another one's certificate, be that valid or revoked,
// unless it is named; and that a key gets its own again.
func TestSubjectOfAnother(t *testing.T) {
	a := newTestCA(t, t.TempDir(), "root", nil)
	own := newTestKey(t)
	template := func(subject string) *x509.Certificate {
		made, err := certs.LeafTemplate(Terms{Subject: subject, Days: 10}, a.Certificate())
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	chain, err := a.issue(a.key, a.mustRead(), template("CN=release,O=Example"), own.Public())
	if err != nil {
		t.Fatal(err)
	}
	serial, stranger := certs.Serial(chain[0]), newTestKey(t).Public()
	check := func() {
		t.Helper()
		l := a.mustRead()
		for _, subject := range []string{"CN=release,O=Example", "CN=RELEASE,O= example", "O=Example,CN=release,OU=other"} {
			err := a.checkCertifiable(l, template(subject), stranger, nil)
			if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), serial) ||
				!strings.Contains(failure.From(err).Hint, "--allow-subject-of "+serial) {
				t.Errorf("%s: %v", subject, err)
			}
			err = a.checkCertifiable(l, template(subject), stranger, AllowSubjectOf("01"))
			if !failure.Is(err, failure.Denied) {
				t.Errorf("%s is allowed by another serial: %v", subject, err)
			}
			if err := a.checkCertifiable(l, template(subject), stranger, AllowSubjectOf(strings.ToUpper(serial))); err != nil {
				t.Errorf("%s is not allowed: %v", subject, err)
			}
			if err := a.checkCertifiable(l, template(subject), own.Public(), nil); err != nil {
				t.Errorf("a key does not get its own subject %s: %v", subject, err)
			}
		}
		if err := a.checkCertifiable(l, template("CN=other,O=Example"), stranger, nil); err != nil {
			t.Error(err)
		}
		if err := a.checkCertifiable(l, template("CN=Root"), stranger,
			AllowSubjectOf(certs.Serial(a.Certificate()))); !failure.Is(err, failure.Invalid) {
			t.Errorf("a signer has the subject of the CA: %v", err)
		}
	}
	check()
	a.revoke(serial, true)
	check()
}

// request makes a certificate request, and returns PEM.
func request(t testing.TB, template *x509.CertificateRequest, key any) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func TestRequestBounds(t *testing.T) {
	good := request(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "release"}}, newTestKey(t))
	named := func(attributes ...attribute) []byte {
		return request(t, &x509.CertificateRequest{RawSubject: rawName(t, attributes...)}, newTestKey(t))
	}
	cn := func(value string) attribute { return attribute{commonName, asn1.TagUTF8String, value} }
	many := make([]attribute, subjectAttributes)
	for i := range many {
		many[i] = attribute{unit, asn1.TagUTF8String, fmt.Sprint(i)}
	}
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	small, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	extensions := make([]pkix.Extension, 400)
	for i := range extensions {
		extensions[i].Id = asn1.ObjectIdentifier{1, 2, 3, i}
	}
	for what, c := range map[string]struct {
		data   []byte
		reason string
	}{
		"a long file":  {append(bytes.Clone(good), make([]byte, requestFileLimit)...), "is larger than"},
		"two requests": {append(bytes.Clone(good), good...), "more than a certificate request"},
		"a key with it": {append(bytes.Clone(good), "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"...),
			"more than a certificate request"},
		"a long request": {request(t, &x509.CertificateRequest{Subject: pkix.Name{CommonName: strings.Repeat("x", 17<<10)}},
			newTestKey(t)), "cannot parse"},
		"many extensions": {request(t, &x509.CertificateRequest{ExtraExtensions: extensions}, newTestKey(t)),
			"cannot parse"},
		"deep":            {pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: deep(t, 20)}), "nested deeper"},
		"a weak key":      {request(t, &x509.CertificateRequest{}, weak), "RSA-1024"},
		"another curve":   {request(t, &x509.CertificateRequest{}, small), "P-224"},
		"a long subject":  {named(cn(strings.Repeat("x", subjectLimit))), "more than 1024 bytes"},
		"many attributes": {named(append(many, cn("release"))...), "more than 16 attributes"},
		"no common name":  {named(many[0]), "no common name"},
		"a control":       {named(cn("rel\x1b[2Jease")), "U+001B, which is not visible"},
		"an override":     {named(cn("rel\u202eease")), "U+202E, which is not visible"},
		"a hard space":    {named(cn("rel\u00a0ease")), "U+00A0, which is not visible"},
		"two names":       {named(cn("release"), cn("mallory")), "2.5.4.3 occurs twice"},
		"a number":        {named(cn("release"), attribute{unit, asn1.TagInteger, "\x01"}), "is not text"},
	} {
		parsed, err := parseRequest(c.data, "file")
		if err == nil {
			err = requestedSubject(parsed, "file")
		}
		if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %v, wanted %q", what, err, c.reason)
		}
	}
}

func deep(t testing.TB, depth int) (der []byte) {
	for range depth {
		der = asn1Wrap(t, asn1.TagSequence, der)
	}
	return der
}

// TestRequestIsAgreedTo verifies that a person sees what of a request is taken and what is not, and that without a yes
// nothing happens.
func TestRequestIsAgreedTo(t *testing.T) {
	a := newTestCA(t, t.TempDir(), "root", nil)
	requester := newTestKey(t)
	file := filepath.Join(t.TempDir(), "release.csr")
	template := &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "rеlease"}, DNSNames: []string{"example.com"}, // with a Cyrillic letter
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Value: []byte{0x30, 3, 1, 1, 0xff}},
			{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}},
	}
	if err := os.WriteFile(file, request(t, template, requester), 0o600); err != nil {
		t.Fatal(err)
	}
	before := a.file(ledgerFile)
	no := errors.New("no")
	var text string
	see := func(shown Part) error {
		text = fmt.Sprint(shown)
		return no
	}
	if _, err := a.IssueRequest(t.Context(), file, nil, Terms{Days: 5}, nil, see); !errors.Is(err, no) {
		t.Errorf("%v", err)
	}
	fingerprint, err := certs.KeyFingerprint(requester.Public())
	if err != nil {
		t.Fatal(err)
	}
	for _, wanted := range []string{"Certificate of the CA root", "CN=rеlease", `CN=r\u0435lease`, "EC-256", fingerprint,
		"no certificate of this CA", "subject alternative names, basic constraints, 1.2.3: ignored", "critical, not a CA",
		"codeSigning"} {
		if !strings.Contains(text, wanted) {
			t.Errorf("%q is not shown: %s", wanted, text)
		}
	}
	if _, err := a.IssueRequest(t.Context(), file, nil, Terms{Days: 5, Subject: "CN=given"}, nil, see); !errors.Is(err,
		no) || !strings.Contains(text, "CN=given") || !strings.Contains(text, "lease\", ignored") {
		t.Errorf("%v: %s", err, text)
	}
	if !bytes.Equal(a.file(ledgerFile), before) {
		t.Error("without a yes, the ledger has changed")
	}
}

// FuzzRequest verifies that no file crashes or costs more than its size allows, and that what is taken over as a
// subject can be seen.
func FuzzRequest(f *testing.F) {
	f.Add(request(f, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "release", Organization: []string{"Example"}}}, newTestKey(f)))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----\nMAA=\n-----END CERTIFICATE REQUEST-----\n"))
	f.Add([]byte(strings.Repeat("-----BEGIN X-----\n", 100)))
	budget := boundtest.Budget{Bytes: 1 << 20, BytesPerByte: 200}
	f.Fuzz(func(t *testing.T, data []byte) {
		budget.Check(t, len(data), func() {
			parsed, err := parseRequest(data, "file")
			if err == nil {
				err = requestedSubject(parsed, "file")
			}
			if err != nil {
				if !failure.Is(err, failure.Invalid) {
					t.Errorf("%q: %v is not a failure of the user's", data, err)
				}
				return
			}
			if strings.ContainsAny(parsed.Subject.CommonName, "\x00\x1b\n\u202e\u200b") {
				t.Errorf("the subject %q is taken", parsed.Subject)
			}
			_, _ = parseIdentity(parsed.RawSubject)
		})
	})
}
