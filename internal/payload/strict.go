package payload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// maxElements is the limit of values and names in one JSON document, such as an SBOM of some 1,200 packages.
const maxElements = 50000

// The errors for JSON that is too large.
var (
	errElements = fmt.Errorf("more than %d values and names", maxElements)
	errDepth    = fmt.Errorf("nested deeper than %d", bound.Depth)
)

// maxInteger is the largest integer that every JSON parser reads exactly.
const maxInteger = 1<<53 - 1

// readJSON decodes data into a pointer, and fails unless encode returns exactly data for what was decoded. The error
// begins with the path to the first value that is refused, such as "targetArtifact.size". It refuses duplicate,
// unknown and missing names, names in another case or order, null where encode writes another value, numbers that the
// type cannot hold, white space, other escapes than those of encode, and anything after the value.
func readJSON(data []byte, into any, encode func(any) ([]byte, error)) error {
	if small(data) && json.Unmarshal(data, into) == nil {
		if canonical, err := encode(into); err == nil && bytes.Equal(data, canonical) {
			return nil
		}
	}
	reflect.ValueOf(into).Elem().SetZero() // what follows finds the place that is refused
	given, err := parseJSON(data)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		var mismatch *json.UnmarshalTypeError
		if errors.As(err, &mismatch) {
			return at(mismatch.Field, "%.60s is not of type %s", mismatch.Value, mismatch.Type.Kind())
		}
		return fmt.Errorf("not JSON: %w", err)
	}
	canonical, err := encode(into)
	if err != nil {
		return err
	}
	if bytes.Equal(data, canonical) {
		return nil
	}
	wanted, err := parseJSON(canonical)
	if err != nil {
		return err
	}
	if err := given.differ("", wanted); err != nil {
		return err
	}
	for i := range data { // the values are the same, so that one is longer by white space
		if i == len(canonical) || data[i] != canonical[i] {
			return fmt.Errorf("byte %d: %.10q is not in the canonical encoding", i, data[i:])
		}
	}
	return errors.New("not in the canonical encoding")
}

// small reports whether JSON is within the limits of this package: it has no more brackets, commas and colons outside
// of strings than values and names, and is not nested deeper. It says nothing of what is not JSON.
func small(data []byte) bool {
	elements, depth, inString := 1, 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case c == '"':
			inString = !inString
		case inString && c == '\\':
			i++
		case inString:
		case c == '{', c == '[':
			depth++
			elements++
		case c == '}', c == ']':
			depth--
		case c == ',', c == ':':
			elements++
		}
		if elements > maxElements/2 || depth > bound.Depth {
			return false
		}
	}
	return true
}

// jsonValue is a JSON value with its encoding.
type jsonValue struct {
	text    string // a scalar as it is encoded; "object" or "array"
	names   []string
	encoded []string              // the names as they are encoded
	members map[string]*jsonValue // nil unless it is an object
	items   []*jsonValue
}

// jsonParser reads JSON into values, within the limits of this package.
type jsonParser struct {
	data     []byte
	decoder  *json.Decoder
	elements int
}

// parseJSON reads one JSON value. It fails when an object has a name twice and when something follows the value.
func parseJSON(data []byte) (*jsonValue, error) {
	p := &jsonParser{data: data, decoder: json.NewDecoder(bytes.NewReader(data))}
	p.decoder.UseNumber()
	value, err := p.value("", 1)
	if err != nil {
		return nil, err
	}
	if _, err := p.decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("byte %d: something follows the JSON value", p.decoder.InputOffset())
	}
	return value, nil
}

// next returns the next token and how it is encoded.
func (p *jsonParser) next(path string) (token json.Token, text string, err error) {
	start := p.decoder.InputOffset()
	token, err = p.decoder.Token()
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		return nil, "", at(path, "not JSON: %w", err)
	}
	if p.elements++; p.elements > maxElements {
		return nil, "", at(path, "%w", errElements)
	}
	return token, strings.TrimLeft(string(p.data[start:p.decoder.InputOffset()]), " \t\r\n,:"), nil
}

// value reads a value; depth is the number of the arrays and objects around it, plus one.
func (p *jsonParser) value(path string, depth int) (*jsonValue, error) {
	token, text, err := p.next(path)
	if err != nil {
		return nil, err
	}
	delimiter, isDelimiter := token.(json.Delim)
	switch {
	case !isDelimiter:
		return &jsonValue{text: text}, nil
	case depth > bound.Depth:
		return nil, at(path, "%w", errDepth)
	case delimiter == '{':
		return p.object(path, depth)
	}
	v := &jsonValue{text: "array"}
	for p.decoder.More() {
		item, err := p.value(fmt.Sprintf("%s[%d]", path, len(v.items)), depth+1)
		if err != nil {
			return nil, err
		}
		v.items = append(v.items, item)
	}
	_, _, err = p.next(path)
	return v, err
}

// object reads an object after its brace.
func (p *jsonParser) object(path string, depth int) (*jsonValue, error) {
	v := &jsonValue{text: "object", members: map[string]*jsonValue{}}
	for p.decoder.More() {
		token, text, err := p.next(path)
		if err != nil {
			return nil, err
		}
		name, _ := token.(string) // the decoder accepts no other token as a name
		if v.members[name] != nil {
			return nil, at(path, "duplicate name %.50q", name)
		}
		v.names, v.encoded = append(v.names, name), append(v.encoded, text)
		if v.members[name], err = p.value(join(path, name), depth+1); err != nil {
			return nil, err
		}
	}
	_, _, err := p.next(path)
	return v, err
}

// differ returns an error for the first difference between a value and the one in the canonical encoding. It returns
// nil if they differ in white space alone.
func (v *jsonValue) differ(path string, canonical *jsonValue) error {
	if v.text != canonical.text {
		return at(path, "%.60s instead of %.60s", printable(v.text), printable(canonical.text))
	}
	for _, name := range v.names {
		if canonical.members[name] == nil {
			return at(path, "unknown name %.50q%s", name, canonical.suggest(name))
		}
	}
	for i, name := range canonical.names {
		switch {
		case v.members[name] == nil:
			return at(path, "name %.50q is missing", name)
		case v.names[i] != name:
			return at(path, "name %.50q where %.50q belongs", v.names[i], name)
		case v.encoded[i] != canonical.encoded[i]:
			return at(path, "name %.60s instead of %.60s", printable(v.encoded[i]), printable(canonical.encoded[i]))
		}
		if err := v.members[name].differ(join(path, name), canonical.members[name]); err != nil {
			return err
		}
	}
	if len(v.items) != len(canonical.items) {
		return at(path, "%d items instead of %d", len(v.items), len(canonical.items))
	}
	for i, item := range v.items {
		if err := item.differ(fmt.Sprintf("%s[%d]", path, i), canonical.items[i]); err != nil {
			return err
		}
	}
	return nil
}

// suggest returns words about a name of the object that differs in case alone.
func (v *jsonValue) suggest(name string) string {
	i := slices.IndexFunc(v.names, func(known string) bool { return strings.EqualFold(known, name) })
	if i < 0 {
		return ""
	}
	return fmt.Sprintf(", expected %.50q", v.names[i])
}

// join returns the path of a member.
func join(path, name string) string {
	if short := fmt.Sprintf("%.50s", name); short != name {
		name = short + "..."
	}
	if quoted := strconv.Quote(name); quoted != `"`+name+`"` {
		name = quoted
	}
	if path == "" {
		return name
	}
	return path + "." + name
}

// printable replaces what would act on a terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return unicode.ReplacementChar
		}
		return r
	}, text)
}

// at returns an error about the value at a path; an empty path is the whole document.
func at(path, format string, args ...any) error {
	err := fmt.Errorf(format, args...)
	if path == "" {
		return err
	}
	return fmt.Errorf("%s: %w", path, err)
}
