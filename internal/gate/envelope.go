package gate

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/fxamacker/cbor/v2"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/tspclient-go"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// Limits of an envelope.
const (
	maxCertificates = 16       // certificates in its chain
	maxCertificate  = 16 << 10 // bytes of a certificate
	maxTimestamp    = 64 << 10 // bytes of the token of a time stamping authority
	maxSignature    = 4 << 10  // bytes of the signature value
	maxKey          = 8192     // bits of an RSA key
	maxExponent     = 1 << 20  // exponent of an RSA key; 65537 is usual, and verification takes longer with more bits
)

var (
	// for the envelope, and for each part that is encoded in it
	envelopeLimits    = bound.Limits{Bytes: maxEnvelope, Depth: bound.Depth, Elements: 2000}
	certificateLimits = bound.Limits{Bytes: maxCertificate, Depth: bound.Depth, Elements: 2000}
)

// CheckEnvelope verifies that an envelope is within the limits, before Notation's parsers read it and before anything
// in it is authenticated. It does not verify that the envelope is valid.
func CheckEnvelope(mediaType string, data []byte) error {
	var err error
	switch mediaType {
	case jws.MediaTypeEnvelope:
		err = checkJWS(data)
	case cose.MediaTypeEnvelope:
		err = checkCOSE(data)
	default:
		err = fmt.Errorf("it has the media type %.100q", mediaType)
	}
	if err != nil {
		return fmt.Errorf("the signature's envelope is refused: %w", err)
	}
	return nil
}

// checkJWS checks a JSON envelope, and the JSON that is base64url in it. The fields are matched by the rules of
// encoding/json, as in Notation's parser.
func checkJWS(data []byte) error {
	if err := bound.JSON(data, envelopeLimits); err != nil {
		return err
	}
	var envelope struct {
		Payload   string `json:"payload"`
		Protected string `json:"protected"`
		Signature string `json:"signature"`
		Header    struct {
			Timestamp []byte   `json:"io.cncf.notary.timestampSignature"`
			Chain     [][]byte `json:"x5c"`
		} `json:"header"`
	}
	if err := json.Unmarshal(data, &envelope); err != nil {
		return err
	}
	if len(envelope.Signature) > maxSignature {
		return fmt.Errorf("its signature is longer than %d bytes", maxSignature)
	}
	for what, text := range map[string]string{"payload": envelope.Payload, "protected header": envelope.Protected} {
		decoded, err := base64.RawURLEncoding.DecodeString(text)
		if err == nil {
			err = bound.JSON(decoded, envelopeLimits)
		}
		if err != nil {
			return fmt.Errorf("its %s: %w", what, err)
		}
	}
	return checkSigner(envelope.Header.Chain, envelope.Header.Timestamp)
}

// coseLabelX5Chain is the label of the certificate chain in a COSE header (RFC 9360).
const coseLabelX5Chain = uint64(33)

// checkCOSE checks a CBOR envelope, and the CBOR and JSON in its byte strings.
func checkCOSE(data []byte) error {
	if err := bound.CBOR(data, envelopeLimits); err != nil {
		return err
	}
	// the options of Notation's parser
	mode, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden}.DecMode()
	if err != nil {
		return err
	}
	var envelope struct {
		_           struct{} `cbor:",toarray"`
		Protected   []byte
		Unprotected map[any]cbor.RawMessage
		Payload     []byte
		Signature   []byte
	}
	if err := mode.Unmarshal(data, &envelope); err != nil {
		return err
	}
	if len(envelope.Signature) > maxSignature {
		return fmt.Errorf("its signature is longer than %d bytes", maxSignature)
	}
	if len(envelope.Protected) > 0 {
		if err := bound.CBOR(envelope.Protected, envelopeLimits); err != nil {
			return fmt.Errorf("its protected header: %w", err)
		}
	}
	if err := bound.JSON(envelope.Payload, envelopeLimits); err != nil {
		return fmt.Errorf("its payload: %w", err)
	}
	var chain [][]byte
	var timestamp []byte
	if err := mode.Unmarshal(envelope.Unprotected[coseLabelX5Chain], &chain); err != nil {
		return fmt.Errorf("its certificate chain: %w", err)
	}
	if token := envelope.Unprotected["io.cncf.notary.timestampSignature"]; len(token) > 0 {
		if err := mode.Unmarshal(token, &timestamp); err != nil {
			return fmt.Errorf("its timestamp: %w", err)
		}
	}
	return checkSigner(chain, timestamp)
}

// checkSigner checks the certificates of a signature and of its timestamp. This includes the size of their keys, which
// decides how long verification takes.
func checkSigner(chain [][]byte, timestamp []byte) error {
	if len(chain) > maxCertificates {
		return fmt.Errorf("its chain has %d certificates, more than %d", len(chain), maxCertificates)
	}
	for i, der := range chain {
		if err := bound.DER(der, certificateLimits); err != nil {
			return fmt.Errorf("certificate %d of its chain: %w", i+1, err)
		}
		cert, err := x509.ParseCertificate(der)
		if err == nil {
			err = checkKey(cert)
		}
		if err != nil {
			return fmt.Errorf("certificate %d of its chain: %w", i+1, err)
		}
	}
	if len(timestamp) > maxTimestamp {
		return fmt.Errorf("its timestamp has %d bytes, more than %d", len(timestamp), maxTimestamp)
	}
	return checkTimestamp(timestamp)
}

// checkTimestamp checks the certificates in the token of a time stamping authority.
func checkTimestamp(timestamp []byte) error {
	token, err := tspclient.ParseSignedToken(timestamp)
	if err != nil {
		return nil //nolint:nilerr // Notation reports it if the policy asks for a timestamp
	}
	if len(token.Certificates) > maxCertificates || len(token.SignerInfos) > maxCertificates {
		return fmt.Errorf("its timestamp has more than %d certificates or signers", maxCertificates)
	}
	for _, cert := range token.Certificates {
		if err := checkKey(cert); err != nil {
			return fmt.Errorf("a certificate of its timestamp: %w", err)
		}
	}
	return nil
}

// checkKey fails if verification with the key of the certificate, or of its own signature, would take long.
func checkKey(cert *x509.Certificate) error {
	if key, ok := cert.PublicKey.(*rsa.PublicKey); ok {
		if key.N.BitLen() > maxKey {
			return fmt.Errorf("its RSA key has %d bits, more than %d", key.N.BitLen(), maxKey)
		}
		if key.E > maxExponent {
			return fmt.Errorf("its RSA key has the exponent %d, more than %d", key.E, maxExponent)
		}
	}
	if len(bytes.TrimLeft(cert.Signature, "\x00")) > maxKey/8 {
		return fmt.Errorf("its signature is longer than %d bytes", maxKey/8)
	}
	return nil
}
