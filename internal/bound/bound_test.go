package bound_test

import (
	"bytes"
	"encoding/asn1"
	"encoding/json"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
)

var limits = bound.Limits{Bytes: 1 << 20, Depth: bound.Depth, Elements: 1000}

// cost is what a check may allocate: the decoder's buffer, and the names of open objects.
var cost = boundtest.Budget{Bytes: 8 << 10, BytesPerByte: 80}

func TestJSON(t *testing.T) {
	for text, words := range map[string]string{
		`{}`: "", ` [1, "a", {"b": null, "c": {"b": 1e999}}] `: "", `"text"`: "", `12`: "", `{"a":{"x":1},"b":{"x":1}}`: "",
		nested("[", "]", 16): "", nested(`{"a":`, "}", 16): "", `["a","a"]`: "", `{"a":"a","A":"b"}`: "",
		"": "not JSON", "{": "not JSON", `[1`: "not JSON", `{"a"}`: "not JSON", `{1:2}`: "not JSON", "[1]]": "follows",
		`{}{}`: "follows", "1 2": "follows",
		`{"a":1,"b":2,"a":3}`: `"a" twice`, `{"a":1,"\u0061":2}`: `"a" twice`, `[{"x":{"a":[],"a":{}}}]`: `"a" twice`,
		nested("[", "]", 17): "deeper than 16", strings.Repeat("[", 1<<20): "deeper than 16",
		nested(`{"a":`, "}", 17):               "deeper than 16",
		"[" + strings.Repeat("0,", 999) + "0]": "more than 1000 elements", "[" + strings.Repeat("0,", 998) + "0]": "",
		`"` + strings.Repeat("a", 1<<20) + `"`: "more than 1048576",
	} {
		check(t, []byte(text), words, bound.JSON)
	}
}

func nested(begin, end string, depth int) string {
	return strings.Repeat(begin, depth) + "0" + strings.Repeat(end, depth)
}

func TestDER(t *testing.T) {
	many := bytes.Repeat([]byte{5, 0}, 999)
	for _, test := range []struct {
		der   []byte
		words string
	}{
		{nil, ""}, {[]byte{5, 0}, ""}, {[]byte{5, 0, 5, 0}, ""}, {[]byte{0x30, 0}, ""},
		{[]byte{0x30, 4, 0x30, 0, 0x30, 0}, ""},
		{[]byte{0x1f, 0x81, 1, 1, 7}, ""}, {wrap(nil, 16), ""}, {wrap([]byte{4, 1, 0x80}, 16), ""}, {wrap(many, 1), ""},
		{wrap(nil, 17), "deeper than 16"}, {wrap(nil, 20000), "deeper than 16"},
		{wrap(append(many, 5, 0), 1), "more than 1000 elements"},
		{[]byte{0x30, 0x80, 0, 0}, "indefinite"}, {bytes.Repeat([]byte{0x30, 0x80}, 33<<10), "indefinite"},
		{[]byte{0x24, 0x80, 4, 1, 0, 0, 0}, "indefinite"},
		{[]byte{4, 0x81, 1, 0}, "more bytes than it needs"}, {[]byte{4, 0x82, 0, 1, 0}, "more bytes than it needs"},
		{append([]byte{4, 0x82, 0, 200}, make([]byte, 200)...), "more bytes than it needs"},
		{[]byte{0x30}, "cut short"}, {[]byte{0x30, 1}, "cut short"}, {[]byte{0x1f}, "cut short"},
		{[]byte{0x1f, 0x81}, "cut short"}, {[]byte{0x1f, 1}, "cut short"},
		{[]byte{4, 0x84, 0xff, 0xff, 0xff, 0xff}, "cut short"}, {[]byte{4, 0x85, 1, 0, 0, 0, 0}, "cut short"},
		{[]byte{4, 0x82, 1}, "cut short"},
		{[]byte{0x30, 2, 4, 1, 0}, "cut short"}, // the inner element ends after the outer one
		{make([]byte, 1<<20+1), "more than 1048576"},
	} {
		check(t, test.der, test.words, bound.DER)
	}
}

// wrap nests DER in sequences.
func wrap(der []byte, depth int) []byte {
	for range depth {
		der, _ = asn1.Marshal(asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: der})
	}
	return der
}

func check(t *testing.T, data []byte, words string, f func([]byte, bound.Limits) error) {
	t.Helper()
	var err error
	cost.Check(t, len(data), func() { err = f(data, limits) })
	if (err == nil) != (words == "") || err != nil && !strings.Contains(err.Error(), words) {
		t.Errorf("%.50q fails with %v, which does not say %q", data, err, words)
	}
}

// FuzzJSON verifies that what passes is JSON, within the limits, and that checking costs no more than the size allows.
func FuzzJSON(f *testing.F) {
	for _, seed := range []string{`{"a":[1,{"b":null}],"c":"\u0061"}`, `{"a":1,"a":2}`, strings.Repeat("[", 20), "1 2",
		""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var err error
		cost.Check(t, len(data), func() { err = bound.JSON(data, limits) })
		if err == nil && !json.Valid(data) {
			t.Error("it is not JSON")
		}
	})
}

// FuzzDER verifies that of what encoding/asn1 can read, just what is within the limits passes, and that checking costs
// no more than the size allows.
func FuzzDER(f *testing.F) {
	for _, seed := range [][]byte{wrap([]byte{4, 1, 0}, 3), wrap(nil, 17), {0x30, 0x80, 0, 0}, {0x1f, 0x81, 1, 1, 7},
		{4, 0x81, 0x80}, nil} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var err error
		cost.Check(t, len(data), func() { err = bound.DER(data, limits) })
		if depth, elements, ok := measure(data); ok &&
			(err == nil) != (depth <= limits.Depth && elements <= limits.Elements) {
			t.Errorf("%d elements up to %d deep: %v", elements, depth, err)
		}
	})
}

// measure reads DER by recursion.
func measure(data []byte) (depth, elements int, ok bool) {
	for len(data) > 0 {
		var element asn1.RawValue
		rest, err := asn1.Unmarshal(data, &element)
		if err != nil {
			return 0, 0, false
		}
		data = rest
		elements++
		if !element.IsCompound {
			continue
		}
		below, more, ok := measure(element.Bytes)
		if !ok {
			return 0, 0, false
		}
		depth, elements = max(depth, 1+below), elements+more
	}
	return depth, elements, true
}
