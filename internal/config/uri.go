package config

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"

	pkcs11uri "github.com/stefanberger/go-pkcs11uri"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Scheme starts every PKCS#11 key reference.
const Scheme = "pkcs11:"

// URI is an RFC 7512 URI that names a token, or a private key on one; or a key on the NetHSM of the config file.
type URI struct {
	NetHSM                             bool // nethsm:KEYID; Object is the key ID, and nothing else is set
	Token, Serial, Manufacturer, Model string
	SlotID                             *uint
	Object                             string // CKA_LABEL; empty matches any
	ID                                 []byte // CKA_ID; empty matches any
	Query                              map[string]string
}

// Attributes of RFC 7512 that are honoured. Those that would narrow the match in a way we do not check are refused, as
// section 2.3 asks: ignoring one could pick another key than the one named.
var (
	pathAttributes  = []string{"token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"}
	queryAttributes = []string{"module-path", "pin-source", "pin-value"}
)

// ParseURI reads an RFC 7512 URI, or nethsm:KEYID. It returns a failure of kind Invalid that names the attribute at
// fault.
func ParseURI(text string) (URI, error) {
	if strings.HasPrefix(text, NetHSMScheme) {
		return parseNetHSM(text)
	}
	if err := checkAttributes(text); err != nil {
		return URI{}, err
	}
	parsed := pkcs11uri.New()
	if err := parsed.Parse(text); err != nil { // what it says may repeat a value
		return URI{},
			malformed(text,
				"has a value that RFC 7512 does not allow: slot-id is a number, module-path a full path, and pin-source "+
					"excludes pin-value")
	}
	path := func(name string) string { value, _ := parsed.GetPathAttribute(name, false); return value }
	uri := URI{
		Token: path("token"), Serial: path("serial"), Manufacturer: path("manufacturer"), Model: path("model"),
		Object: path("object"), ID: []byte(path("id")), Query: map[string]string{},
	}
	if kind := path("type"); kind != "" && kind != "private" {
		return URI{}, failure.New(failure.Invalid,
			"the key URI %q names an object of type %q, not a private key", Redact(text), kind).
			WithHint("leave out type, or use type=private")
	}
	if slot := path("slot-id"); slot != "" {
		id, err := parseSlot(slot)
		if err != nil {
			return URI{}, err
		}
		uri.SlotID = &id
	}
	for _, name := range queryAttributes {
		if value, ok := parsed.GetQueryAttribute(name, false); ok {
			uri.Query[name] = value
		}
	}
	return uri, nil
}

// checkAttributes verifies that each attribute is known, is given once and is percent-encoded. Its errors repeat no
// value, and no name that a PIN could stand in.
func checkAttributes(text string) error {
	path, query, _ := strings.Cut(strings.TrimPrefix(text, Scheme), "?")
	check := func(part, sep string, known []string) error {
		seen := map[string]bool{}
		for attribute := range strings.SplitSeq(part, sep) {
			if attribute == "" && part == "" {
				return nil
			}
			name, value, ok := strings.Cut(attribute, "=")
			if !ok {
				return malformed(text, "has an attribute without a value")
			}
			if err := checkName(name, known, "attribute", keyURI); err != nil {
				return err
			}
			if seen[name] {
				return malformed(text, "has the attribute "+name+" twice")
			}
			seen[name] = true
			decoded, err := url.PathUnescape(value)
			if err != nil {
				return malformed(text, "has a wrong percent-encoding in the attribute "+name)
			}
			if namesPIN(decoded) {
				return malformed(text, "has a pin-value or pin-source within the attribute "+name)
			}
		}
		return nil
	}
	if err := check(path, ";", pathAttributes); err != nil {
		return err
	}
	return check(query, "&", queryAttributes)
}

func malformed(text, how string) error {
	return failure.New(failure.Invalid, "the key URI %q is malformed: it %s", redactMalformed(text), how).
		WithHint(`a key is named like "pkcs11:token=signing;object=release" (RFC 7512); pin-source stands after "?", and what joins it is "&"`)
}

func parseSlot(text string) (uint, error) {
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, failure.New(failure.Invalid, "%q is not a slot number", text).
			WithHint("slot numbers are shown by 'notation-hsm token list'")
	}
	return uint(id), nil
}

// Scheme returns the scheme of the URI, with its colon.
func (u URI) Scheme() string {
	if u.NetHSM {
		return NetHSMScheme
	}
	return Scheme
}

// String returns the URI with its attributes in a fixed order, percent-encoded, and without a PIN.
func (u URI) String() string {
	if u.NetHSM {
		return NetHSMScheme + u.Object
	}
	encode := pkcs11uri.New()
	var parts []string
	add := func(name, value string) {
		if value != "" {
			encode.SetPathAttributeUnencoded(name, []byte(value))
			encoded, _ := encode.GetPathAttribute(name, true)
			parts = append(parts, name+"="+encoded)
		}
	}
	add("token", u.Token)
	add("serial", u.Serial)
	add("manufacturer", u.Manufacturer)
	add("model", u.Model)
	if u.SlotID != nil {
		parts = append(parts, fmt.Sprintf("slot-id=%d", *u.SlotID))
	}
	if len(u.ID) > 0 {
		var id strings.Builder
		for _, b := range u.ID {
			fmt.Fprintf(&id, "%%%02X", b)
		}
		parts = append(parts, "id="+id.String())
	}
	add("object", u.Object)
	return Scheme + strings.Join(parts, ";")
}

// Redact returns a reference as it may be shown: without its query, and without all that follows the scheme, where a
// PIN or the source of one stands in it.
func Redact(text string) string {
	if !namesPIN(text) {
		return text
	}
	return redactMalformed(text)
}

// redactMalformed is Redact for a reference that could not be read, in whose query even an unknown attribute may be a
// misspelt pin-value.
func redactMalformed(text string) string {
	shown, _, query := strings.Cut(text, "?")
	pin := mentions(shown, "pinvalue", "pinsource") // even without "="
	switch {
	case pin && strings.HasPrefix(text, Scheme):
		return Scheme + "..."
	case pin:
		return "..."
	case query:
		return shown + "?..."
	}
	return shown
}

// namesPIN reports whether an attribute pin-value or pin-source stands in a text, in any spelling: in other letters,
// without or with other hyphens, spaces or a colon, percent-encoded once or more.
func namesPIN(text string) bool { return mentions(text, "pinvalue=", "pinsource=") }

// mentions reports whether one of some words stands in a text, in any such spelling.
func mentions(text string, words ...string) bool {
	for {
		plain := strings.Map(func(r rune) rune {
			if unicode.IsLetter(r) || r == '=' {
				return unicode.ToLower(r)
			}
			if r == ':' {
				return '='
			}
			return -1
		}, text)
		if slices.ContainsFunc(words, func(word string) bool { return strings.Contains(plain, word) }) {
			return true
		}
		decoded := lenient(text)
		if decoded == text {
			return false
		}
		text = decoded
	}
}

// lenient decodes each percent-encoded byte there is, and leaves the rest as it is.
func lenient(text string) string {
	if !strings.Contains(text, "%") {
		return text
	}
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '%' && i+2 < len(text) {
			if c, err := strconv.ParseUint(text[i+1:i+3], 16, 8); err == nil {
				b.WriteByte(byte(c))
				i += 2
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}
