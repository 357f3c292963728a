package bound_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

func TestCBOR(t *testing.T) {
	arrays := func(depth int) []byte { return append(bytes.Repeat([]byte{0x81}, depth), 0) }
	for _, test := range []struct {
		cbor  []byte
		words string
	}{
		{[]byte{0}, ""}, {[]byte{0x80}, ""}, {[]byte{0xa0}, ""}, {[]byte{0xa1, 1, 0x41, 0xff}, ""},
		{[]byte{0xd2, 0x84, 0x40, 0xa0, 0x40, 0x40}, ""}, {[]byte{0xfb, 1, 2, 3, 4, 5, 6, 7, 8}, ""},
		{[]byte{0x82, 0x80, 0x82, 0xa0, 0x80}, ""}, {arrays(16), ""}, {append(bytes.Repeat([]byte{0xc1}, 16), 0), ""},
		{arrays(17), "deeper than 16"}, {arrays(1 << 19), "deeper than 16"},
		{append(bytes.Repeat([]byte{0xc1}, 17), 0), "deeper than 16"},
		{append([]byte{0x99, 0x03, 0xe7}, make([]byte, 999)...), ""},
		{append([]byte{0x99, 0x03, 0xe8}, make([]byte, 1000)...), "more than 1000 elements"},
		{[]byte{0x9f, 0xff}, "indefinite"}, {[]byte{0x5f, 0xff}, "indefinite"}, {[]byte{0x1c}, "not CBOR"},
		{[]byte{0, 0}, "follows"},
		{nil, "cut short"}, {[]byte{0x81}, "cut short"}, {[]byte{0xa1, 0}, "cut short"}, {[]byte{0xc1}, "cut short"},
		{[]byte{0x41}, "cut short"}, {[]byte{0x19, 1}, "cut short"},
		{[]byte{0x5b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, "cut short"},
		{[]byte{0xbb, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0}, "cut short"},
	} {
		check(t, test.cbor, test.words, bound.CBOR)
	}
}

// FuzzCBOR verifies that what the parser takes for CBOR within the limits passes, and that checking costs no more than
// the size allows.
func FuzzCBOR(f *testing.F) {
	for _, seed := range [][]byte{{0xd2, 0x84, 0x40, 0xa0, 0x40, 0x40}, {0x82, 0x80, 0x82, 0xa0, 0x80},
		{0xbb, 0x80, 0, 0, 0, 0, 0, 0, 1, 0, 0}, bytes.Repeat([]byte{0x81}, 20)} {
		f.Add(seed)
	}
	mode, err := cbor.DecOptions{MaxNestedLevels: bound.Depth, IndefLength: cbor.IndefLengthForbidden,
		UTF8: cbor.UTF8DecodeInvalid}.DecMode()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var err error
		cost.Check(t, len(data), func() { err = bound.CBOR(data, limits) })
		// they count tags otherwise
		if theirs := mode.Wellformed(data); err != nil && theirs == nil && len(data) <= limits.Elements &&
			!strings.Contains(err.Error(), "nested deeper") {
			t.Error(err)
		}
	})
}
