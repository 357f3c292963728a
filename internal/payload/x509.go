package payload

import (
	"cmp"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
)

// Identifier octets of elements of certificates.
const (
	tagInteger  = "\x02"
	tagSequence = "\x30"
	tagTime     = "\x17\x18"     // UTCTime and GeneralizedTime
	tagsText    = "\x0c\x13\x16" // UTF8String, PrintableString and IA5String
	tagFirst    = "\xa0"         // [0], constructed
	tagFourth   = "\xa3"         // [3], constructed
)

// Limits of certificates and revocation lists, in bytes.
const (
	maxSerial = 20      // of a serial number (RFC 5280, section 4.1.2.2)
	maxName   = 8 << 10 // of a name in DER; the time that pkix takes to write one grows with the square of its length
)

// signatureAlgorithms are the DER of the AlgorithmIdentifiers that keys sign with, in hex: PKCS #1 v1.5 with NULL,
// RSASSA-PSS with a salt as long as the hash (RFC 4055), and ECDSA without parameters (RFC 5758).
var signatureAlgorithms = map[string]string{
	"300d06092a864886f70d01010b0500": "RSASSA-PKCS1-v1_5-SHA-256",
	"300d06092a864886f70d01010c0500": "RSASSA-PKCS1-v1_5-SHA-384",
	"300d06092a864886f70d01010d0500": "RSASSA-PKCS1-v1_5-SHA-512",
	pssAlgorithm("01", "20"):         "RSASSA-PSS-SHA-256",
	pssAlgorithm("02", "30"):         "RSASSA-PSS-SHA-384",
	pssAlgorithm("03", "40"):         "RSASSA-PSS-SHA-512",
	"300a06082a8648ce3d040302":       "ECDSA-SHA-256",
	"300a06082a8648ce3d040303":       "ECDSA-SHA-384",
	"300a06082a8648ce3d040304":       "ECDSA-SHA-512",
}

// pssAlgorithm returns the AlgorithmIdentifier of RSASSA-PSS, in hex. hash is the last arc of the hash's object
// identifier, and salt the length of the salt, both in hex.
func pssAlgorithm(hash, salt string) string {
	hashAlgorithm := "300d06096086480165030402" + hash + "0500"
	return "304106092a864886f70d01010a3034a00f" + hashAlgorithm + "a11c301a06092a864886f70d010108" + hashAlgorithm +
		"a2030201" + salt
}

// distinguishedName is a name (RFC 5280, section 4.1.2.4).
type distinguishedName []nameSET

// nameSET is a relative distinguished name. The end of its own name makes it a set in encoding/asn1.
type nameSET []struct {
	Type  asn1.ObjectIdentifier
	Value asn1.RawValue
}

// text returns a name as RFC 2253 writes it, with all of its attributes. pkix.Name has one common name alone.
// It fails for a relative distinguished name without attributes, for an attribute whose value is not text, since pkix
// writes the same for several of them, and for a name that is too long.
func (n distinguishedName) text() (string, error) {
	for i, set := range n {
		if len(set) == 0 {
			return "", fmt.Errorf("name %d of %d without attributes", i, len(n))
		}
		for _, attribute := range set {
			if kind := attribute.Value.FullBytes[0]; strings.IndexByte(tagsText, kind) < 0 {
				return "", fmt.Errorf("name %d of %d: a value of type %#x instead of text", i, len(n), kind)
			}
		}
	}
	der, err := asn1.Marshal(n)
	if err != nil {
		return "", err
	}
	if len(der) > maxName {
		return "", fmt.Errorf("%d bytes are more than %d", len(der), maxName)
	}
	var sequence pkix.RDNSequence
	_, err = asn1.Unmarshal(der, &sequence)
	return sequence.String(), err
}

// readX509 reads what is signed of a certificate of version 3 or a certificate revocation list of version 2 (RFC 5280),
// or of a certificate request (PKCS #10, RFC 2986), in DER. The artifact's encoding is "certificate", "crl" or
// "certificate request", and its name is the subject, which of a revocation list is the issuer. SigningTime and Expiry
// are the validity, or thisUpdate and nextUpdate.
func readX509(data []byte) (*Artifact, error) {
	first, ok := firstElement(data)
	if !ok {
		return nil, errOther
	}
	a := &Artifact{Format: X509, Annotations: map[string]string{}}
	switch {
	case first.FullBytes[0] == tagFirst[0]:
		return a, a.readCertificate(data)
	case slices.Equal(first.Bytes, []byte{0}):
		return a, a.readRequest(data)
	case slices.Equal(first.Bytes, []byte{1}):
		return a, a.readRevocations(data)
	}
	return nil, errors.New("version: neither a certificate of version 3, nor a revocation list of version 2, " +
		"nor a certificate request")
}

// firstElement returns the first element of a sequence if it is one that certificates begin with.
func firstElement(data []byte) (first asn1.RawValue, ok bool) {
	size := 2
	if len(data) > 1 && data[1] > 0x80 {
		size += int(data[1] & 0x7f)
	}
	if len(data) <= size || data[0] != tagSequence[0] {
		return first, false
	}
	_, err := asn1.Unmarshal(data[size:], &first)
	return first, err == nil && (first.FullBytes[0] == tagInteger[0] || first.FullBytes[0] == tagFirst[0])
}

func (a *Artifact) readCertificate(data []byte) error {
	var version int
	var serial *big.Int
	var issuer, subject distinguishedName
	var algorithm, validity, public, extensions asn1.RawValue
	err := readSequence(data, []derField{
		{"version", tagFirst, false, &version, "explicit,tag:0"},
		{"serial number", tagInteger, false, &serial, ""},
		{"signature", tagSequence, false, &algorithm, ""},
		{"issuer", tagSequence, false, &issuer, ""},
		{"validity", tagSequence, false, &validity, ""},
		{"subject", tagSequence, false, &subject, ""},
		{"public key", tagSequence, false, &public, ""},
		{"extensions", tagFourth, false, &extensions, ""},
	})
	if err == nil {
		err = readSequence(validity.FullBytes, []derField{
			{"validity: not before", tagTime, false, &a.SigningTime, ""},
			{"validity: not after", tagTime, false, &a.Expiry, ""},
		})
	}
	if err != nil {
		return err
	}
	if version != 2 {
		return fmt.Errorf("version: %d instead of 3", version+1)
	}
	if len(issuer) == 0 {
		return errors.New("issuer: empty")
	}
	if err := a.readAlgorithm(algorithm.FullBytes); err != nil {
		return err
	}
	if err := a.readExtensions(extensions.Bytes, "extensions"); err != nil {
		return err
	}
	signed, err := withSignature(data, algorithm.FullBytes)
	if err != nil {
		return err
	}
	cert, err := x509.ParseCertificate(signed)
	if err != nil {
		return err
	}
	if len(cert.UnhandledCriticalExtensions) > 0 {
		return fmt.Errorf("extensions: the extension %v must not be critical", cert.UnhandledCriticalExtensions[0])
	}
	a.Encoding = "certificate"
	a.Name, err = subject.text()
	if err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	if a.Annotations["issuer"], err = issuer.text(); err != nil {
		return fmt.Errorf("issuer: %w", err)
	}
	return cmp.Or(a.addSerial(serial), a.addKey(cert.PublicKey, public.FullBytes))
}

// readAlgorithm sets the signature algorithm.
func (a *Artifact) readAlgorithm(identifier []byte) error {
	if a.Algorithm = signatureAlgorithms[hex.EncodeToString(identifier)]; a.Algorithm == "" {
		return fmt.Errorf("signature: unknown algorithm %x", identifier[:min(len(identifier), 80)])
	}
	return nil
}

// addSerial adds a serial number.
func (a *Artifact) addSerial(serial *big.Int) (err error) {
	a.Annotations["serial"], err = serialText(serial)
	return err
}

// serialText returns a serial number as an even number of hex digits.
func serialText(serial *big.Int) (string, error) {
	if serial.Sign() <= 0 || len(serial.Bytes()) > maxSerial {
		return "", fmt.Errorf("serial number: not a positive number of at most %d bytes", maxSerial)
	}
	return hex.EncodeToString(serial.Bytes()), nil
}

// addKey adds the SHA-256 of a SubjectPublicKeyInfo. It fails unless encoding the key gives the same bytes.
func (a *Artifact) addKey(public any, der []byte) error {
	encoded, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return fmt.Errorf("public key: %w", err)
	}
	if !slices.Equal(encoded, der) {
		return errors.New("public key: not in its canonical encoding")
	}
	sum := sha256.Sum256(der)
	a.Annotations["publicKey"] = "sha256:" + hex.EncodeToString(sum[:])
	return nil
}

// withSignature returns what is signed with an algorithm and an empty signature, as crypto/x509 parses it.
func withSignature(data, algorithm []byte) ([]byte, error) {
	return asn1.Marshal(struct {
		Signed    asn1.RawValue
		Algorithm asn1.RawValue
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: data}, asn1.RawValue{FullBytes: algorithm}, asn1.BitString{}})
}
