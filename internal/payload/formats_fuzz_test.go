package payload

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
)

// FuzzFormats verifies that one format at most reads any bytes, and what other libraries say of bytes that are read:
// that a statement and a simple signing document are JSON without white space, that go-securesystemslib encodes what
// TUF metadata says to the same bytes, and that crypto/x509 parses a certificate.
func FuzzFormats(f *testing.F) {
	for _, data := range seeds(f) {
		f.Add(data)
	}
	f.Add([]byte(tufTargetsDocument))
	f.Add(envelope(dsseStatement))
	f.Fuzz(func(t *testing.T, data []byte) {
		if read, _ := readersOf(data); len(read) > 1 {
			t.Errorf("%q read it", read)
		}
		a, err := Read(data)
		if err != nil {
			return
		}
		switch a.Format {
		case DSSE:
			_, body, _ := bytes.Cut(data, []byte("{"))
			checkCompact(t, append([]byte("{"), body...))
		case Cosign:
			checkCompact(t, data)
		case TUF:
			checkCanonical(t, data)
		case X509:
			checkParses(t, a, data)
		}
	})
}

// checkCompact verifies that text is JSON without white space, but for a space after each comma.
func checkCompact(t *testing.T, text []byte) {
	var compact bytes.Buffer
	if err := json.Compact(&compact, text); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(compact.Bytes(), text) && len(text)-compact.Len() > bytes.Count(text, []byte(", ")) {
		t.Errorf("%q has white space", text)
	}
}

// checkCanonical verifies that go-securesystemslib encodes what metadata says to the same bytes.
func checkCanonical(t *testing.T, data []byte) {
	text, err := fromCanonical(data)
	if err != nil {
		t.Fatal(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		t.Fatal(err)
	}
	encoded, err := cjson.EncodeCanonical(value)
	if err != nil || !bytes.Equal(encoded, data) {
		t.Errorf("%q, not %q, %v", encoded, data, err)
	}
}

// checkParses verifies that crypto/x509 parses a certificate with the same serial number and times.
func checkParses(t *testing.T, a *Artifact, data []byte) {
	if a.Encoding != "certificate" {
		return
	}
	var signed struct {
		Version   asn1.RawValue
		Serial    asn1.RawValue
		Algorithm asn1.RawValue
	}
	if _, err := asn1.Unmarshal(data, &signed); err != nil {
		t.Fatal(err)
	}
	whole, err := withSignature(data, signed.Algorithm.FullBytes)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(whole)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%x", cert.SerialNumber.Bytes()) != a.Annotations["serial"] || !cert.NotAfter.Equal(a.Expiry) ||
		!cert.NotBefore.Equal(a.SigningTime) || cert.IsCA != strings.Contains(a.Annotations["basicConstraints"], "CA") &&
		cert.IsCA == strings.Contains(a.Annotations["basicConstraints"], "not a CA") {
		t.Errorf("%+v, and crypto/x509 reads %v, %v, %v, %v", a, cert.SerialNumber, cert.NotBefore, cert.NotAfter, cert.IsCA)
	}
}

// TestFormatsCost verifies that large documents cost no more memory than their size allows.
func TestFormatsCost(t *testing.T) {
	cost := boundtest.Budget{Bytes: 8 << 20, BytesPerByte: 200}
	parts := x509Parts()
	var entries [][]byte
	for i := range 9000 {
		serial := []byte{2, 3, 1, byte(i >> 8), byte(i)}
		entries = append(entries, element(0x30, serial, parts["now"]))
	}
	list := element(0x30, parts["v2"], parts["algorithm"], parts["name"], parts["now"], parts["later"],
		element(0x30, entries...), parts["crl extensions"])
	targets := make([]string, 1900)
	for i := range targets {
		targets[i] = fmt.Sprintf(`"%05d":{"hashes":{"sha256":"%s"},"length":1}`, i, testHash)
	}
	for name, data := range map[string][]byte{
		"crl": list,
		"tuf": []byte(`{"_type":"targets","expires":"2027-01-02T03:04:05Z","spec_version":"1.0.31","targets":{` +
			strings.Join(targets, ",") + `},"version":1}`),
		"dsse": envelope(strings.Replace(dsseStatement, `"c":{}`, `"c":[`+strings.Repeat("0,", 49000)+`0]`, 1)),
	} {
		var err error
		cost.Check(t, len(data), func() { _, err = Read(data) })
		if err != nil {
			t.Errorf("%s of %d bytes: %v", name, len(data), err)
		}
	}
	for name, data := range map[string][]byte{
		"elements of DER": element(0x30, parts["v2"], bytes.Repeat([]byte{5, 0}, 500000)),
		"depth of DER":    element(0x30, parts["v2"], bytes.Repeat([]byte{0x30, 0x7f}, 30000)),
		"names":           []byte(`{"critical":{` + strings.Repeat(`"a":1,`, 170000) + `"b":1}}`),
		"arrays":          []byte(`{"_type":` + strings.Repeat("[", 1000000)),
		"escapes":         []byte(`{"_type":"` + strings.Repeat("\n", 1000000) + `"`),
		"commas":          envelope(`{"_type":` + strings.Repeat(",", 1000000)),
	} {
		var err error
		cost.Check(t, len(data), func() { _, err = Read(data) })
		if err == nil {
			t.Errorf("%s: read", name)
		}
	}
}
