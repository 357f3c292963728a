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

// Scheme begins the URI of a key or token in PKCS#11 (RFC 7512).
const Scheme = "pkcs11:"

// URI is an RFC 7512 URI of a token or of a private key on it, or the reference of a key on the NetHSM or of a broker.
type URI struct {
	NetHSM                             bool // nethsm:KEYID; only Object is set, to the key ID
	Broker                             bool // broker:NAME; only Object is set, to the name
	Token, Serial, Manufacturer, Model string
	SlotID                             *uint
	Object                             string // CKA_LABEL; empty matches any
	ID                                 []byte // CKA_ID; empty matches any
	Query                              map[string]string
}

// The known attributes of RFC 7512. Others are refused, as section 2.3 of it demands: to ignore one could match another
// key than the named one.
var (
	pathAttributes  = []string{"token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"}
	queryAttributes = []string{ModulePath, PINSource, pinValue}
)

// ParseURI parses an RFC 7512 URI, nethsm:KEYID or broker:NAME. It fails with kind Invalid, and names the malformed
// attribute.
func ParseURI(text string) (URI, error) {
	if strings.HasPrefix(text, NetHSMScheme) {
		return parseNetHSM(text)
	}
	if strings.HasPrefix(text, BrokerScheme) {
		return parseBroker(text)
	}
	if err := checkAttributes(text); err != nil {
		return URI{}, err
	}
	parsed := pkcs11uri.New()
	if err := parsed.Parse(text); err != nil { // its error may contain a PIN
		return URI{},
			malformed(text, "a value is not allowed (slot-id is a number, module-path an absolute path, and pin-source "+
				"excludes pin-value)")
	}
	path := func(name string) string { value, _ := parsed.GetPathAttribute(name, false); return value }
	uri := URI{
		Token: path("token"), Serial: path("serial"), Manufacturer: path("manufacturer"), Model: path("model"),
		Object: path("object"), ID: []byte(path("id")), Query: map[string]string{},
	}
	if kind := path("type"); kind != "" && kind != "private" {
		return URI{}, failure.New(failure.Invalid, "invalid key URI %q: its type is %q and not private", Redact(text), kind).
			WithHint("leave out type, or write type=private")
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

// checkAttributes verifies that each attribute is known, is given once and is percent-encoded. Its errors contain no
// value, and no name that could contain a PIN.
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
				return malformed(text, "an attribute has no value")
			}
			if err := checkName(name, known, "attribute", keyURI); err != nil {
				return err
			}
			if seen[name] {
				return malformed(text, "the attribute "+name+" is given twice")
			}
			seen[name] = true
			decoded, err := url.PathUnescape(value)
			if err != nil {
				return malformed(text, "the percent-encoding of "+name+" is wrong")
			}
			if namesPIN(decoded) {
				return malformed(text, "there is a pin-value or pin-source in the attribute "+name)
			}
		}
		return nil
	}
	if err := check(path, ";", pathAttributes); err != nil {
		return err
	}
	return check(query, "&", queryAttributes)
}

// malformed returns the failure for a URI that does not parse.
func malformed(text, cause string) error {
	return failure.New(failure.Invalid, "invalid key URI %q: %s", redactMalformed(text), cause).
		WithHint(`write it like "pkcs11:token=signing;object=release" (RFC 7512); pin-source follows "?", and "&" joins more`)
}

// parseSlot parses a slot number.
func parseSlot(text string) (uint, error) {
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, failure.New(failure.Invalid, "invalid slot-id %q", text).
			WithHint("use a slot number that 'notation-hsm token list' shows")
	}
	return uint(id), nil
}

// Scheme returns the scheme of the URI, with its colon.
func (u URI) Scheme() string {
	switch {
	case u.NetHSM:
		return NetHSMScheme
	case u.Broker:
		return BrokerScheme
	}
	return Scheme
}

// String returns the URI with its attributes in a fixed order, percent-encoded, without the query.
func (u URI) String() string {
	if u.NetHSM {
		return NetHSMScheme + u.Object
	}
	if u.Broker {
		return BrokerScheme + url.PathEscape(u.Object)
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

// Redact returns a reference for errors and logs. If it contains a pin-value or pin-source, the query is left out, or
// everything after the scheme.
func Redact(text string) string {
	if !namesPIN(text) {
		return text
	}
	return redactMalformed(text)
}

// redactMalformed is Redact for a reference that does not parse. An unknown attribute in its query may be a misspelled
// pin-value.
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

// namesPIN reports whether a text contains the attribute pin-value or pin-source in any spelling: in upper case, with
// other hyphens or none, with spaces or a colon, percent-encoded once or more.
func namesPIN(text string) bool { return mentions(text, "pinvalue=", "pinsource=") }

// mentions reports whether a text contains one of some words in any such spelling.
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
		decoded := decodePercent(text)
		if decoded == text {
			return false
		}
		text = decoded
	}
}

// decodePercent decodes each percent-encoded byte, and leaves malformed ones as they are.
func decodePercent(text string) string {
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
