package payload

import (
	"bytes"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode/utf8"
)

// maxFirstName is where the first name of an object ends at the latest, in bytes.
const maxFirstName = 200

var firstNameSyntax = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^\s*\{\s*"([^"\\]{1,50})"`)
})

// firstName returns the first name of a JSON object in lower case, or "". It tells which format bytes are meant to be,
// also where they are refused.
func firstName(data []byte) string {
	found := firstNameSyntax().FindSubmatch(data[:min(len(data), maxFirstName)])
	if found == nil {
		return ""
	}
	return strings.ToLower(string(found[1]))
}

// notDigest returns the error for a digest at a place.
func notDigest(place, digest string) error {
	return fmt.Errorf("%s: %.150q is not a SHA-256, SHA-384 or SHA-512 digest in lower case", place, digest)
}

// A jsonStyle is how an encoder writes JSON, where JSON leaves a choice.
type jsonStyle struct {
	comma string
	html  bool // <, >, &, U+2028 and U+2029 are escaped
}

// The styles of the encoders in use.
var (
	plainStyle  = jsonStyle{comma: ","}             // RFC 8785, JSON.stringify and protojson
	spacedStyle = jsonStyle{comma: ", "}            // protojson, which writes this or plainStyle, by how it was built
	htmlStyle   = jsonStyle{comma: ",", html: true} // encoding/json
)

// encode appends a value to out in a style. Names keep their order, and numbers are written as RFC 8785 says.
func (v *jsonValue) encode(out []byte, style jsonStyle) ([]byte, error) {
	var err error
	switch {
	case v.members != nil:
		out = append(out, '{')
		for i, name := range v.names {
			if i > 0 {
				out = append(out, style.comma...)
			}
			out = append(style.appendString(out, name), ':')
			if out, err = v.members[name].encode(out, style); err != nil {
				return nil, err
			}
		}
		return append(out, '}'), nil
	case v.text == "array":
		out = append(out, '[')
		for i, item := range v.items {
			if i > 0 {
				out = append(out, style.comma...)
			}
			if out, err = item.encode(out, style); err != nil {
				return nil, err
			}
		}
		return append(out, ']'), nil
	}
	if text, ok := v.string(); ok {
		return style.appendString(out, text), nil
	}
	if v.text == "true" || v.text == "false" || v.text == "null" {
		return append(out, v.text...), nil
	}
	number, err := strconv.ParseFloat(v.text, 64)
	if err != nil {
		return nil, fmt.Errorf("the number %.50s is too large", v.text)
	}
	if number == 0 {
		number = 0 // not -0
	}
	encoded, err := json.Marshal(number)
	return append(out, encoded...), err
}

// string returns the value of a string.
func (v *jsonValue) string() (text string, ok bool) {
	return text, strings.HasPrefix(v.text, `"`) && json.Unmarshal([]byte(v.text), &text) == nil
}

// appendString appends a string to out, with the escapes of a style.
func (s jsonStyle) appendString(out []byte, text string) []byte {
	if s.html {
		encoded, _ := json.Marshal(text) // which cannot fail for a string
		return append(out, encoded...)
	}
	out = append(out, '"')
	for _, r := range text {
		if escape := controlEscape(r); escape != "" {
			out = append(out, escape...)
			continue
		}
		if r == '"' || r == '\\' {
			out = append(out, '\\')
		}
		out = utf8.AppendRune(out, r)
	}
	return append(out, '"')
}

// controlEscape returns how encoders escape a control character, and "" for another character.
func controlEscape(r rune) string {
	if r >= ' ' {
		return ""
	}
	if i := strings.IndexRune("\b\f\n\r\t", r); i >= 0 {
		return `\` + "bfnrt"[i:i+1]
	}
	return fmt.Sprintf(`\u%04x`, r)
}

// checkEncoding fails unless data, which v was parsed from, is v in one of the styles. It returns that style, and
// otherwise the first difference to the style that is the nearest.
func (v *jsonValue) checkEncoding(data []byte, styles ...jsonStyle) (jsonStyle, error) {
	var nearest []byte
	same := -1
	for _, style := range styles {
		encoded, err := v.encode(make([]byte, 0, len(data)), style)
		if err != nil {
			return style, err
		}
		if bytes.Equal(data, encoded) {
			return style, nil
		}
		if n := commonPrefix(data, encoded); n > same {
			nearest, same = encoded, n
		}
	}
	wanted, err := parseJSON(nearest)
	if err == nil {
		err = v.differ("", wanted)
	}
	if err == nil {
		err = fmt.Errorf("byte %d: %.10q is not in the canonical encoding", same, data[same:])
	}
	return jsonStyle{}, err
}

// commonPrefix returns the number of bytes that a and b begin with alike.
func commonPrefix(a, b []byte) int {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return n
}

// checkNames fails unless a value is an object with the names of one of the orders, in that order.
func (v *jsonValue) checkNames(path string, orders ...[]string) error {
	if v.members == nil {
		return at(path, "%.60s is not an object", printable(v.text))
	}
	known := &jsonValue{}
	for _, order := range orders {
		if slices.Equal(v.names, order) {
			return nil
		}
		known.names = append(known.names, order...)
	}
	for _, name := range v.names {
		if !slices.Contains(known.names, name) {
			return at(path, "unknown name %.50q%s", name, known.suggest(name))
		}
	}
	for _, name := range orders[0] {
		needed := func(order []string) bool { return slices.Contains(order, name) }
		if v.members[name] == nil && !slices.ContainsFunc(orders, func(o []string) bool { return !needed(o) }) {
			return at(path, "name %.50q is missing", name)
		}
	}
	return at(path, "names in the order %.300q, which no encoder writes", v.names)
}

// checkSorted fails unless the names of an object are sorted.
func (v *jsonValue) checkSorted(path string) error {
	if v.members == nil {
		return at(path, "%.60s is not an object", printable(v.text))
	}
	for i, name := range v.names {
		if i > 0 && name < v.names[i-1] {
			return at(path, "name %.50q after %.50q: they are not sorted", name, v.names[i-1])
		}
	}
	return nil
}

var plainName = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9_-]+$`)
})

// placeOf returns the place of a member, such as `targets["app.tar.gz"].length`. Unlike a path in an error it is
// complete, so no two members have the same place.
func placeOf(place, name string) string {
	switch {
	case !plainName().MatchString(name):
		return place + "[" + strconv.Quote(name) + "]"
	case place == "":
		return name
	}
	return place + "." + name
}

// flatten adds each scalar of a value, and each object and array without members, to annotations, by its place. It
// keeps the encoding of what is not a string.
func (v *jsonValue) flatten(place string, annotations map[string]string) {
	for _, name := range v.names {
		v.members[name].flatten(placeOf(place, name), annotations)
	}
	for i, item := range v.items {
		item.flatten(fmt.Sprintf("%s[%d]", place, i), annotations)
	}
	text, isString := v.string()
	switch {
	case isString:
		annotations[place] = text
	case v.members != nil && len(v.names) == 0:
		annotations[place] = "{}"
	case v.text == "array" && len(v.items) == 0:
		annotations[place] = "[]"
	case v.members == nil && v.text != "array":
		annotations[place] = v.text
	}
}
