package translog

import (
	"bytes"
	"encoding/json"
	"math"
	"strings"
	"testing"

	"github.com/cyberphone/json-canonicalization/go/src/webpki.org/jsoncanonicalizer"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestCanonical encodes values.
func TestCanonical(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		value any
		want  string // "": refused
	}{
		{map[string]any{"b": 1, "a": []any{true, nil, "x"}, "": map[string]any{}}, `{"":{},"a":[true,null,"x"],"b":1}`},
		{map[string]int{"\ufb33": 1, "\U0001f600": 2, "\u20ac": 3, "\r": 4, "1": 5}, // as in RFC 8785 section 3.2.3
			"{\"\\r\":4,\"1\":5,\"\u20ac\":3,\"\U0001f600\":2,\"\ufb33\":1}"},
		{[]string{"<&>\u2028\u2029", "\b\t\n\f\r\x00\x1f\x7f", `"\/`},
			"[\"<&>\u2028\u2029\",\"\\b\\t\\n\\f\\r\\u0000\\u001f\x7f\",\"\\\"\\\\/\"]"},
		{int64(maxInteger), "9007199254740991"},
		{int64(-maxInteger), "-9007199254740991"},
		{json.Number("-0"), "0"},
		{int64(maxInteger + 1), ""},
		{uint64(math.MaxUint64), ""},
		{1.5, ""},
		{1e30, ""},
		{json.Number("1.0"), ""},
		{json.Number("1e2"), ""},
		{func() {}, ""},
	} {
		got, err := Canonical(c.value)
		if string(got) != c.want || (c.want == "") != failure.Is(err, failure.Invalid) {
			t.Errorf("%v is %s, want %s: %v", c.value, got, c.want, err)
		}
	}
}

// TestCheck verifies which entries are accepted.
func TestCheck(t *testing.T) {
	t.Parallel()
	const good = `{"time":"2026-01-02T03:04:05.678Z","type":"signed"}`
	event, err := Check([]byte(good))
	if err != nil || event.Type != "signed" || event.Time.UnixMilli() != 1767323045678 {
		t.Errorf("%v: %v", event, err)
	}
	withPadding := func(n int) string {
		return strings.Replace(good, `{`, `{"padding":"`+strings.Repeat("x", n-len(good)-len(`"padding":"",`))+`",`, 1)
	}
	if _, err := Check([]byte(withPadding(MaxEntry))); err != nil {
		t.Errorf("the largest entry: %v", err)
	}
	for name, entry := range map[string]string{
		"empty":           "",
		"two values":      good + good,
		"a space":         good + " ",
		"order":           `{"type":"signed","time":"2026-01-02T03:04:05Z"}`,
		"a name twice":    `{"time":"2026-01-02T03:04:05Z","type":"a","type":"b"}`,
		"an escape":       strings.Replace(good, "signed", `signe\u0064`, 1),
		"a fraction":      strings.Replace(good, `{`, `{"a":1.5,`, 1),
		"invalid UTF-8":   strings.Replace(good, "signed", "\xff", 1),
		"a lone half":     strings.Replace(good, "signed", `\ud800`, 1),
		"array":           `["type","time"]`,
		"null":            "null",
		"no type":         `{"time":"2026-01-02T03:04:05Z"}`,
		"empty type":      strings.Replace(good, "signed", "", 1),
		"type no string":  strings.Replace(good, `"signed"`, "1", 1),
		"null type":       strings.Replace(good, `"signed"`, "null", 1),
		"another case":    strings.Replace(good, `"type"`, `"typE"`, 1),
		"no time":         `{"type":"signed"}`,
		"null time":       `{"time":null,"type":"signed"}`,
		"empty time":      `{"time":"","type":"signed"}`,
		"time with zone":  `{"time":"2026-01-02T03:04:05+00:00","type":"signed"}`,
		"time of day":     `{"time":"03:04:05Z","type":"signed"}`,
		"too large":       withPadding(MaxEntry + 1),
		"too deep":        strings.Replace(good, `{`, `{"a":`+strings.Repeat("[", 20)+strings.Repeat("]", 20)+`,`, 1),
		"too many values": strings.Replace(good, `{`, `{"a":[`+strings.Repeat("1,", 9000)+`1],`, 1),
	} {
		if event, err := Check([]byte(entry)); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v: %v", name, event, err)
		}
	}
}

// FuzzCanonical compares the canonical form with that of the library of RFC 8785's author.
func FuzzCanonical(f *testing.F) {
	for _, seed := range []string{`{"a":1,"b":[true,null,"\u00e9\ud83d\ude00\/"]}`, `{"\r":1,"\u20ac":-2}`, `[0,-0]`,
		`{"time":"2026-01-02T03:04:05Z","type":"a"}`, "{\"\ufb33\":1,\"\U0001f600\":{\"b\":1,\"a\":2}}"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		canonical, err := canonicalise(data)
		if _, wrong := Check(data); wrong == nil && !bytes.Equal(canonical, data) {
			t.Errorf("%q passes, and its canonical form is %q", data, canonical)
		}
		if err != nil || bytes.Contains(data, []byte(`\u`)) || bytes.ContainsRune(data, '\ufffd') || !json.Valid(data) ||
			!bytes.ContainsAny(data[:1], "{[") {
			return
		}
		if again, err := canonicalise(canonical); err != nil || !bytes.Equal(again, canonical) {
			t.Errorf("%q is %q, and that is %q: %v", data, canonical, again, err)
		}
		if theirs, err := jsoncanonicalizer.Transform(canonical); err != nil || !bytes.Equal(theirs, canonical) {
			t.Errorf("%q is %q, and theirs is %q: %v", data, canonical, theirs, err)
		}
	})
}

// FuzzBundle verifies that the entries of a bundle are encoded in one way.
func FuzzBundle(f *testing.F) {
	f.Add([]byte{0, 1, 'a', 0, 0}, 2)
	f.Fuzz(func(t *testing.T, data []byte, width int) {
		entries, err := splitBundle(data, max(0, min(width, tileWidth)))
		if err != nil {
			return
		}
		var again []byte
		for _, entry := range entries {
			if again, err = appendBundle(again, entry); err != nil {
				t.Fatal(err)
			}
		}
		if !bytes.Equal(again, data) {
			t.Errorf("%x is %d entries, which are %x", data, len(entries), again)
		}
	})
}

// FuzzPath verifies that each path names one tile, and that no other path names it.
func FuzzPath(f *testing.F) {
	for _, seed := range []string{"tile/0/000", "tile/7/x001/x234/067.p/255", "tile/entries/x001/000", "tile/8/000",
		"tile/0/0",
		"tile/0/000.p/256", "tile/data/000", "tile/0/x000/000", "tile/-1/000", "tile/entries/0/000", "tile/00/000"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, path string) {
		tile, err := parsePath(path)
		if err != nil {
			return
		}
		if tilePath(tile.L, tile.N, tile.W) != path || tile.L >= maxLevels || tile.N < 0 || tile.W < 1 || tile.W > 256 {
			t.Errorf("%q is read as %v", path, tile)
		}
	})
}
