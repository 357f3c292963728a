package layerkey

import "fmt"

// RecipientInfo is what an annotation says of a recipient of a layer's key.
type RecipientInfo struct {
	Scheme    string `json:"scheme"`    // provider.hsm, jwe, pkcs7 or pkcs11
	Algorithm string `json:"algorithm"` // by its name in JOSE, as far as it has one
	// the JWK thumbprint of the recipient's key (RFC 7638, SHA-256, base64url); empty unless the annotation has it, which
	// it always does with provider.hsm
	KeyID string `json:"kid,omitempty"`
	Name  string `json:"name,omitempty"` // pkcs7: the issuer and the serial, in hex, of the certificate
}

// String returns the recipient for error messages.
func (i RecipientInfo) String() string {
	switch {
	case i.KeyID != "":
		return fmt.Sprintf("kid %s (%s)", i.KeyID, i.Algorithm)
	case i.Name != "":
		return fmt.Sprintf("the certificate of %s (%s, %s)", i.Name, i.Scheme, i.Algorithm)
	}
	return fmt.Sprintf("a key that is not named (%s, %s)", i.Scheme, i.Algorithm)
}

// ReadRecipients returns the recipients of a layer's key, from the annotations of the layer's descriptor. It fails with
// Invalid for damaged annotations, and with Unsupported for a layer that is encrypted in other schemes alone.
func ReadRecipients(annotations map[string]string) ([]RecipientInfo, error) {
	found, err := packets(annotations)
	if err != nil {
		return nil, err
	}
	var recipients []RecipientInfo
	for _, p := range found {
		parsed, err := p.parse()
		if err != nil {
			return nil, err
		}
		for _, wrapped := range parsed.keys {
			recipients = append(recipients, wrapped.RecipientInfo)
		}
		if err := checkRecipients(len(recipients)); err != nil {
			return nil, err
		}
	}
	return recipients, nil
}
