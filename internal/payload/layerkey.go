package payload

import (
	"crypto/ecdh"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// maxRecipients is the limit of recipients in a JWE, which is that of go-jose.
const maxRecipients = 32

// Sizes in a JWE, in bytes.
const (
	gcmNonceSize  = 12
	gcmTagSize    = 16
	aesWrapped    = 40       // a key of A256GCM after AES key wrap
	minRSAWrapped = 2048 / 8 // the modulus of the recipient's key
	maxRSAWrapped = 16384 / 8
)

// Signed reports whether documents of a format are signed. Those of LayerKey are decrypted: they must not be signed.
func (f Format) Signed() bool { return f != LayerKey }

// jwe is a JWE in JSON (RFC 7516, section 7.2), in the order that go-jose encodes it. With several recipients it has
// encrypted_key a second time, outside of them.
type jwe struct {
	Protected    string         `json:"protected"`
	Recipients   []jweRecipient `json:"recipients,omitempty"`
	EncryptedKey string         `json:"encrypted_key"`
	Nonce        string         `json:"iv"`
	Ciphertext   string         `json:"ciphertext"`
	Tag          string         `json:"tag"`
}

type jweRecipient struct {
	Header       jweHeader `json:"header"`
	EncryptedKey string    `json:"encrypted_key"`
}

// jweHeader is a protected header or that of a recipient, with the names sorted.
type jweHeader struct {
	Algorithm string        `json:"alg,omitempty"`
	Content   string        `json:"enc,omitempty"`
	Ephemeral *ephemeralKey `json:"epk,omitempty"`
	KeyID     string        `json:"kid,omitempty"`
}

// ephemeralKey is the public key of ECDH-ES, in the order that go-jose encodes it.
type ephemeralKey struct {
	Type  string `json:"kty"`
	Curve string `json:"crv"`
	X     string `json:"x"`
	Y     string `json:"y"`
}

// readLayerKey reads the JWE of an encrypted image layer's key as ocicrypt encodes it: with A256GCM, and RSA-OAEP,
// RSA-OAEP-256 or ECDH-ES with AES key wrap for each recipient. The artifact's size is that of the ciphertext. Its
// annotations are the number of recipients, and alg and kid of each, such as `recipients[0].kid`.
func readLayerKey(data []byte) (*Artifact, error) {
	switch firstName(data) {
	case "protected", "unprotected", "header", "recipients", "encrypted_key", "iv", "ciphertext", "tag":
	default:
		return nil, errOther
	}
	var j jwe
	if err := readJSON(data, &j, json.Marshal); err != nil {
		return nil, err
	}
	protected, err := decodeSegment([]byte(j.Protected))
	if err != nil {
		return nil, fmt.Errorf("protected: %w", err)
	}
	var header jweHeader
	if err := readJSON(protected, &header, json.Marshal); err != nil {
		return nil, fmt.Errorf("protected: %w", err)
	}
	if header.Content != "A256GCM" {
		return nil, fmt.Errorf("protected: enc: %.20q instead of A256GCM", header.Content)
	}
	if err := j.checkContent(); err != nil {
		return nil, err
	}
	a := &Artifact{Format: LayerKey, Encoding: "JWE", Annotations: map[string]string{},
		Size: int64(base64.RawURLEncoding.DecodedLen(len(j.Ciphertext)))}
	return a, j.addRecipients(header, a.Annotations)
}

// checkContent fails unless nonce, ciphertext and tag have the sizes of A256GCM.
func (j *jwe) checkContent() error {
	for _, part := range []struct {
		name, text string
		size       int // 0 means any but none
	}{{"iv", j.Nonce, gcmNonceSize}, {"ciphertext", j.Ciphertext, 0}, {"tag", j.Tag, gcmTagSize}} {
		data, err := decodeSegment([]byte(part.text))
		switch {
		case err != nil:
			return fmt.Errorf("%s: %w", part.name, err)
		case len(data) == 0:
			return fmt.Errorf("%s: empty", part.name)
		case part.size > 0 && len(data) != part.size:
			return fmt.Errorf("%s: %d bytes instead of %d", part.name, len(data), part.size)
		}
	}
	return nil
}

// addRecipients checks the recipients, and adds them to annotations. The header of a single recipient is protected.
func (j *jwe) addRecipients(protected jweHeader, annotations map[string]string) error {
	recipients := j.Recipients
	switch {
	case len(recipients) == 0:
		protected.Content = ""
		recipients = []jweRecipient{{protected, j.EncryptedKey}}
	case protected != jweHeader{Content: protected.Content}:
		return errors.New("protected: alg, epk or kid beside recipients")
	case len(recipients) == 1 || len(recipients) > maxRecipients:
		return fmt.Errorf("recipients: %d are not from 2 to %d", len(recipients), maxRecipients)
	case recipients[0].EncryptedKey != j.EncryptedKey:
		return errors.New("encrypted_key: not that of recipients[0]")
	}
	annotations["recipients"] = strconv.Itoa(len(recipients))
	for i, r := range recipients {
		place := fmt.Sprintf("recipients[%d]", i)
		if err := r.check(); err != nil {
			return fmt.Errorf("%s: %w", place, err)
		}
		annotations[place+".alg"] = r.Header.Algorithm
		if r.Header.KeyID != "" {
			annotations[place+".kid"] = r.Header.KeyID
		}
	}
	return nil
}

func (r *jweRecipient) check() error {
	if r.Header.Content != "" {
		return fmt.Errorf("enc: %.20q in the header of a recipient", r.Header.Content)
	}
	wrapped, err := decodeSegment([]byte(r.EncryptedKey))
	if err != nil {
		return fmt.Errorf("encrypted_key: %w", err)
	}
	switch r.Header.Algorithm {
	case "RSA-OAEP", "RSA-OAEP-256":
		if r.Header.Ephemeral != nil {
			return errors.New("epk: a key for an algorithm that has none")
		}
		if len(wrapped) < minRSAWrapped || len(wrapped) > maxRSAWrapped {
			return fmt.Errorf("encrypted_key: %d bytes are not from %d to %d", len(wrapped), minRSAWrapped, maxRSAWrapped)
		}
		return nil
	case "ECDH-ES+A128KW", "ECDH-ES+A192KW", "ECDH-ES+A256KW":
		if len(wrapped) != aesWrapped {
			return fmt.Errorf("encrypted_key: %d bytes instead of %d", len(wrapped), aesWrapped)
		}
		return r.Header.Ephemeral.check()
	}
	return fmt.Errorf("alg: unknown algorithm %.20q", r.Header.Algorithm)
}

// check fails unless a key is a point on one of the curves of RFC 7518, section 6.2.1.1.
func (k *ephemeralKey) check() error {
	if k == nil {
		return errors.New("epk: missing")
	}
	curve, known := map[string]ecdh.Curve{"P-256": ecdh.P256(), "P-384": ecdh.P384(), "P-521": ecdh.P521()}[k.Curve]
	if k.Type != "EC" || !known {
		return fmt.Errorf("epk: %.10q and %.10q are not a type and a curve that are supported", k.Type, k.Curve)
	}
	x, err := decodeSegment([]byte(k.X))
	if err != nil {
		return fmt.Errorf("epk.x: %w", err)
	}
	y, err := decodeSegment([]byte(k.Y))
	if err != nil {
		return fmt.Errorf("epk.y: %w", err)
	}
	if len(x) != len(y) { // a coordinate of another size would make the other point of the same bytes
		return fmt.Errorf("epk: coordinates of %d and %d bytes", len(x), len(y))
	}
	point := append(append([]byte{4}, x...), y...)
	if _, err := curve.NewPublicKey(point); err != nil {
		return fmt.Errorf("epk: not a point on %s", k.Curve)
	}
	return nil
}
