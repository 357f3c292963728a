package certs

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"unicode/utf16"

	"github.com/smallstep/pkcs7"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Bounds of what is parsed. Files of certificates come from strangers who request a certificate or want to be trusted.
const (
	maxCertificates = 100
	maxCertificate  = 64 << 10 // bytes of one certificate
	maxElements     = 4096     // DER elements of one certificate
	maxModulus      = 16384    // bits of an RSA key; the cost of verifying grows with their square
)

// Parse returns the certificates in data, in their order. It reads these formats:
//
//   - PEM (RFC 7468), also indented, in UTF-16 or with a byte order mark; blocks of other types are skipped
//   - trusted certificates of OpenSSL as PEM, without their trust settings
//   - PKCS #7 (RFC 5652, section 5.1: the certificates of SignedData), as PEM or DER
//   - DER (RFC 5280), one certificate after another
//
// It fails when there is no certificate, when a certificate does not parse or exceeds a bound, and when a PEM block is
// damaged. For another format, the hint of the failure is the command that converts the file named FILE.
func Parse(data []byte) ([]*x509.Certificate, error) {
	data = withoutMark(data)
	if bytes.Contains(data, begin) {
		return parsePEM(data)
	}
	return parseDER(data)
}

var begin = []byte("-----BEGIN ")

// withoutMark removes a byte order mark, and converts UTF-16, which some shells of Windows write, to UTF-8.
func withoutMark(data []byte) []byte {
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(data, []byte{0xEF, 0xBB, 0xBF}):
		return data[3:]
	case bytes.HasPrefix(data, []byte{0xFF, 0xFE}):
		order = binary.LittleEndian
	case bytes.HasPrefix(data, []byte{0xFE, 0xFF}):
		order = binary.BigEndian
	default:
		return data
	}
	units := make([]uint16, 0, len(data)/2)
	for rest := data[2:]; len(rest) > 1; rest = rest[2:] {
		units = append(units, order.Uint16(rest))
	}
	return []byte(string(utf16.Decode(units)))
}

func parsePEM(data []byte) ([]*x509.Certificate, error) {
	lines := bytes.Split(data, []byte("\n"))
	announced := 0
	for i, line := range lines {
		lines[i] = bytes.TrimSpace(line) // blocks in YAML or in a mail are indented
		if bytes.HasPrefix(lines[i], begin) {
			announced++
		}
	}
	if announced > maxCertificates {
		return nil, fmt.Errorf("it has %d PEM blocks, more than %d", announced, maxCertificates)
	}
	var certs []*x509.Certificate
	var others []string
	blocks := 0
	for rest := bytes.Join(lines, []byte("\n")); ; blocks++ {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		found, err := parseBlock(block)
		if err != nil {
			return nil, err
		}
		if found == nil {
			slog.Warn("skipped a PEM block that is no certificate", "type", block.Type)
			others = append(others, block.Type)
		}
		certs = append(certs, found...)
	}
	switch {
	case blocks < announced:
		return nil, fmt.Errorf("%d of its %d PEM blocks are damaged", announced-blocks, announced)
	case len(certs) == 0 && len(others) == 0: // BEGIN is not at the start of a line
		return nil, errors.New("there is no certificate in it")
	case len(certs) == 0:
		return nil, fmt.Errorf("there is no certificate in it, only %s", strings.Join(slices.Compact(others), ", "))
	}
	return limited(certs)
}

// parseBlock returns the certificates of a PEM block, or nil if the block has another type.
func parseBlock(block *pem.Block) ([]*x509.Certificate, error) {
	switch block.Type {
	case "CERTIFICATE", "X509 CERTIFICATE", "X.509 CERTIFICATE":
		return parseOne(block.Bytes)
	case "TRUSTED CERTIFICATE": // a certificate, then the trust settings
		var cert asn1.RawValue
		if _, err := asn1.Unmarshal(block.Bytes, &cert); err != nil {
			return nil, fmt.Errorf("a trusted certificate does not parse: %w", err)
		}
		return parseOne(cert.FullBytes)
	case "PKCS7", "CMS", "PKCS #7 SIGNED DATA":
		return parsePKCS7(block.Bytes)
	}
	return nil, nil
}

// parseOne parses one certificate within the bounds.
func parseOne(der []byte) ([]*x509.Certificate, error) {
	if err := bound.DER(der, bound.Limits{Bytes: maxCertificate, Depth: bound.Depth, Elements: maxElements}); err != nil {
		return nil, fmt.Errorf("a certificate does not parse: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("a certificate does not parse: %w", err)
	}
	if public, ok := cert.PublicKey.(*rsa.PublicKey); ok && public.N.BitLen() > maxModulus {
		return nil, fmt.Errorf("the certificate of %q has an RSA key of %d bits, more than %d", cert.Subject,
			public.N.BitLen(), maxModulus)
	}
	return []*x509.Certificate{cert}, nil
}

var oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}

// parseDER parses DER. By the first elements it tells which other format a file has.
func parseDER(data []byte) ([]*x509.Certificate, error) {
	var outer, first asn1.RawValue
	var kind asn1.ObjectIdentifier
	_, err := asn1.Unmarshal(data, &outer)
	if err == nil && (outer.Class != asn1.ClassUniversal || outer.Tag != asn1.TagSequence) {
		err = errors.New("it is not a sequence")
	}
	if err == nil {
		_, _ = asn1.Unmarshal(outer.Bytes, &first) // an empty sequence has no first element
		_, _ = asn1.Unmarshal(outer.Bytes, &kind)
	}
	switch {
	case bytes.HasPrefix(data, []byte{0xFE, 0xED, 0xFE, 0xED}):
		return nil, failure.New(failure.Invalid, "it is a Java keystore").
			WithHint("convert it: keytool -exportcert -rfc -keystore FILE -alias ALIAS -file chain.pem")
	case first.Tag == asn1.TagInteger && bytes.Equal(first.Bytes, []byte{3}):
		return nil, failure.New(failure.Invalid,
			"it is PKCS #12, which may contain a private key").
			WithHint("extract the certificates: openssl pkcs12 -in FILE -nokeys -out chain.pem")
	case kind.Equal(oidSignedData):
		return parsePKCS7(data)
	case err != nil && isPKCS7BER(data):
		return nil, failure.New(failure.Invalid, "it is PKCS #7 in BER with indefinite lengths").
			WithHint("convert it: openssl pkcs7 -inform DER -in FILE -print_certs -out chain.pem")
	case err != nil:
		return nil, errors.New("there is no certificate in it")
	}
	var certs []*x509.Certificate
	for rest := data; len(rest) > 0; {
		if rest, err = asn1.Unmarshal(rest, &outer); err != nil {
			return nil, fmt.Errorf("certificate %d does not parse: %w", len(certs)+1, err)
		}
		if len(certs) == maxCertificates {
			return nil, tooMany()
		}
		found, err := parseOne(outer.FullBytes)
		if err != nil {
			return nil, err
		}
		certs = append(certs, found...)
	}
	return certs, nil
}

// isPKCS7BER reports whether data begins like SignedData of indefinite length.
func isPKCS7BER(data []byte) bool {
	oid, _ := asn1.Marshal(oidSignedData)
	return bytes.HasPrefix(data, append([]byte{0x30, 0x80}, oid...))
}

// parsePKCS7 parses the certificates of SignedData in DER.
func parsePKCS7(der []byte) ([]*x509.Certificate, error) {
	limits := bound.Limits{Bytes: fileLimit, Depth: bound.Depth, Elements: maxElements * maxCertificates}
	if err := bound.DER(der, limits); err != nil { // the parser is recursive for BER
		return nil, fmt.Errorf("its PKCS #7 does not parse: %w", err)
	}
	message, err := pkcs7.Parse(der)
	if err != nil {
		return nil, fmt.Errorf("its PKCS #7 does not parse: %w", err)
	}
	if len(message.Certificates) == 0 {
		return nil, errors.New("its PKCS #7 has no certificate")
	}
	var certs []*x509.Certificate
	for _, cert := range message.Certificates {
		found, err := parseOne(cert.Raw)
		if err != nil {
			return nil, err
		}
		certs = append(certs, found...)
	}
	return limited(certs)
}

// limited refuses more certificates than allowed.
func limited(certs []*x509.Certificate) ([]*x509.Certificate, error) {
	if len(certs) > maxCertificates {
		return nil, tooMany()
	}
	return certs, nil
}

func tooMany() error {
	return fmt.Errorf("it has more than %d certificates", maxCertificates)
}
