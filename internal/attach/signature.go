package attach

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	_ "github.com/notaryproject/notation-core-go/signature/cose" // so that it can be read
	"github.com/notaryproject/notation-core-go/signature/jws"

	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// Claims are what the envelope of a Notation signature says, after its signature has been verified with the key of its
// own certificate. Whether that is a trusted one is not.
type Claims struct {
	proof.Signature
	Chain  []*x509.Certificate // from the signing certificate on; each is signed by the next
	Signed time.Time           // as the envelope says
}

// Verify returns what an envelope says. It fails for an envelope whose signature is not valid, and returns no claims
// then. It fails, and returns the claims without Payload and Signature, if the signature is valid and the envelope can
// be read in several ways: other verifiers accept it. The caller has checked that the envelope is within limits
// (gate.CheckEnvelope).
func Verify(mediaType string, envelope []byte) (*Claims, error) {
	parsed, err := signature.ParseEnvelope(mediaType, envelope)
	if err != nil {
		return nil, err
	}
	content, err := parsed.Verify()
	if err != nil {
		return nil, err
	}
	var payload struct {
		Target struct {
			Annotations map[string]string `json:"annotations"`
			Digest      string            `json:"digest"`
			MediaType   string            `json:"mediaType"`
			Size        int64             `json:"size"`
		} `json:"targetArtifact"`
	}
	if err := json.Unmarshal(content.Payload.Content, &payload); err != nil {
		return nil, err
	}
	if payload.Target.Digest == "" {
		return nil, errors.New("it is of no artifact")
	}
	c := &Claims{Chain: content.SignerInfo.CertificateChain, Signed: content.SignerInfo.SignedAttributes.SigningTime}
	c.Digest, c.Annotations = payload.Target.Digest, payload.Target.Annotations
	c.MediaType, c.Size = payload.Target.MediaType, payload.Target.Size
	if attributes := content.SignerInfo.SignedAttributes; !attributes.Expiry.IsZero() {
		c.Expiry = int64(attributes.Expiry.Sub(attributes.SigningTime) / time.Second)
	}
	leaf := sha256.Sum256(c.Chain[0].Raw)
	c.Leaf = "sha256:" + hex.EncodeToString(leaf[:])
	c.Payload, c.Signature.Signature, err = proof.OfEnvelope(mediaType, envelope)
	return c, err
}

// Readable reports whether Notation could read an envelope that exceeds the limits of gate.CheckEnvelope: it has all
// that a signature needs. It is no more than 1 MiB (FetchEnvelope), and nothing of it is verified.
func Readable(mediaType string, envelope []byte) bool {
	if _, err := signature.ParseEnvelope(mediaType, envelope); err != nil {
		return false
	}
	if mediaType != jws.MediaTypeEnvelope {
		return true
	}
	var parts struct { // as Notation's parser matches them
		Payload   string `json:"payload"`
		Protected string `json:"protected"`
		Signature string `json:"signature"`
		Header    struct {
			Chain [][]byte `json:"x5c"`
		} `json:"header"`
	}
	if err := json.Unmarshal(envelope, &parts); err != nil || len(parts.Header.Chain) == 0 || parts.Signature == "" {
		return false
	}
	for _, text := range []string{parts.Payload, parts.Protected} {
		if decoded, err := base64.RawURLEncoding.DecodeString(text); err != nil || !json.Valid(decoded) {
			return false
		}
	}
	return true
}
