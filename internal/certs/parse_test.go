package certs

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// openssl runs openssl in a folder with chain.pem (leaf and root) and leaf.key, and returns its output file.
func openssl(t *testing.T, dir string, args ...string) []byte {
	t.Helper()
	args = append(args, "-out", filepath.Join(dir, "out"))
	for i, arg := range args {
		args[i] = strings.ReplaceAll(arg, "DIR", dir)
	}
	softhsmtest.Run(t, softhsmtest.Program(t, "openssl"), args...)
	data, err := os.ReadFile(filepath.Join(dir, "out"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func utf16File(order binary.AppendByteOrder, text string) []byte {
	data := order.AppendUint16(nil, 0xFEFF)
	for _, unit := range utf16.Encode([]rune(text)) {
		data = order.AppendUint16(data, unit)
	}
	return data
}

// TestParseForms parses certificates in all formats, as openssl and others write them.
func TestParseForms(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	softhsmtest.Run(t, softhsmtest.Program(t, "openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout",
		filepath.Join(dir, "leaf.key"),
		"-subj", "/CN=leaf", "-out", filepath.Join(dir, "leaf.pem"))
	leaf, err := os.ReadFile(filepath.Join(dir, "leaf.pem"))
	if err != nil {
		t.Fatal(err)
	}
	root := softhsmtest.NewCA(t, "Root", nil)
	chain := string(leaf) + root.PEM()
	if err := os.WriteFile(filepath.Join(dir, "chain.pem"), []byte(chain), 0o600); err != nil {
		t.Fatal(err)
	}
	leafDER, _ := pem.Decode(leaf)
	relabel := func(label string) []byte { return []byte(strings.ReplaceAll(chain, " CERTIFICATE-", " "+label+"-")) }
	for name, data := range map[string][]byte{
		"PEM": []byte(chain),
		"text before and between": []byte("Bag Attributes\n  friendlyName: leaf\n" + string(leaf) +
			"\nsubject=CN = Root\n" + root.PEM()),
		"line ends of Windows":  []byte(strings.ReplaceAll(chain, "\n", "\r\n")),
		"indented":              []byte("    " + strings.ReplaceAll(chain, "\n", "\n\t  ")),
		"byte order mark":       append([]byte{0xEF, 0xBB, 0xBF}, chain...),
		"UTF-16, little-endian": utf16File(binary.LittleEndian, chain),
		"UTF-16, big-endian":    utf16File(binary.BigEndian, chain),
		"X509 CERTIFICATE":      relabel("X509 CERTIFICATE"),
		"a private key, skipped": append(bytes.Clone([]byte(chain)),
			"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"...),
		"PKCS #7 as PEM": openssl(t, dir, "crl2pkcs7", "-nocrl", "-certfile", "DIR/chain.pem"),
		"PKCS #7 as DER": openssl(t, dir, "crl2pkcs7", "-nocrl", "-certfile", "DIR/chain.pem", "-outform",
			"DER"),
		"DER, one after another": append(bytes.Clone(leafDER.Bytes), root.Cert.Raw...),
		"TRUSTED CERTIFICATE and PEM": append(
			openssl(t, dir, "x509", "-in", "DIR/leaf.pem", "-trustout", "-addtrust", "codeSigning", "-setalias", "leaf"),
			root.PEM()...),
	} {
		found, err := Parse(data)
		if err != nil || len(found) != 2 {
			t.Errorf("%s: %d certificates, %v", name, len(found), err)
			continue
		}
		// PKCS #7 has a set, without an order.
		slices.SortFunc(found, func(a, b *x509.Certificate) int {
			return strings.Compare(b.Subject.CommonName,
				a.Subject.CommonName)
		})
		if !bytes.Equal(found[0].Raw, leafDER.Bytes) || !found[1].Equal(root.Cert) {
			t.Errorf("%s: %q and %q", name, found[0].Subject, found[1].Subject)
		}
	}

	refused := map[string]struct {
		data       []byte
		what, hint string
	}{
		"PKCS #12": {openssl(t, dir, "pkcs12", "-export", "-in", "DIR/leaf.pem", "-inkey", "DIR/leaf.key", "-passout",
			"pass:1234"), "PKCS #12", "openssl pkcs12 -in PATH -nokeys"},
		"JKS": {[]byte{0xFE, 0xED, 0xFE, 0xED, 0, 0, 0, 2}, "Java keystore", "keytool -exportcert -rfc -keystore PATH"},
		"BER": {[]byte("\x30\x80\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02\xa0\x80"), "indefinite",
			"openssl pkcs7 -inform DER -in PATH"},
		"a key":   {openssl(t, dir, "pkcs8", "-topk8", "-nocrypt", "-in", "DIR/leaf.key"), "only PRIVATE KEY", "PEM file"},
		"damaged": {[]byte(chain + "-----BEGIN CERTIFICATE-----\nA"), "1 of its 3 PEM blocks are damaged", "PEM file"},
		"quoted":  {[]byte("> -----BEGIN CERTIFICATE-----\n"), "there is no certificate in it", "PEM file"},
		"nothing": {nil, "there is no certificate in it", "PEM file"},
		"text": {[]byte("directories.tokendir = /tmp\n" + strings.Repeat("# a comment\n", 10)),
			"there is no certificate in it", "PEM file"},
	}
	for name, r := range refused {
		path := filepath.Join(dir, "refused")
		if err := os.WriteFile(path, r.data, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ReadFile(path)
		if err == nil || !strings.Contains(err.Error(), r.what) ||
			!strings.Contains(failure.From(err).Hint, strings.ReplaceAll(r.hint, "PATH", path)) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestParseBounds refuses too many, too deep and too large structures.
func TestParseBounds(t *testing.T) {
	t.Parallel()
	deep := []byte{5, 0}
	for range 30 {
		deep, _ = asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: deep})
	}
	block := func(kind string, der []byte) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}) }
	large := softhsmtest.NewCA(t, "Large", nil)
	modulus := new(big.Int).Add(new(big.Int).Lsh(big.NewInt(1), maxModulus), big.NewInt(1))
	huge := large.Issue(t, softhsmtest.Template("huge"), &rsa.PublicKey{N: modulus, E: 65537})
	for name, test := range map[string]struct {
		data []byte
		what string
	}{
		"many blocks":       {bytes.Repeat([]byte(large.PEM()), maxCertificates+1), "101 PEM blocks"},
		"many in DER":       {bytes.Repeat(large.Cert.Raw, maxCertificates+1), "more than 100 certificates"},
		"deep":              {block("CERTIFICATE", deep), "deeper than 16"},
		"deep in PKCS #7":   {block("PKCS7", deep), "deeper than 16"},
		"a long one":        {block("CERTIFICATE", make([]byte, maxCertificate+1)), "more than 65536"},
		"a long RSA key":    {block("CERTIFICATE", huge.Raw), fmt.Sprintf("%d bits", maxModulus+1)},
		"indefinite length": {block("PKCS7", []byte{0x30, 0x80, 0, 0}), "indefinite"},
	} {
		if _, err := Parse(test.data); err == nil || !strings.Contains(err.Error(), test.what) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// parseCost is what parsing may allocate: a PEM file is copied and decoded, and each certificate is parsed.
var parseCost = boundtest.Budget{Bytes: 64 << 10, BytesPerByte: 64}

// FuzzParse parses any file without a crash and within its budget. What parses can be ordered to a chain and checked.
func FuzzParse(f *testing.F) {
	f.Add([]byte(""))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Add([]byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"))
	f.Add([]byte(chainPEM))
	f.Add([]byte(strings.ReplaceAll(chainPEM, "M", "N")))
	f.Add([]byte(strings.ReplaceAll(chainPEM, "CERTIFICATE", "TRUSTED CERTIFICATE")))
	f.Add([]byte(strings.ReplaceAll(chainPEM, "CERTIFICATE", "PKCS7")))
	f.Add(utf16File(binary.LittleEndian, chainPEM))
	if block, _ := pem.Decode([]byte(chainPEM)); block != nil {
		f.Add(block.Bytes)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var certs []*x509.Certificate
		var err error
		parseCost.Check(t, len(data), func() { certs, err = Parse(data) })
		if err != nil {
			return
		}
		for _, leaf := range certs {
			if chain, err := Chain(leaf, certs, nil, time.Now()); err == nil {
				_ = Check(chain, time.Now())
			}
		}
	})
}
