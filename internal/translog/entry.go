package translog

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"
	"unicode/utf16"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// MaxEntry is the limit of the size of an entry in bytes: what the length in a bundle of entries can be.
const MaxEntry = 1<<16 - 1

var entryLimits = bound.Limits{Bytes: MaxEntry, Depth: bound.Depth, Elements: 8192}

// maxInteger is the largest integer that all readers of JSON agree on (RFC 7493 section 2.2).
const maxInteger = 1<<53 - 1

// Event is what every entry says of itself.
type Event struct {
	Type string
	Time time.Time
}

// Canonical returns the canonical JSON (RFC 8785) of what encoding/json encodes v as. Its numbers are integers: it
// fails with Invalid for a number with a fraction or an exponent, or beyond 2^53-1.
func Canonical(v any) ([]byte, error) {
	var encoded bytes.Buffer
	encoder := json.NewEncoder(&encoded)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	var canonical []byte
	if err == nil {
		canonical, err = canonicalise(encoded.Bytes())
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot encode %T as canonical JSON: %w", v, err)
	}
	return canonical, nil
}

// canonicalise returns JSON in its canonical form.
func canonicalise(data []byte) ([]byte, error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	return appendValue(make([]byte, 0, len(data)), value)
}

// appendValue appends the canonical JSON of a value as encoding/json decodes it.
func appendValue(to []byte, value any) ([]byte, error) {
	var err error
	switch v := value.(type) {
	case nil:
		return append(to, "null"...), nil
	case bool:
		return strconv.AppendBool(to, v), nil
	case string:
		return appendString(to, v), nil
	case json.Number:
		n, err := strconv.ParseInt(v.String(), 10, 64)
		if err != nil || n > maxInteger || n < -maxInteger {
			return nil, fmt.Errorf("the number %.30s is not an integer of at most 2^53-1", v)
		}
		return strconv.AppendInt(to, n, 10), nil
	case []any:
		to = append(to, '[')
		for i, element := range v {
			if i > 0 {
				to = append(to, ',')
			}
			if to, err = appendValue(to, element); err != nil {
				return nil, err
			}
		}
		return append(to, ']'), nil
	case map[string]any:
		to = append(to, '{')
		for i, name := range slices.SortedFunc(maps.Keys(v), compareNames) {
			if i > 0 {
				to = append(to, ',')
			}
			to = append(appendString(to, name), ':')
			if to, err = appendValue(to, v[name]); err != nil {
				return nil, err
			}
		}
		return append(to, '}'), nil
	}
	return nil, fmt.Errorf("%T is not a value of JSON", value)
}

// compareNames compares names by their UTF-16 code units, whose order differs from that of UTF-8 beyond U+FFFF.
func compareNames(a, b string) int {
	return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
}

// appendString appends a string. RFC 8785 escapes what must be escaped alone.
func appendString(to []byte, s string) []byte {
	to = append(to, '"')
	for i := range len(s) {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			to = append(to, '\\', c)
		case c >= 0x20:
			to = append(to, c)
		case c == '\b':
			to = append(to, `\b`...)
		case c == '\t':
			to = append(to, `\t`...)
		case c == '\n':
			to = append(to, `\n`...)
		case c == '\f':
			to = append(to, `\f`...)
		case c == '\r':
			to = append(to, `\r`...)
		default:
			to = fmt.Appendf(to, `\u%04x`, c)
		}
	}
	return append(to, '"')
}

// Check returns what an entry says of itself. It fails with Invalid unless the entry is a JSON object in canonical form
// of at most MaxEntry bytes, with a "type" and a "time" (RFC 3339, in UTC).
func Check(entry []byte) (Event, error) {
	event, err := check(entry)
	if err != nil {
		return Event{}, failure.New(failure.Invalid, "cannot read an entry of the log: %w", err)
	}
	return event, nil
}

func check(entry []byte) (Event, error) {
	if err := bound.JSON(entry, entryLimits); err != nil {
		return Event{}, err
	}
	if canonical, err := canonicalise(entry); err != nil || !bytes.Equal(canonical, entry) {
		if err == nil {
			err = fmt.Errorf("it is not in canonical form (RFC 8785)")
		}
		return Event{}, err
	}
	var names map[string]json.RawMessage // names of a struct would also match in another case
	if err := json.Unmarshal(entry, &names); err != nil || names == nil {
		return Event{}, fmt.Errorf("it is not an object")
	}
	var event Event
	var text string
	if err := json.Unmarshal(names["type"], &event.Type); err != nil || event.Type == "" {
		return Event{}, fmt.Errorf(`it has no "type"`)
	}
	if err := json.Unmarshal(names["time"], &text); err != nil {
		return Event{}, fmt.Errorf(`it has no "time"`)
	}
	var err error
	event.Time, err = time.Parse(time.RFC3339Nano, text)
	if err != nil || text[len(text)-1] != 'Z' {
		return Event{}, fmt.Errorf(`its "time" %.40q is not a time of RFC 3339 in UTC`, text)
	}
	return event, nil
}

// appendBundle appends an entry as it is in a bundle of entries: its length in two bytes, big-endian, and the entry.
func appendBundle(to, entry []byte) ([]byte, error) {
	if len(entry) > MaxEntry {
		return nil, failure.New(failure.Invalid, "an entry of the log has %d bytes, more than %d", len(entry), MaxEntry)
	}
	return append(binary.BigEndian.AppendUint16(to, uint16(len(entry)&MaxEntry)), entry...), nil
}

// maxBundle is the limit of the size of a bundle of entries in bytes.
const maxBundle = tileWidth * (2 + MaxEntry)

// splitBundle returns the entries of a bundle, which must be as many as width.
func splitBundle(data []byte, width int) ([][]byte, error) {
	entries := make([][]byte, 0, width)
	for len(data) > 0 {
		if len(entries) == width {
			return nil, fmt.Errorf("it has more than %d entries", width)
		}
		if len(data) < 2 || len(data)-2 < int(binary.BigEndian.Uint16(data)) {
			return nil, fmt.Errorf("it ends within entry %d", len(entries))
		}
		size := int(binary.BigEndian.Uint16(data))
		entries = append(entries, data[2:2+size:2+size])
		data = data[2+size:]
	}
	if len(entries) != width {
		return nil, fmt.Errorf("it has %d entries instead of %d", len(entries), width)
	}
	return entries, nil
}
