package payload

import (
	"bytes"
	"encoding/asn1"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// derLimits are those of a certificate revocation list with some ten thousand entries.
var derLimits = bound.Limits{Bytes: Limit, Depth: bound.Depth, Elements: 60000}

// printableMarks are the characters of a PrintableString, besides letters and digits.
const printableMarks = " '()+,-./:=?"

// A derField is an element of a sequence.
type derField struct {
	name     string // for errors
	tags     string // the identifier octets that its element may have
	optional bool
	into     any    // a pointer for the value; *asn1.RawValue takes any
	params   string // of encoding/asn1
}

// readSequence decodes the elements of a sequence in DER. It fails with the name of the field unless encoding what was
// decoded gives the same bytes, and when there are other elements.
func readSequence(sequence []byte, fields []derField) error {
	if err := bound.DER(sequence, derLimits); err != nil {
		return err
	}
	elements, err := derElements(sequence)
	if err != nil {
		return err
	}
	if len(elements) != 1 || elements[0].FullBytes[0] != 0x30 {
		return errors.New("not one sequence")
	}
	if elements, err = derElements(elements[0].Bytes); err != nil {
		return err
	}
	for _, f := range fields {
		switch {
		case len(elements) > 0 && strings.IndexByte(f.tags, elements[0].FullBytes[0]) >= 0:
		case f.optional:
			continue
		case len(elements) > 0:
			return fmt.Errorf("%s: an element of type %#x instead", f.name, elements[0].FullBytes[0])
		default:
			return fmt.Errorf("%s: missing", f.name)
		}
		if err := f.read(elements[0]); err != nil {
			return fmt.Errorf("%s: %w", f.name, err)
		}
		elements = elements[1:]
	}
	if len(elements) > 0 {
		return fmt.Errorf("an element of type %#x that is unknown", elements[0].FullBytes[0])
	}
	return nil
}

// read decodes the element of a field.
func (f derField) read(element asn1.RawValue) error {
	if err := checkDER(element); err != nil {
		return err
	}
	if raw, ok := f.into.(*asn1.RawValue); ok {
		*raw = element
		return nil
	}
	return decodeDER(element.FullBytes, f.into, f.params)
}

// decodeDER decodes DER into a pointer. It fails unless encoding the value gives the same bytes.
func decodeDER(der []byte, into any, params string) error {
	rest, err := asn1.UnmarshalWithParams(der, into, params)
	if err != nil {
		return err
	}
	encoded, err := encodeDER(into, params)
	if err != nil {
		return err
	}
	if len(rest) > 0 || !bytes.Equal(der, encoded) {
		return errors.New("a value that is unknown or not in its canonical encoding")
	}
	return nil
}

// derElements returns the elements that data consists of.
func derElements(data []byte) (elements []asn1.RawValue, err error) {
	for len(data) > 0 {
		var element asn1.RawValue
		if data, err = asn1.Unmarshal(data, &element); err != nil {
			return nil, err
		}
		elements = append(elements, element)
	}
	return elements, nil
}

// checkDER fails unless an element, and each in it, is in the one encoding that DER (X.690) has for its value. Its
// depth is bounded by bound.DER.
func checkDER(element asn1.RawValue) error {
	universal := element.Class == asn1.ClassUniversal
	if universal && element.IsCompound != (element.Tag == asn1.TagSequence || element.Tag == asn1.TagSet) {
		return fmt.Errorf("a wrongly constructed element of type %#x", element.FullBytes[0])
	}
	if !element.IsCompound {
		if universal && !isCanonical(element) {
			return fmt.Errorf("%x is not in the canonical encoding", truncated(element.FullBytes))
		}
		return nil
	}
	inner, err := derElements(element.Bytes)
	if err != nil {
		return err
	}
	for i, e := range inner {
		if err := checkDER(e); err != nil {
			return err
		}
		if universal && element.Tag == asn1.TagSet && i > 0 && bytes.Compare(inner[i-1].FullBytes, e.FullBytes) >= 0 {
			return fmt.Errorf("%x in a set that is not sorted", truncated(e.FullBytes))
		}
	}
	return nil
}

// truncated returns the first bytes of data, for an error.
func truncated(data []byte) []byte { return data[:min(len(data), 20)] }

// isCanonical reports whether a primitive element of a universal type is DER. Types that certificates do not have are
// not.
func isCanonical(e asn1.RawValue) bool {
	switch data := e.Bytes; e.Tag {
	case asn1.TagBoolean:
		return len(data) == 1 && (data[0] == 0 || data[0] == 0xff)
	case asn1.TagInteger, asn1.TagEnum:
		redundant := len(data) > 1 && (data[0] == 0 && data[1] < 0x80 || data[0] == 0xff && data[1] >= 0x80)
		return len(data) > 0 && !redundant
	case asn1.TagBitString:
		if len(data) < 2 {
			return len(data) == 1 && data[0] == 0
		}
		return data[0] < 8 && data[len(data)-1]&(1<<data[0]-1) == 0
	case asn1.TagOctetString:
		return true
	case asn1.TagNull:
		return len(data) == 0
	case asn1.TagOID:
		var oid asn1.ObjectIdentifier
		return decodeDER(e.FullBytes, &oid, "") == nil
	case asn1.TagUTF8String:
		return utf8.Valid(data)
	case asn1.TagPrintableString:
		return !bytes.ContainsFunc(data, func(r rune) bool {
			isAlphanumeric := '0' <= r && r <= '9' || 'A' <= r && r <= 'Z' || 'a' <= r && r <= 'z'
			return !isAlphanumeric && !strings.ContainsRune(printableMarks, r)
		})
	case asn1.TagIA5String:
		return !bytes.ContainsFunc(data, func(r rune) bool { return r >= 0x80 })
	case asn1.TagUTCTime, asn1.TagGeneralizedTime:
		return isTime(string(data), e.Tag)
	}
	return false
}

// encodeDER encodes the value that a pointer points to.
func encodeDER(value any, params string) ([]byte, error) {
	return asn1.MarshalWithParams(reflect.ValueOf(value).Elem().Interface(), params)
}

// isTime reports whether a time has seconds and no fraction of them, and is in UTC. That a date of a certificate has
// the type that belongs to its year (RFC 5280, section 4.1.2.5) follows from encoding it again.
func isTime(text string, tag int) bool {
	layout := "060102150405Z"
	if tag == asn1.TagGeneralizedTime {
		layout = "20060102150405Z"
	}
	t, err := time.Parse(layout, text)
	return err == nil && t.Format(layout) == text
}
