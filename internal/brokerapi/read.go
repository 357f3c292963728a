package brokerapi

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Bytes are bytes that JSON has in base64 (RFC 4648 section 4), with padding. Decoding refuses line breaks, and bits
// after the last byte.
type Bytes []byte

// UnmarshalJSON decodes base64.
func (b *Bytes) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return errors.New("not a string")
	}
	if strings.ContainsAny(text, "\r\n") { // which the decoder skips
		return errors.New("a line break in base64")
	}
	decoded, err := base64.StdEncoding.Strict().DecodeString(text)
	*b = decoded
	return err
}

// RequestLimits bound the body of a request: what is to be signed, in base64.
var RequestLimits = bound.Limits{Bytes: payload.Limit/3*4 + 4096, Depth: 1, Elements: 8}

// ReadRequest decodes the body of a request into a struct: one JSON object with exactly the names of its fields, and
// without null. The decoder of Go alone would also take names in another case, ignore unknown names, and leave out
// missing ones.
func ReadRequest(data []byte, into any) error {
	if err := bound.JSON(data, RequestLimits); err != nil {
		return err
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil || object == nil {
		return errors.New("it is not an object")
	}
	value := reflect.ValueOf(into).Elem()
	var known []string
	for i := range value.NumField() {
		name, _, _ := strings.Cut(value.Type().Field(i).Tag.Get("json"), ",")
		known = append(known, name)
		raw, exists := object[name]
		switch {
		case !exists:
			return fmt.Errorf("the name %q is missing", name)
		case string(raw) == "null":
			return fmt.Errorf("%s: null instead of a value", name)
		}
		if err := json.Unmarshal(raw, value.Field(i).Addr().Interface()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	for name := range object {
		if !slices.Contains(known, name) {
			return fmt.Errorf("unknown name %.50q", name)
		}
	}
	return nil
}
