package payload

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// describeTUF adds what metadata says to annotations. It fails for null, which belongs nowhere but into "custom". place
// is that of v, and path the same place for errors.
func (v *jsonValue) describeTUF(place, path string, annotations map[string]string) error {
	for _, name := range v.names {
		innerPlace, innerPath := placeOf(place, name), join(path, name)
		var err error
		switch member := v.members[name]; {
		case place == "" && (name == "_type" || name == "expires"): // the name and the expiry of the artifact
		case name == "custom" && place != "targets" && strings.HasPrefix(place, "targets"):
			annotations[innerPlace], err = member.customText(innerPath)
		default:
			err = member.describeTUF(innerPlace, innerPath, annotations)
		}
		if err != nil {
			return err
		}
	}
	for i, item := range v.items {
		index := fmt.Sprintf("[%d]", i)
		if err := item.describeTUF(place+index, path+index, annotations); err != nil {
			return err
		}
	}
	if v.text == "null" {
		return at(path, "null")
	}
	if len(v.names)+len(v.items) == 0 {
		v.flatten(place, annotations)
	}
	return nil
}

// customText returns the JSON text of a value "custom". It fails for numbers that are no integers, or larger ones than
// every JSON parser reads exactly.
func (v *jsonValue) customText(path string) (string, error) {
	if err := v.checkIntegers(path); err != nil {
		return "", err
	}
	text, err := v.encode(nil, plainStyle)
	return string(text), err
}

func (v *jsonValue) checkIntegers(path string) error {
	for _, name := range v.names {
		if err := v.members[name].checkIntegers(join(path, name)); err != nil {
			return err
		}
	}
	for i, item := range v.items {
		if err := item.checkIntegers(fmt.Sprintf("%s[%d]", path, i)); err != nil {
			return err
		}
	}
	if !strings.ContainsAny(v.text[:1], "-0123456789") {
		return nil
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	if err != nil || strconv.FormatInt(n, 10) != v.text || n < -maxInteger || n > maxInteger {
		return at(path, "%.60s is not an integer that is written as such", v.text)
	}
	return nil
}

// encodeTUF encodes canonical JSON as encoding/json writes it: so that, unlike in canonical JSON, control characters
// are escaped.
func encodeTUF(value any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), err
}

// fromCanonical converts strings of canonical JSON to those that encodeTUF writes. Canonical JSON escapes quotes and
// backslashes alone, so a key in PEM has line breaks, which JSON does not allow in strings. No two texts become the
// same.
func fromCanonical(canonical []byte) ([]byte, error) {
	out := make([]byte, 0, len(canonical)+len(canonical)/8)
	inString := false
	for i := 0; i < len(canonical); {
		r, size := utf8.DecodeRune(canonical[i:])
		next := canonical[i : i+size]
		switch {
		case r == utf8.RuneError && size == 1:
			return nil, fmt.Errorf("byte %d: not UTF-8", i)
		case r == '"':
			inString = !inString
		case inString && r == '\\':
			if size = 2; i+1 == len(canonical) || canonical[i+1] != '"' && canonical[i+1] != '\\' {
				return nil, fmt.Errorf("byte %d: an escape that canonical JSON does not have", i)
			}
			next = canonical[i : i+2]
		case inString && r < ' ':
			next = []byte(controlEscape(r))
		case inString && (r == '\u2028' || r == '\u2029'):
			next = fmt.Appendf(nil, `\u%04x`, r)
		}
		out = append(out, next...)
		i += size
	}
	return out, nil
}
