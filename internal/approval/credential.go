package approval

import (
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
)

// credentialType is the type of a Credential.
const credentialType = "credential/v1" //nolint:gosec // no credential itself

// Credential is what a person signs approvals with. Its fields are in the order of their names. It is named by the
// SHA-256 of its encoding, which nobody can guess, because of its salt.
type Credential struct {
	Approver string    `json:"approver"` // id of the person
	Kind     Kind      `json:"kind"`
	Passkey  *WebAuthn `json:"passkey,omitempty"`
	// Public is the public key: SubjectPublicKeyInfo in DER of a key in a module, the wire format of an SSH key (RFC 4253
	// section 6.6), or the COSE key (RFC 9052 section 7) of a passkey.
	Public []byte `json:"public"`
	Salt   string `json:"salt"` // 32 random bytes, hex
	Type   string `json:"type"`
}

// WebAuthn is what is known of a passkey since it was enrolled. Its fields are in the order of their names.
type WebAuthn struct {
	AAGUID         string   `json:"aaguid"`          // model of the authenticator, as a UUID
	Attested       bool     `json:"attested"`        // its attestation has verified under a root that the broker lists
	BackupEligible bool     `json:"backup_eligible"` // it can leave its authenticator
	ID             []byte   `json:"id"`              // credential ID
	Origins        []string `json:"origins"`         // where it may be used
	RPID           string   `json:"rp_id"`
}

// Encode returns a credential as canonical JSON, with its type.
func (c *Credential) Encode() ([]byte, error) {
	typed := *c // so that many can encode one at a time
	typed.Type = credentialType
	return canonical(typed)
}

// DecodeCredential reads a credential. It fails with Invalid for bytes that are not the one encoding of a credential.
func DecodeCredential(data []byte) (*Credential, error) {
	c := &Credential{}
	if err := strict(data, 64<<10, c); err != nil {
		return nil, invalid("credential", err)
	}
	switch {
	case c.Type != credentialType:
		return nil, invalid("credential", fmt.Errorf("its type is %.40q", c.Type))
	case c.Kind != Key && c.Kind != SSH && c.Kind != Passkey:
		return nil, invalid("credential", fmt.Errorf("its kind is %.40q", c.Kind))
	case (c.Kind == Passkey) != (c.Passkey != nil):
		return nil, invalid("credential", errors.New("passkey is there for a passkey alone"))
	}
	if again, err := c.Encode(); err != nil || string(again) != string(data) {
		return nil, invalid("credential", errors.New("it is not in its canonical form"))
	}
	return c, nil
}

// Vote returns what an approval with this credential counts as.
func (c *Credential) Vote() Vote {
	v := Vote{Person: c.Approver, Kind: c.Kind}
	if c.Passkey != nil {
		v.Attested, v.DeviceBound = c.Passkey.Attested, !c.Passkey.BackupEligible
	}
	return v
}

// Fingerprint returns a text by which people compare public keys: SHA256: and the SHA-256 of the public key in base64
// without padding, as OpenSSH writes it for its keys.
func (c *Credential) Fingerprint() string {
	hash := sha256.Sum256(c.Public)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(hash[:])
}
