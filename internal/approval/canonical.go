package approval

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// maxDocument is the length of the longest document, in bytes. A rule of 1,000 approvers has some 200 KiB.
const maxDocument = 4 << 20

// Hash returns the name of a document: its SHA-256 as sha256:HEX.
func Hash(data []byte) string {
	hash := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(hash[:])
}

// IsHash reports whether a text is sha256:HEX.
func IsHash(text string) bool {
	digits, ok := strings.CutPrefix(text, "sha256:")
	decoded, err := hex.DecodeString(digits)
	return ok && err == nil && len(decoded) == sha256.Size && strings.ToLower(digits) == digits
}

// canonical returns a value as canonical JSON (RFC 8785). Its structs list their fields in the order of their names,
// its numbers are whole, and names of maps are ASCII: encoding/json then differs in the escapes of three characters
// alone, which are refused.
func canonical(value any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return nil, err
	}
	data := bytes.TrimSuffix(out.Bytes(), []byte("\n"))
	for _, escaped := range []string{`\u2028`, `\u2029`, `\ufffd`} {
		if bytes.Contains(data, []byte(escaped)) {
			return nil, errors.New("it has a line separator or is not UTF-8")
		}
	}
	return data, nil
}

// strict reads JSON without unknown fields. Who calls it encodes what was read again and compares: that refuses all
// that encoding/json reads besides, such as names twice or in another case.
func strict(data []byte, most int, into any) error {
	if len(data) > most {
		return fmt.Errorf("it has %d bytes, and %d are the most", len(data), most)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if decoder.More() {
		return errors.New("something follows the JSON")
	}
	return nil
}
