package ca

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Bounds of a certificate request, which is untrusted input.
const (
	requestFileLimit  = 64 << 10 // bytes of the PEM file; a request has one or two kilobytes
	subjectLimit      = 1 << 10  // bytes of its subject
	subjectAttributes = 16
)

var requestLimits = bound.Limits{Bytes: 16 << 10, Depth: bound.Depth, Elements: 500}

// readRequest reads the certificate request (PKCS #10) in a PEM file. It fails with Invalid unless the request is
// signed by its own key and the key has a spec of Notation's.
func readRequest(path string) (*x509.CertificateRequest, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the certificate request: %w", err).
			WithHint("check the path, and that this user can read the file")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, requestFileLimit+1))
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the certificate request: %w", err).WithHint("check the file")
	}
	return parseRequest(data, path)
}

func parseRequest(data []byte, path string) (*x509.CertificateRequest, error) {
	if len(data) > requestFileLimit {
		return nil, failure.New(failure.Invalid, "the file %s is larger than %d bytes", path, requestFileLimit).
			WithHint("name a file with the certificate request alone")
	}
	block, rest := pem.Decode(data)
	if block == nil || !isRequest(block) {
		return nil, failure.New(failure.Invalid, "there is no PEM certificate request in %s", path).
			WithHint("name a PEM file as 'notation-hsm cert csr' prints it")
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, failure.New(failure.Invalid,
			"the file %s has more than a certificate request: %.50q follows", path, more.Type).
			WithHint("give each certificate request a file of its own")
	}
	if err := bound.DER(block.Bytes, requestLimits); err != nil {
		return nil, failure.New(failure.Invalid, "cannot parse the certificate request in %s: %w", path, err).
			WithHint("generate the request again")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot parse the certificate request in %s: %w", path, err).
			WithHint("generate the request again")
	}
	// Before its signature is verified, which takes long with a long key.
	if _, err := key.SpecOf(request.PublicKey); err != nil {
		return nil, err
	}
	if err := request.CheckSignature(); err != nil {
		return nil, failure.New(failure.Invalid, "the certificate request in %s is not signed by its own key: %w", path, err).
			WithHint("generate the request again, with the key that it is for")
	}
	return request, nil
}

func isRequest(block *pem.Block) bool {
	return block.Type == "CERTIFICATE REQUEST" || block.Type == "NEW CERTIFICATE REQUEST"
}

// requestedSubject verifies that the subject of a request can be used unchanged: it is short, and every character and
// attribute of it is visible when it is shown.
func requestedSubject(request *x509.CertificateRequest, path string) error {
	refuse := func(format string, args ...any) error {
		return failure.New(failure.Invalid,
			"cannot use the subject of the request in %s: %w", path, fmt.Errorf(format, args...)).
			WithHint("set the subject with --subject")
	}
	if len(request.RawSubject) > subjectLimit {
		return refuse("it has more than %d bytes", subjectLimit)
	}
	if request.Subject.CommonName == "" {
		return refuse("it has no common name (CN)")
	}
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(request.RawSubject, &name); err != nil {
		return refuse("%w", err)
	}
	count := 0
	seen := map[string]bool{}
	for _, rdn := range name {
		for _, attribute := range rdn {
			if count++; count > subjectAttributes {
				return refuse("it has more than %d attributes", subjectAttributes)
			}
			id := attribute.Type.String()
			if shown := id == "2.5.4.3" || id == "2.5.4.5"; shown && seen[id] { // pkix.Name has room for one
				return refuse("its attribute %s occurs twice, and only one would be shown", id)
			}
			seen[id] = true
			value, isText := attribute.Value.(string)
			if !isText {
				return refuse("its attribute %s is not text", id)
			}
			for _, r := range value {
				if !unicode.IsPrint(r) {
					return refuse("its attribute %s has the character %U, which is not visible", attribute.Type, r)
				}
			}
		}
	}
	return nil
}

// proposal describes the certificate that would be issued for a request: what it takes from the request, what it
// ignores, and which certificates the key and the subject already have.
func (a *Authority) proposal(l *ledger, request *x509.CertificateRequest, template *x509.Certificate) (Part, error) {
	spec, err := key.SpecOf(request.PublicKey)
	if err != nil {
		return Part{}, err
	}
	fingerprint, err := certs.KeyFingerprint(request.PublicKey)
	if err != nil {
		return Part{}, err
	}
	holders, err := l.holders(template, fingerprint)
	if err != nil {
		return Part{}, err
	}
	subject, asked := template.Subject.String(), request.Subject.String()
	rows := [][]string{{"Subject:", subject}}
	// Letters of other scripts may look like those of another subject.
	if ascii := fmt.Sprintf("%+q", subject); ascii != fmt.Sprintf("%q", subject) {
		rows = append(rows, []string{"Subject in ASCII:", ascii})
	}
	if asked != subject {
		rows = append(rows, []string{"Subject requested:", fmt.Sprintf("%.500q, ignored", asked)})
	}
	rows = append(rows, entryRows("Subject has:", "another key, by certificate ", holders)...)
	rows = append(rows, []string{"Key:", string(spec.Name)}, []string{"Key SHA-256:", fingerprint})
	var own []Entry
	for _, e := range l.entries {
		if e.PublicKey == fingerprint {
			own = append(own, e)
		}
	}
	if len(own) == 0 {
		rows = append(rows, []string{"Key has:", "no certificate of this CA"})
	}
	rows = append(rows, entryRows("Key has:", "certificate ", own)...)
	rows = append(rows, []string{"Also requested:", requestedExtensions(request)})
	described := certs.Describe(template, a.Certificate().Subject.String())[2:] // without subject and issuer
	return Part{"Certificate of the CA " + a.Name, append(rows, described...)}, nil
}

// entryRows describes the newest of some certificates, and the number of older ones.
func entryRows(title, before string, entries []Entry) (rows [][]string) {
	const shown = 5
	more := len(entries) - shown
	if more > 0 {
		rows = append(rows, []string{title, fmt.Sprintf("%d older certificates, and:", more)})
		entries = entries[more:]
	}
	for _, e := range entries {
		rows = append(rows, []string{title, before + e.String()})
	}
	return rows
}

// String describes the certificate in one line.
func (e Entry) String() string {
	line := fmt.Sprintf("%s of %q, %s", e.Serial, e.Subject, e.State())
	switch {
	case e.Revoked != nil:
		return line + " since " + e.Revoked.Format(time.DateOnly) + " (" + string(e.Reason) + ")"
	case e.der != nil:
		return line + " until " + e.NotAfter.UTC().Format(time.DateOnly)
	}
	return line
}

// requestedExtensions lists the extensions in a request, all of which are ignored.
func requestedExtensions(request *x509.CertificateRequest) string {
	known := map[string]string{
		"2.5.29.15": "key usage", "2.5.29.37": "extended key usage", "2.5.29.17": "subject alternative names",
		"2.5.29.19": "basic constraints",
		"2.5.29.30": "name constraints", "2.5.29.31": "CRL address", "2.5.29.32": "certificate policies",
	}
	var names []string
	for _, extension := range request.Extensions {
		id := extension.Id.String()
		if name, isKnown := known[id]; isKnown {
			id = name
		}
		names = append(names, id)
	}
	switch {
	case len(names) == 0:
		return "nothing"
	case len(names) > 20:
		names = append(names[:20], fmt.Sprintf("%d more", len(names)-20))
	}
	return strings.Join(names, ", ") + ": ignored"
}
