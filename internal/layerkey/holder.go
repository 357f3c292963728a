package layerkey

import "fmt"

// Holder is who can open a wrapped key, as far as its annotation tells.
type Holder struct {
	Scheme    string `json:"scheme"`    // provider.hsm, jwe, pkcs7 or pkcs11
	Algorithm string `json:"algorithm"` // by its name in JOSE, as far as it has one
	// the key's JWK thumbprint (RFC 7638, SHA-256, base64url); only provider.hsm has it for sure
	KeyID string `json:"kid,omitempty"`
	Name  string `json:"name,omitempty"` // pkcs7: the issuer and the serial, in hex, of the certificate
}

// String is the holder in the words of an error.
func (h Holder) String() string {
	switch {
	case h.KeyID != "":
		return fmt.Sprintf("kid %s (%s)", h.KeyID, h.Algorithm)
	case h.Name != "":
		return fmt.Sprintf("the certificate of %s (%s, %s)", h.Name, h.Scheme, h.Algorithm)
	}
	return fmt.Sprintf("a key that is not named (%s, %s)", h.Scheme, h.Algorithm)
}

// Holders lists who can open the key of a layer, by the annotations of its descriptor. It fails with Unsupported for a
// layer that is encrypted in other schemes alone.
func Holders(annotations map[string]string) ([]Holder, error) {
	found, err := packets(annotations)
	if err != nil {
		return nil, err
	}
	var holders []Holder
	for _, p := range found {
		w, err := p.parse()
		if err != nil {
			return nil, err
		}
		for _, l := range w.locks {
			holders = append(holders, l.Holder)
		}
		if err := checkRecipients(len(holders)); err != nil {
			return nil, err
		}
	}
	return holders, nil
}
