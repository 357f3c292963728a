package payload

import (
	"crypto/x509"
	"encoding/asn1"
	"encoding/hex"
	"fmt"
)

func (a *Artifact) readRequest(data []byte) error {
	var version int
	var subject distinguishedName
	var public, attributes asn1.RawValue
	err := readSequence(data, []derField{
		{"version", tagInteger, false, &version, ""},
		{"subject", tagSequence, false, &subject, ""},
		{"public key", tagSequence, false, &public, ""},
		{"attributes", tagFirst, false, &attributes, ""},
	})
	if err != nil {
		return err
	}
	if err := a.readAttributes(attributes.Bytes); err != nil {
		return err
	}
	// The signature algorithm is not signed. To parse the request, any will do.
	ecdsa, _ := hex.DecodeString("300a06082a8648ce3d040302")
	signed, err := withSignature(data, ecdsa)
	if err != nil {
		return err
	}
	request, err := x509.ParseCertificateRequest(signed)
	if err != nil {
		return err
	}
	a.Encoding = "certificate request"
	if a.Name, err = subject.text(); err != nil {
		return fmt.Errorf("subject: %w", err)
	}
	return a.addKey(request.PublicKey, public.FullBytes)
}

// oidExtensionRequest is the attribute with the extensions that are requested (RFC 2985, section 5.4.2).
var oidExtensionRequest = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 14}

// readAttributes reads the attributes of a request: its extensions, and nothing else.
func (a *Artifact) readAttributes(attributes []byte) error {
	if len(attributes) == 0 {
		return nil
	}
	var kind asn1.ObjectIdentifier
	var values asn1.RawValue
	if err := readSequence(attributes, []derField{
		{"attributes: type", "\x06", false, &kind, ""},
		{"attributes: values", "\x31", false, &values, ""},
	}); err != nil {
		return err
	}
	if !kind.Equal(oidExtensionRequest) {
		return fmt.Errorf("attributes: %v is unknown", kind)
	}
	return a.readExtensions(values.Bytes, "attributes: extensions")
}
