package config

import (
	"fmt"
	"strconv"
	"strings"

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

// ParseURI reads an RFC 7512 URI, or nethsm:KEYID. It returns a failure of kind Invalid that names the attribute at fault.
func ParseURI(text string) (URI, error) {
	if strings.HasPrefix(text, NetHSMScheme) {
		return parseNetHSM(text)
	}
	const example = `a key is named like "pkcs11:token=signing;object=release" (RFC 7512)`
	parsed := pkcs11uri.New()
	if err := parsed.Parse(text); err != nil {
		return URI{}, failure.New(failure.Invalid, example, "the key URI %q is malformed: %w", redact(text), err)
	}
	if err := knownAttributes(text); err != nil {
		return URI{}, err
	}
	path := func(name string) string { value, _ := parsed.GetPathAttribute(name, false); return value }
	uri := URI{
		Token: path("token"), Serial: path("serial"), Manufacturer: path("manufacturer"), Model: path("model"),
		Object: path("object"), ID: []byte(path("id")), Query: map[string]string{},
	}
	if kind := path("type"); kind != "" && kind != "private" {
		return URI{}, failure.New(failure.Invalid, "leave out type, or use type=private",
			"the key URI %q names an object of type %q, not a private key", redact(text), kind)
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

func knownAttributes(text string) error {
	path, query, _ := strings.Cut(strings.TrimPrefix(text, Scheme), "?")
	check := func(part, sep string, known []string) error {
		for _, attribute := range strings.FieldsFunc(part, func(r rune) bool { return strings.ContainsRune(sep, r) }) {
			name, _, _ := strings.Cut(attribute, "=")
			if err := checkName(name, known, "attribute", "the key URI"); err != nil {
				return err
			}
		}
		return nil
	}
	if err := check(path, ";", pathAttributes); err != nil {
		return err
	}
	return check(query, "&", queryAttributes)
}

func parseSlot(text string) (uint, error) {
	id, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, failure.New(failure.Invalid, "slot numbers are shown by 'notation-hsm token list'", "%q is not a slot number", text)
	}
	return uint(id), nil
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

// redact removes a PIN from a URI that is about to be shown.
func redact(text string) string {
	if start := strings.Index(text, "pin-value="); start >= 0 {
		start += len("pin-value=")
		end := strings.IndexByte(text[start:], '&')
		if end < 0 {
			return text[:start] + "..."
		}
		return text[:start] + "..." + text[start+end:]
	}
	return text
}
