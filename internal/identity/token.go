package identity

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// Bounds of a token. Tokens of GitLab grow with the groups of a user, to some 8 KiB.
const (
	maxToken   = 16 << 10
	maxHeader  = 1 << 10
	maxKeyID   = 256
	maxSubject = 1024
	maxInteger = 1<<53 - 1 // of RFC 8785, which the log is encoded by
)

var (
	headerLimits = bound.Limits{Bytes: maxHeader, Depth: 2, Elements: 64}
	claimLimits  = bound.Limits{Bytes: maxToken, Depth: 8, Elements: 2000}
)

// algorithms are those that tokens may be signed with. Neither "none" nor an HMAC, whose key would be a public key.
var algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.PS256, jose.ES256, jose.ES384, jose.EdDSA}

// token is a JWT in compact form whose signature has not been verified.
type token struct {
	id        [32]byte // SHA-256 of header and payload as they were sent
	algorithm jose.SignatureAlgorithm
	keyID     string
	claims    map[string]any
	issuer    string // claim iss
	signed    *jose.JSONWebSignature
}

// readToken reads a JWT in compact form (RFC 7519). It verifies no signature. Its errors contain nothing of the token.
func readToken(compact string) (*token, error) {
	if len(compact) > maxToken {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(compact), maxToken)
	}
	parts := strings.Split(compact, ".")
	if len(parts) != 3 {
		return nil, errors.New("it is not a JWT in compact form")
	}
	var decoded [3][]byte
	for n, part := range parts {
		var err error
		// The package ignores newlines and, unless strict, unused bits, so that one token had many forms.
		decoded[n], err = base64.RawURLEncoding.Strict().DecodeString(part)
		if err != nil || strings.ContainsAny(part, "\r\n") {
			return nil, errors.New("it is not in base64url")
		}
	}
	t := &token{id: sha256.Sum256([]byte(parts[0] + "." + parts[1]))}
	if err := t.readHeader(decoded[0]); err != nil {
		return nil, fmt.Errorf("its header is malformed: %w", err)
	}
	var err error
	if t.claims, err = readObject(decoded[1], claimLimits); err != nil {
		return nil, fmt.Errorf("its payload is malformed: %w", err)
	}
	t.issuer, _ = t.claims["iss"].(string)
	if t.signed, err = jose.ParseSignedCompact(compact, algorithms); err != nil {
		return nil, errors.New("it is not a signed JWT")
	}
	return t, nil
}

// readHeader reads the header. It refuses one that names a key by other means than its id.
func (t *token) readHeader(data []byte) error {
	header, err := readObject(data, headerLimits)
	if err != nil {
		return err
	}
	for _, name := range []string{"jwk", "jku", "x5u", "x5c", "crit", "b64", "zip", "enc"} {
		if _, has := header[name]; has {
			return fmt.Errorf("it has the parameter %s", name)
		}
	}
	if kind, has := header["typ"]; has {
		if text, _ := kind.(string); !strings.EqualFold(text, "JWT") {
			return errors.New("its type (typ) is not JWT")
		}
	}
	algorithm, _ := header["alg"].(string)
	t.algorithm = jose.SignatureAlgorithm(algorithm)
	if !slices.Contains(algorithms, t.algorithm) {
		return fmt.Errorf("its algorithm (alg) is none of %v", algorithms)
	}
	t.keyID, _ = header["kid"].(string)
	if t.keyID == "" || len(t.keyID) > maxKeyID {
		return errors.New("it has no key id (kid), or one that is too long")
	}
	return nil
}

// readObject reads a JSON object within limits, whose names are unique at every depth. It fails for an integer that RFC
// 8785 cannot represent exactly.
func readObject(data []byte, limits bound.Limits) (map[string]any, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("it is not UTF-8")
	}
	if err := bound.JSON(data, limits); err != nil {
		return nil, withoutText(err)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var object map[string]any
	if err := decoder.Decode(&object); err != nil || object == nil {
		return nil, errors.New("it is not a JSON object")
	}
	converted, err := convert(object)
	if err != nil {
		return nil, err
	}
	return converted.(map[string]any), nil
}

// withoutText returns an error of bound.JSON without text of its input.
func withoutText(err error) error {
	if text := err.Error(); strings.HasPrefix(text, "it has ") || strings.HasPrefix(text, "it is nested") {
		return err
	}
	if strings.HasSuffix(err.Error(), "twice") {
		return errors.New("an object has a name twice")
	}
	return errors.New("it is not JSON")
}

// convert replaces numbers by int64 or float64.
func convert(value any) (any, error) {
	var err error
	switch v := value.(type) {
	case map[string]any:
		for name := range v {
			if v[name], err = convert(v[name]); err != nil {
				return nil, err
			}
		}
	case []any:
		for n := range v {
			if v[n], err = convert(v[n]); err != nil {
				return nil, err
			}
		}
	case json.Number:
		if integer, err := v.Int64(); err == nil {
			if integer > maxInteger || integer < -maxInteger {
				return nil, errors.New("it has an integer of more than 53 bits")
			}
			return integer, nil
		}
		float, err := v.Float64()
		if err != nil || math.Abs(float) > maxInteger {
			return nil, errors.New("it has a number of more than 53 bits")
		}
		return float, nil
	}
	return value, nil
}

// moment returns a claim that is a NumericDate of RFC 7519. It fails unless the claim is there and is one.
func (t *token) moment(name string) (time.Time, error) {
	switch v := t.claims[name].(type) {
	case int64:
		if v > 0 {
			return time.Unix(v, 0), nil
		}
	case float64:
		if v > 0 {
			return time.Unix(int64(v), 0), nil
		}
	}
	return time.Time{}, fmt.Errorf("it has no time %s", name)
}
