package layerkey

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// headerLimit bounds one JOSE header, in bytes. go-jose parses the headers of a JWE again for each recipient.
const headerLimit = 4 << 10

// The headers that ocicrypt's implementations and Seal write. With others, go-jose would parse certificates and keys,
// or decompress.
var (
	headerNames = []string{"alg", "enc", "kid", "epk", "apu", "apv", "typ", "cty"}
	epkNames    = []string{"kty", "crv", "x", "y"}
)

// checkJWE fails unless data is a JWE in JSON (RFC 7516 section 7.2) of bounded structure, with no other headers than
// headerNames and epkNames. It is called before go-jose parses the JWE.
func checkJWE(data []byte) error {
	if err := bound.JSON(data, jweBounds); err != nil {
		return err
	}
	var jwe map[string]json.RawMessage // a struct would match names in another case too
	if err := json.Unmarshal(data, &jwe); err != nil {
		return err
	}
	var protected string
	var recipients []map[string]json.RawMessage
	if err := errors.Join(decode(jwe["protected"], &protected), decode(jwe["recipients"], &recipients)); err != nil {
		return err
	}
	if len(recipients) > jose.MaxRecipients {
		return fmt.Errorf("it has %d recipients, more than %d", len(recipients), jose.MaxRecipients)
	}
	text, err := base64.RawURLEncoding.DecodeString(protected)
	if err != nil {
		return err
	}
	headers := []json.RawMessage{text, jwe["unprotected"], jwe["header"]}
	for _, r := range recipients {
		headers = append(headers, r["header"])
	}
	for _, header := range headers {
		if err := checkHeader(header); err != nil {
			return err
		}
	}
	return nil
}

// checkHeader fails unless a header is of bounded structure and has no other names than headerNames and epkNames.
func checkHeader(text json.RawMessage) error {
	if len(text) == 0 {
		return nil
	}
	if err := bound.JSON(text, bound.Limits{Bytes: headerLimit, Depth: bound.Depth, Elements: 64}); err != nil {
		return fmt.Errorf("a header is refused: %w", err)
	}
	var header, epk map[string]json.RawMessage
	err := json.Unmarshal(text, &header)
	if err == nil {
		err = decode(header["epk"], &epk)
	}
	if err != nil {
		return err
	}
	return errors.Join(checkNames(header, headerNames), checkNames(epk, epkNames))
}

// decode decodes an optional member: absent, it leaves to as it is.
func decode(text json.RawMessage, to any) error {
	if len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, to)
}

// checkNames fails when an object has a name that is not known.
func checkNames(object map[string]json.RawMessage, known []string) error {
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if !slices.Contains(known, name) {
			return fmt.Errorf("it has the header %.50q, which is not supported", name)
		}
	}
	return nil
}
