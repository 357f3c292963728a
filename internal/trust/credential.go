package trust

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"
)

// Kinds of credentials, as package approval has them.
const (
	kindKey     = "key"     // a key in a module
	kindSSH     = "ssh"     // an SSH key
	kindPasskey = "passkey" // a WebAuthn credential
)

var approvalKinds = []string{kindKey, kindSSH, kindPasskey}

// Credential is what an approver signs approvals with. Public is text: PEM of a key in a module, a line of
// authorized_keys of an SSH key, and base64 of the COSE key of a passkey.
type Credential struct {
	Kind    string   `yaml:"kind" json:"kind"`
	Public  string   `yaml:"public" json:"public"`
	Salt    string   `yaml:"salt" json:"salt"` // 32 bytes, hex
	Passkey *Passkey `yaml:"passkey,omitempty" json:"passkey,omitempty"`

	approver string // id
	document []byte
	public   []byte // as the document has it
	key      string // the same for one key of several kinds, or in several encodings
}

// Passkey is what is known of a passkey since it was enrolled.
type Passkey struct {
	AAGUID         string   `yaml:"aaguid" json:"aaguid"` // model of the authenticator, as a UUID
	RPID           string   `yaml:"rp-id" json:"rpID"`
	Origins        []string `yaml:"origins" json:"origins"` // where it may be used
	ID             string   `yaml:"id" json:"id"`           // of the credential, base64
	Attested       bool     `yaml:"attested" json:"attested"`
	BackupEligible bool     `yaml:"backup-eligible" json:"backupEligible"` // it can leave its authenticator
}

// credentialDocument is package approval's Credential. That package verifies WebAuthn, and would make the plugin, which
// verifies no approval, start later.
type credentialDocument struct {
	Approver string           `json:"approver"`
	Kind     string           `json:"kind"`
	Passkey  *passkeyDocument `json:"passkey,omitempty"`
	Public   []byte           `json:"public"`
	Salt     string           `json:"salt"`
	Type     string           `json:"type"`
}

type passkeyDocument struct {
	AAGUID         string   `json:"aaguid"`
	Attested       bool     `json:"attested"`
	BackupEligible bool     `json:"backup_eligible"`
	ID             []byte   `json:"id"`
	Origins        []string `json:"origins"`
	RPID           string   `json:"rp_id"`
}

const (
	credentialType = "credential/v1" //nolint:gosec // no credential itself
	maxPublic      = 8 << 10         // bytes; RSA with 8192 bits has 1 KiB
	maxOrigins     = 16
	maxText        = 255 // bytes of an origin, a domain or a model
)

// Document returns the credential as package approval encodes it. It is not to be changed.
func (c *Credential) Document() []byte { return c.document }

// Hash returns the sha256:HEX by which approvals name the credential.
func (c *Credential) Hash() string { return fmt.Sprintf("sha256:%x", sha256.Sum256(c.document)) }

// Fingerprint returns a text by which people compare public keys, as OpenSSH writes it.
func (c *Credential) Fingerprint() string {
	hash := sha256.Sum256(c.public)
	return "SHA256:" + base64.RawStdEncoding.EncodeToString(hash[:])
}

// read validates a credential, and makes its document.
func (c *Credential) read() error {
	if !slices.Contains(approvalKinds, c.Kind) {
		return fmt.Errorf("its kind is %.40q, and not key, ssh or passkey", c.Kind)
	}
	salt, err := hex.DecodeString(c.Salt)
	if err != nil || len(salt) != 32 || strings.ToLower(c.Salt) != c.Salt {
		return errors.New("its salt is not 64 hexadecimal digits in lower case")
	}
	if len(c.Public) > maxPublic {
		return fmt.Errorf("its public key has more than %d bytes", maxPublic)
	}
	if (c.Kind == kindPasskey) != (c.Passkey != nil) {
		return errors.New("passkey is there for a passkey alone")
	}
	d := credentialDocument{Approver: c.approver, Kind: c.Kind, Salt: c.Salt, Type: credentialType}
	if c.public, c.key, err = readPublic(c.Kind, c.Public); err != nil {
		return fmt.Errorf("its public key: %w", err)
	}
	d.Public = c.public
	if c.Passkey != nil {
		if d.Passkey, err = c.Passkey.document(); err != nil {
			return err
		}
	}
	c.document, err = encodeDocument(d)
	return err
}

// encodeDocument returns canonical JSON (RFC 8785): the fields are in the order of their names, and read has refused
// text that is not ASCII.
func encodeDocument(d credentialDocument) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(d)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), err
}

// readPublic returns a public key as a document has it, and a text that is the same for one key of any kind.
func readPublic(kind, text string) (public []byte, key string, err error) {
	switch kind {
	case kindKey:
		block, rest := pem.Decode([]byte(text))
		if block == nil || block.Type != "PUBLIC KEY" || len(bytes.TrimSpace(rest)) > 0 || len(block.Headers) > 0 {
			return nil, "", errors.New("it is not one PUBLIC KEY in PEM")
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, "", err
		}
		return block.Bytes, sameKey(parsed, block.Bytes), nil
	case kindSSH:
		parsed, _, options, rest, err := ssh.ParseAuthorizedKey([]byte(text))
		if err != nil || len(options) > 0 || len(bytes.TrimSpace(rest)) > 0 {
			return nil, "", errors.New("it is not one SSH key, as in: ssh-ed25519 AAAA")
		}
		if _, certificate := parsed.(*ssh.Certificate); certificate {
			return nil, "", errors.New("it is an SSH certificate, and not a key")
		}
		if wrapped, ok := parsed.(ssh.CryptoPublicKey); ok {
			return parsed.Marshal(), sameKey(wrapped.CryptoPublicKey(), parsed.Marshal()), nil
		}
		return parsed.Marshal(), string(parsed.Marshal()), nil
	}
	public, err = base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(public) == 0 {
		return nil, "", errors.New("it is not a COSE key in base64")
	}
	return public, sameCOSE(public), nil
}

func sameKey(parsed crypto.PublicKey, otherwise []byte) string {
	if der, err := x509.MarshalPKIXPublicKey(parsed); err == nil {
		return string(der)
	}
	return string(otherwise)
}

// document returns what a credential's document has of a passkey.
func (p *Passkey) document() (*passkeyDocument, error) {
	id, err := base64.StdEncoding.Strict().DecodeString(p.ID)
	if err != nil || len(id) == 0 || len(id) > 1023 { // WebAuthn Level 3 section 4
		return nil, errors.New("the id of its passkey is not 1 to 1023 bytes in base64")
	}
	if len(p.Origins) == 0 || len(p.Origins) > maxOrigins {
		return nil, fmt.Errorf("its passkey has %d origins instead of 1 to %d", len(p.Origins), maxOrigins)
	}
	for _, text := range append([]string{p.AAGUID, p.RPID}, p.Origins...) {
		if text == "" || len(text) > maxText || strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
			return nil, fmt.Errorf("the model, the domain or an origin of its passkey is %.80q", text)
		}
	}
	return &passkeyDocument{AAGUID: p.AAGUID, Attested: p.Attested, BackupEligible: p.BackupEligible, ID: id,
		Origins: p.Origins, RPID: p.RPID}, nil
}

// readCredential returns the credential of a document of an approver, as hsm-broker exports it. It fails for bytes that
// are not the one encoding of the credential.
func readCredential(data []byte, approver string) (Credential, error) {
	var d credentialDocument
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&d); err != nil {
		return Credential{}, err
	}
	if d.Approver != approver {
		return Credential{}, fmt.Errorf("it is of the id %.80q", d.Approver)
	}
	c := Credential{Kind: d.Kind, Salt: d.Salt, approver: approver}
	switch d.Kind {
	case kindKey:
		c.Public = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: d.Public}))
	case kindSSH:
		key, err := ssh.ParsePublicKey(d.Public)
		if err != nil {
			return Credential{}, err
		}
		c.Public = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	default:
		c.Public = base64.StdEncoding.EncodeToString(d.Public)
	}
	if p := d.Passkey; p != nil {
		c.Passkey = &Passkey{AAGUID: p.AAGUID, RPID: p.RPID, Origins: p.Origins, Attested: p.Attested,
			BackupEligible: p.BackupEligible, ID: base64.StdEncoding.EncodeToString(p.ID)}
	}
	if err := c.read(); err != nil {
		return Credential{}, err
	}
	if !bytes.Equal(c.document, data) {
		return Credential{}, errors.New("it is not in its canonical form")
	}
	return c, nil
}
