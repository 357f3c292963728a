package certs

import (
	"crypto/x509/pkix"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// ParseSubject parses a distinguished name as in RFC 4514, such as "CN=release,O=Example,C=CH,ST=Zurich". A comma or an
// equals sign in a value is escaped with a backslash. It fails with kind Invalid for an unknown attribute, and without
// a common name.
func ParseSubject(text string) (pkix.Name, error) {
	const hint = `write it like "CN=release,O=Example,C=CH,ST=Zurich"`
	var name pkix.Name
	for _, part := range splitUnescaped(text, ',') {
		attribute, value, ok := strings.Cut(part, "=")
		value = unescape(strings.TrimSpace(value))
		if !ok || value == "" {
			return name, failure.New(failure.Invalid, "invalid subject %q: the part %q has no value", text,
				strings.TrimSpace(part)).WithHint(hint)
		}
		switch strings.ToUpper(strings.TrimSpace(attribute)) {
		case "CN":
			name.CommonName = value
		case "O":
			name.Organization = append(name.Organization, value)
		case "OU":
			name.OrganizationalUnit = append(name.OrganizationalUnit, value)
		case "C":
			if len(value) != 2 {
				return name, failure.New(failure.Invalid, "invalid subject %q: the country %q is not two letters", text,
					value).WithHint("use the two letters of ISO 3166, such as C=CH")
			}
			name.Country = append(name.Country, strings.ToUpper(value))
		case "ST", "S":
			name.Province = append(name.Province, value)
		case "L":
			name.Locality = append(name.Locality, value)
		case "STREET":
			name.StreetAddress = append(name.StreetAddress, value)
		case "POSTALCODE":
			name.PostalCode = append(name.PostalCode, value)
		case "SERIALNUMBER":
			name.SerialNumber = value
		default:
			return name, failure.New(failure.Invalid, "invalid subject %q: unknown part %q", text,
				strings.TrimSpace(attribute)).
				WithHint("known are CN, O, OU, C, ST, L, STREET, POSTALCODE and SERIALNUMBER; " + hint)
		}
	}
	if name.CommonName == "" {
		return name, failure.New(failure.Invalid, "invalid subject %q: it has no common name (CN)", text).WithHint(hint)
	}
	return name, nil
}

// LacksIdentity returns the attributes that a subject lacks to be a trusted identity in Notation's trust policy, which
// needs country, state and organisation.
func LacksIdentity(name pkix.Name) []string {
	var lacks []string
	for _, part := range []struct {
		name   string
		values []string
	}{{"C", name.Country}, {"ST", name.Province}, {"O", name.Organization}} {
		if len(part.values) == 0 {
			lacks = append(lacks, part.name)
		}
	}
	return lacks
}

// splitUnescaped splits a text at each separator without a backslash before it.
func splitUnescaped(text string, sep byte) []string {
	var parts []string
	start := 0
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case sep:
			parts = append(parts, text[start:i])
			start = i + 1
		}
	}
	return append(parts, text[start:])
}

// unescape removes backslashes that escape the next character.
func unescape(text string) string {
	var out strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+1 < len(text) {
			i++
		}
		out.WriteByte(text[i])
	}
	return out.String()
}
