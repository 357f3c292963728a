package proof

import (
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"strings"

	"github.com/fxamacker/cbor/v2"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Media types of the envelopes of Notary Project signatures.
const (
	mediaTypeJWS  = "application/jose+json"
	mediaTypeCOSE = "application/cose"
)

// envelopeLimits are those of an envelope with its certificates and its timestamp.
var envelopeLimits = bound.Limits{Bytes: 4 << 20, Depth: bound.Depth, Elements: 2000}

// OfEnvelope returns what names the signature of an envelope, of a Notary Project signature in JWS or COSE: sha256:HEX
// of the bytes that were signed, and of the signature value as a broker logs it: ECDSA in DER, where the envelope has
// r||s. It fails with Invalid for an envelope that it cannot read in one way alone, and verifies nothing.
func OfEnvelope(mediaType string, envelope []byte) (payload, signature string, err error) {
	var signed, value []byte
	switch mediaType {
	case mediaTypeJWS:
		signed, value, err = readJWS(envelope)
	case mediaTypeCOSE:
		signed, value, err = readCOSE(envelope)
	default:
		err = fmt.Errorf("its media type is %.100q", mediaType)
	}
	if err == nil {
		value, err = logged(value)
	}
	if err != nil {
		return "", "", failure.New(failure.Invalid, "cannot read the signature's envelope: %w", err).
			WithHint("sign the image again")
	}
	return approval.Hash(signed), approval.Hash(value), nil
}

// logged returns a signature value as a broker logs it: ECDSA in DER (RFC 3279 section 2.2.3). Notation signs with
// P-256, P-384 and P-521, whose r||s have their very lengths, and with RSA, whose signatures are longer.
func logged(value []byte) ([]byte, error) {
	switch n := len(value); n {
	case 0:
		return nil, errors.New("it has no signature")
	case 64, 96, 132:
		return asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(value[:n/2]), new(big.Int).SetBytes(value[n/2:])})
	}
	return value, nil
}

// readJWS returns the JWS signing input (RFC 7515) and the signature value. Its fields have their very names:
// Notation's parser takes names in other cases too, and the last of them.
func readJWS(data []byte) (signed, value []byte, err error) {
	if err := bound.JSON(data, envelopeLimits); err != nil {
		return nil, nil, err
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, nil, err
	}
	var parts [3]string
	for i, name := range []string{"protected", "payload", "signature"} {
		raw, exists := fields[name]
		if !exists || len(raw) == 0 || raw[0] != '"' {
			return nil, nil, fmt.Errorf("its field %s is no text", name)
		}
		if err := json.Unmarshal(raw, &parts[i]); err != nil {
			return nil, nil, err
		}
		if value, err = segment(parts[i]); err != nil {
			return nil, nil, fmt.Errorf("its field %s: %w", name, err)
		}
		delete(fields, name)
	}
	delete(fields, "header")
	for name := range fields {
		return nil, nil, fmt.Errorf("it has the field %.40q", name)
	}
	return []byte(parts[0] + "." + parts[1]), value, nil
}

// segment decodes base64url without padding in its one encoding.
func segment(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") { // which the decoder skips
		return nil, errors.New("it has a line break")
	}
	return base64.RawURLEncoding.Strict().DecodeString(text)
}

// coseTag is the tag of a COSE_Sign1 (RFC 9052).
const coseTag = 18

// coseSign1 is a COSE_Sign1.
type coseSign1 struct {
	_           struct{} `cbor:",toarray"`
	Protected   []byte
	Unprotected cbor.RawMessage
	Payload     []byte
	Signature   []byte
}

// sigStructure is what a COSE_Sign1 signature is for.
type sigStructure struct {
	_         struct{} `cbor:",toarray"`
	Context   string
	Protected []byte
	External  []byte
	Payload   []byte
}

// readCOSE returns the Sig_structure of a COSE_Sign1 and the signature value.
func readCOSE(data []byte) (signed, value []byte, err error) {
	if err := bound.CBOR(data, envelopeLimits); err != nil {
		return nil, nil, err
	}
	mode, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden}.DecMode()
	if err != nil {
		return nil, nil, err
	}
	var tagged cbor.RawTag
	if err := mode.Unmarshal(data, &tagged); err != nil {
		return nil, nil, err
	}
	if tagged.Number != coseTag {
		return nil, nil, fmt.Errorf("its tag is %d", tagged.Number)
	}
	var sign1 coseSign1
	if err := mode.Unmarshal(tagged.Content, &sign1); err != nil {
		return nil, nil, err
	}
	if len(sign1.Protected) == 0 || sign1.Payload == nil {
		return nil, nil, errors.New("it has no protected header or no payload")
	}
	encoding, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		return nil, nil, err
	}
	signed, err = encoding.Marshal(sigStructure{Context: "Signature1", Protected: sign1.Protected, External: []byte{},
		Payload: sign1.Payload})
	return signed, sign1.Signature, err
}
