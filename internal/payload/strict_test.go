package payload

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// TestReadJSON refuses JSON that is not in an encoding, with the path named.
func TestReadJSON(t *testing.T) {
	t.Parallel()
	type document struct {
		List []struct {
			N int               `json:"n"`
			S map[string]string `json:"s,omitempty"`
		} `json:"list"`
	}
	plain := func(value any) ([]byte, error) { // without the escapes for HTML
		var b bytes.Buffer
		encoder := json.NewEncoder(&b)
		encoder.SetEscapeHTML(false)
		err := encoder.Encode(value)
		return bytes.TrimSuffix(b.Bytes(), []byte("\n")), err
	}
	for _, test := range []struct {
		encode     func(any) ([]byte, error)
		text, want string
	}{
		{json.Marshal, `{"list":[{"n":1,"s":{"a":"\u003c"}},{"n":2}]}`, ""},
		{plain, `{"list":[{"n":1,"s":{"a":"<"}},{"n":2}]}`, ""},
		{plain, `{"list":[{"n":1,"s":{"a":"\u003c"}},{"n":2}]}`, `list[0].s.a: "\u003c" instead of "<"`},
		{json.Marshal, `{"list":null}`, ""}, // as Go encodes no list
		{json.Marshal, `{"list":[null]}`, `list[0]: null instead of object`},
		{json.Marshal, `{"list":[{"n":1},{"n":2,"N":3}]}`, `list[1]: unknown name "N", expected "n"`},
		{json.Marshal, `{"list":[{"n":1},{"n":2,"n":3}]}`, `list[1]: duplicate name "n"`},
		{json.Marshal, `{"list":[{"n":1},{"n":1e0}]}`, `list.n: number 1e0 is not of type int`},
		{json.Marshal, `{"list":[{"n":1},{"n": 2}]}`, `byte 22: " 2}]}" is not in the canonical encoding`},
		{json.Marshal, "{\"list\":[{\"n\":1}]}\n", `byte 18: "\n" is not in the canonical encoding`},
		{json.Marshal, `{"list":[]}0`, `byte 12: something follows the JSON value`},
		{json.Marshal, `{"list":[]`, `not JSON: unexpected EOF`},
		{json.Marshal, ``, `not JSON: unexpected EOF`},
		{json.Marshal, `{"list":[1 2]}`, `list[1]: not JSON`},
		{json.Marshal, `{"list" []}`, `not JSON`},
		{json.Marshal, `{"list":[}`, `not JSON`},
		{json.Marshal, `[]`, `array is not of type struct`},
		{json.Marshal, `null`, `null instead of object`},
		{json.Marshal, `{"list":[{"n":1,"s":{"\u001b[2J":1}}]}`, `list.s: number is not of type string`},
		{json.Marshal, `{"list":[{"n":1,"s":{"\u001b[2J":"\u003C"}}]}`, `list[0].s."\x1b[2J": "\u003C" instead of "\u003c"`},
		{json.Marshal, "{\"list\":[{\"n\":1,\"s\":{\"a\":\"\x7f\u009b\\u003C\"}}]}",
			`list[0].s.a: "` + "\ufffd\ufffd" + `\u003C"`},
		{json.Marshal, `{"list":[{"n":1,"s":{"` + strings.Repeat("k", 51) + `":"\u003C"}}]}`,
			`list[0].s.` + strings.Repeat("k", 50) + `...: `},
		{json.Marshal, `{"list":` + strings.Repeat("[", 16) + strings.Repeat("]", 17) + `}`, `: nested deeper than 16`},
		{json.Marshal, strings.Repeat(`{"list":`, 100000), `: nested deeper than 16`},
		{json.Marshal, `{"list":[` + strings.Repeat(`{"n":0},`, 25000) + `{"n":0}]}`, `more than 50000 values and names`},
		{json.Marshal, `{"list":[{"n":1` + strings.Repeat("0", 5000) + `}]}`,
			"list.n: number 1" + strings.Repeat("0", 52) + " is not"},
	} {
		var d document
		err := readJSON([]byte(test.text), &d, test.encode)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%.100s fails with %v, which does not say %q", test.text, err, test.want)
		}
	}
}

// TestReaders verifies that each of several formats can fit, and that bytes which are of two formats are refused.
func TestReaders(t *testing.T) {
	had := readers
	t.Cleanup(func() { readers = had })
	fits := func([]byte) (*Artifact, error) { return &Artifact{Format: TUF}, nil }
	other := func([]byte) (*Artifact, error) { return nil, errOther }
	refuses := func([]byte) (*Artifact, error) { return nil, at("name", "unknown") }
	for _, test := range []struct {
		readers []reader
		want    string
	}{
		{[]reader{{"a", other}, {"b", fits}, {"c", other}}, ""},
		{[]reader{{"a", refuses}, {"b", fits}}, ""}, {[]reader{{"b", fits}, {"a", refuses}}, ""},
		{[]reader{{"a", fits}, {"b", fits}}, "as b: the bytes are a as well"},
		{[]reader{{"a", other}, {"b", refuses}, {"c", refuses}}, "as b: name: unknown"},
		{[]reader{{"a", other}}, "no known format"}, {nil, "no known format"},
	} {
		readers = test.readers
		a, err := Read([]byte("x"))
		if test.want == "" && (err != nil || a.Format != TUF) ||
			test.want != "" && (a != nil || err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%v is read as %v, %v", test.readers, a, err)
		}
	}
}

// TestSmall counts what is outside of strings alone, and no less than there is.
func TestSmall(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]bool{
		`{"a":"[[[` + strings.Repeat("[{,:", maxElements) + `"}`:                     true,
		`{"a":"\"` + strings.Repeat("[", maxElements) + `"}`:                         true,
		`{"a":"\\",` + strings.Repeat(`"b":1,`, maxElements) + `"c":1}`:              false,
		"[" + strings.Repeat("1,", maxElements/2) + "1]":                             false,
		"[" + strings.Repeat("1,", maxElements/4) + "1]":                             true,
		strings.Repeat("[", bound.Depth) + strings.Repeat("]", 8):                    true,
		strings.Repeat("[", bound.Depth+1) + strings.Repeat("]", 8):                  false,
		strings.Repeat("{}", bound.Depth+1) + `{"a":[` + `"b"]}`:                     true,
		`{"a":"` + strings.Repeat(`\\`, 8) + `",` + strings.Repeat("[", bound.Depth): false,
	} {
		if small([]byte(text)) != want {
			t.Errorf("%v for %.40s", !want, text)
		}
	}
}
