package config

import (
	"fmt"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const marker = "MARKER93471"

// showsNot fails if an error contains the marker, which is in the place of a PIN.
func showsNot(t *testing.T, text string, err error) {
	t.Helper()
	if err == nil {
		return
	}
	f := failure.From(err)
	if shown := fmt.Sprint(err, f.What, f.Hint, f.Err); strings.Contains(shown, marker) {
		t.Errorf("%q: the error contains the PIN: %s", text, shown)
	}
}

// resolveShowsNot resolves a reference as a key, as a token and as a token in the environment.
func resolveShowsNot(t *testing.T, text string) {
	uri, err := ParseURI(text)
	showsNot(t, text, err)
	if err == nil && strings.Contains(uri.String(), marker) {
		t.Errorf("%q prints as %s", text, uri)
	}
	if namesPIN(text) && strings.Contains(Redact(text), marker) {
		t.Errorf("%q is redacted as %s", text, Redact(text))
	}
	for _, origin := range []Origin{Flags, PluginConfig} {
		_, err = Resolve(text, nil, origin)
		showsNot(t, text, err)
		s, err := Resolve("", map[string]string{Token: text}, origin)
		showsNot(t, text, err)
		if err == nil && strings.Contains(s.Key.String(), marker) {
			t.Errorf("the token %q is named %s", text, s.Key)
		}
	}
}

// TestPINInReference has a PIN in malformed references of many kinds. No error contains it.
func TestPINInReference(t *testing.T) {
	configure(t, "")
	for _, text := range []string{
		"pkcs11:token=a?pin-value=1&pin-value=MARKER",
		"pkcs11:token=a?pin-value=MARKER&pin-source=env:A",
		"pkcs11:token=a?pin-source=MARKER",
		"pkcs11:token=a?pin-source=MARKER&pin-source=MARKER",
		"pkcs11:token=a;object=%zz?pin-source=MARKER",
		"pkcs11:token=a?pin-value=MARKER%z",
		"pkcs11:token=a;pin-value=MARKER",
		"pkcs11:token=a;pin-source=MARKER;type=cert",
		"pkcs11:token=a&pin-value=MARKER;type=cert",
		"pkcs11:type=cert;token=a&pin-value=MARKER",
		"pkcs11:slot-id=1&pin-value=MARKER",
		"pkcs11:type=pin-value=MARKER",
		"pkcs11:token=a?module-path=m.so;pin-value=MARKER",
		"pkcs11:token=a?module-path=m.so?pin-value=MARKER",
		"pkcs11:token=a?PIN-VALUE=MARKER",
		"pkcs11:token=a;PIN-Value=MARKER;type=cert",
		"pkcs11:token=a;pin%2Dvalue=MARKER;object=%zz",
		"pkcs11:token=a%3Fpin-value%3DMARKER;type=cert",
		"pkcs11:token=a%253Fpin-value%253DMARKER;type=cert",
		"pkcs11:token=a;pin_value=MARKER;object=%zz",
		"pkcs11:token=a;pin-value:MARKER=x",
		"pkcs11:token=a?pin-vlaue=MARKER&object=%zz",
		"pkcs11:pin-value=MARKER",
		"pkcs11:pin-value MARKER",
		"pkcs11:token=a;pin-source%20MARKER",
		"pkcs11:token=a;pin-value MARKER=x",
		"pkcs11:?pin-value=MARKER&",
		"PKCS11:token=a?pin-value=MARKER",
		"PKCS11:token=a;pin-value=MARKER",
		" pkcs11:token=a?pin-value=MARKER",
		"pkcs11://token=a?pin-value=MARKER%",
		"release?pin-value=MARKER",
		"release;pin-source=MARKER",
		"nethsm:release?pin-value=MARKER",
		"nethsm:pin-value=MARKER",
		"nethsm:release;pin-source=MARKER",
	} {
		resolveShowsNot(t, strings.ReplaceAll(text, "MARKER", marker))
	}
	// The same in the config file, and as the name of a setting.
	for _, text := range []string{
		"keys: {release: {uri: 'pkcs11:token=a?pin-value=MARKER&pin-value=MARKER'}}",
		"keys: {release: {uri: 'pkcs11:token=a;pin-value=MARKER'}}",
		"keys: {release: {pin-value=MARKER: 1, uri: 'pkcs11:token=a'}}",
		"pin-value=MARKER: 1",
		"'pin-value:MARKER': 1",
		"pin-value=MARKER",
		"pin-value: MARKER",
		"nethsm: {pin-value=MARKER: 1}",
	} {
		text = strings.ReplaceAll(text, "MARKER", marker)
		configure(t, text)
		_, err := Resolve("release", nil, Flags)
		if err == nil {
			t.Errorf("%s was accepted", text)
		}
		showsNot(t, text, err)
	}
	configure(t, "")
	_, err := Resolve("pkcs11:token=a", map[string]string{"pin-value=" + marker: ""}, PluginConfig)
	showsNot(t, "plugin config", err)
	// A reference without a PIN is shown in full.
	for _, text := range []string{"pkcs11:token=shipping;object=pin?oaep=sha1", "release", "nethsm:pin-values"} {
		if Redact(text) != text {
			t.Errorf("%q is redacted as %q", text, Redact(text))
		}
	}
}

// FuzzSecret has a PIN as a pin-value or a malformed pin-source in any text. No error contains it.
func FuzzSecret(f *testing.F) {
	for _, seed := range [][2]string{
		{"pkcs11:token=a?", ""}, {"pkcs11:token=a;", ";object=%"}, {"pkcs11:object=%zz?", "&type=cert"}, {"PKCS11:", ""},
		{"nethsm:", "*"},
		{"pkcs11:type=cert;token=a&", ""}, {"pkcs11:token=a?module-path=", "&"}, {"", ""}, {"pkcs11:slot-id=", ""},
		{"pkcs11:token=a?pin-value=1&", "%"},
	} {
		f.Add(seed[0], seed[1], byte(0))
		f.Add(seed[0], seed[1], byte(3))
	}
	names := []string{"pin-value=", "pin-source=", "PIN-VALUE=", "Pin-Source=", "pin%2Dvalue=", "pin-value%3D",
		"pin_value=", "pin-value:", "%70in-source="}
	f.Fuzz(func(t *testing.T, before, after string, which byte) {
		configure(t, "")
		resolveShowsNot(t, before+names[int(which)%len(names)]+marker+after)
	})
}
