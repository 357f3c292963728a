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

// headerLimit bounds one JOSE header, in bytes. go-jose reads the headers of a JWE again for each recipient.
const headerLimit = 4 << 10

// The headers that ocicrypt's implementations and Seal write. Others would have go-jose parse certificates and keys, or
// decompress.
var (
	headerNames = []string{"alg", "enc", "kid", "epk", "apu", "apv", "typ", "cty"}
	epkNames    = []string{"kty", "crv", "x", "y"}
)

// checkJWE fails unless data is a JWE in JSON (RFC 7516 section 7.2) with a bounded structure and no other headers than
// those. go-jose parses it afterwards.
func checkJWE(data []byte) error {
	if err := bound.JSON(data, jweBounds); err != nil {
		return err
	}
	var jwe map[string]json.RawMessage // unlike a struct's, a map's names are not taken in another case
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

// decode reads what may be absent.
func decode(text json.RawMessage, to any) error {
	if len(text) == 0 {
		return nil
	}
	return json.Unmarshal(text, to)
}

func checkNames(object map[string]json.RawMessage, known []string) error {
	for _, name := range slices.Sorted(maps.Keys(object)) {
		if !slices.Contains(known, name) {
			return fmt.Errorf("it has the header %.50q, which is not opened here", name)
		}
	}
	return nil
}
