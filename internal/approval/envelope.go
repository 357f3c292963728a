package approval

import "errors"

// Envelope is an approval with its signature. Its fields are in the order of their names. Its encoding is what the log
// has the SHA-256 of.
type Envelope struct {
	Approval          []byte `json:"approval"`                     // Approval.Encode
	AuthenticatorData []byte `json:"authenticator_data,omitempty"` // of a passkey
	ClientData        []byte `json:"client_data,omitempty"`        // JSON, of a passkey
	Credential        string `json:"credential"`                   // sha256:HEX of the credential's document
	// Signature is that of a module's key over the DSSE's PAE (ECDSA in DER, RSA-PSS with SHA-256, or Ed25519), an
	// armoured SSHSIG, or the signature of a WebAuthn assertion.
	Signature []byte `json:"signature"`
}

// Encode returns an envelope as canonical JSON.
func (e *Envelope) Encode() ([]byte, error) { return canonical(e) }

// DecodeEnvelope reads an envelope. It fails with Invalid for bytes that are not the one encoding of an envelope.
func DecodeEnvelope(data []byte) (*Envelope, error) {
	e := &Envelope{}
	if err := strict(data, 64<<10, e); err != nil {
		return nil, invalid("approval", err)
	}
	if again, err := e.Encode(); err != nil || string(again) != string(data) {
		return nil, invalid("approval", errors.New("it is not in its canonical form"))
	}
	return e, nil
}
