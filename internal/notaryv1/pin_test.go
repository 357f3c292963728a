package notaryv1_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/notaryv1"
)

// TestPins trusts roots from pins of all kinds, and refuses others.
func TestPins(t *testing.T) {
	t.Parallel()
	f := newForgery(t)
	f.make()
	first := f.files["root"]
	old := f.roles["root"].keys[0]
	readPin := func(data []byte) notaryv1.Pin {
		pin, err := notaryv1.ReadPin(data)
		if err != nil {
			t.Fatal(err)
		}
		return pin
	}
	public := role(t, must(f.read(f.pin())), "root").Keys[0].PublicID
	for _, pin := range []notaryv1.Pin{f.pin(), {KeyIDs: []string{public}}, readPin(first), readPin([]byte(old.pem))} {
		if _, err := f.read(pin); err != nil {
			t.Errorf("%+v: %v", pin, err)
		}
	}
	for words, pin := range map[string]notaryv1.Pin{
		"a pin is a root.json, or root keys": {},
		"or root keys":                       {Root: first, KeyIDs: f.pin().KeyIDs},
		"64 lower-case hex digits":           {KeyIDs: []string{strings.ToUpper(old.id)}},
	} {
		_, err := f.read(pin)
		refused(t, err, failure.Invalid, words)
	}
	_, err := f.read(notaryv1.Pin{KeyIDs: []string{f.roles["targets"].keys[0].id}})
	refused(t, err, failure.Denied, "the pin does not match")
	_, err = f.read(readPin([]byte(newKey(t, "ecdsa-x509", gun).pem)))
	refused(t, err, failure.Denied, "the pin does not match")
	f.roles["root"].keys = []forged{newKey(t, "ecdsa-x509", "registry.example.com/team/other")}
	f.make()
	_, err = f.read(readPin(f.files["root"]))
	refused(t, err, failure.Denied, "cannot trust pinned root")
	for _, text := range []string{"", "{}", "text", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"} {
		if _, err := notaryv1.ReadPin([]byte(text)); err == nil {
			t.Errorf("%q can be pinned", text)
		}
	}
}

// TestRootRotation follows roots, and refuses those that do not follow.
func TestRootRotation(t *testing.T) {
	t.Parallel()
	keys := []forged{newKey(t, "ecdsa-x509", gun), newKey(t, "ecdsa-x509", gun), newKey(t, "rsa-x509", gun)}
	f := newForgery(t)
	roots := map[int][]byte{}
	// Notary signs a root with the keys of the one before as well.
	version := func(number int, role []forged, signers ...forged) {
		f.roles["root"].keys, f.roles["root"].signers, f.roles["root"].version = role, signers, number
		f.make()
		roots[number] = f.files["root"]
	}
	read := func(pin notaryv1.Pin, versions ...int) error {
		for _, number := range versions {
			f.files[fmt.Sprintf("%d.root", number)] = roots[number]
		}
		defer func() {
			for _, number := range versions {
				delete(f.files, fmt.Sprintf("%d.root", number))
			}
		}()
		_, err := notaryv1.FromFolder(t.Context(), f.write(), gun, pin)
		return err
	}
	version(1, keys[:1], keys[0])
	version(2, keys[1:2], keys[0], keys[1])
	if err := read(notaryv1.Pin{Root: roots[1]}); err != nil {
		t.Error(err)
	}
	refused(t, read(notaryv1.Pin{KeyIDs: []string{keys[0].id}}), failure.Denied, "the pin does not match")
	if err := read(notaryv1.Pin{KeyIDs: []string{keys[0].id}}, 1); err != nil {
		t.Error(err)
	}
	version(3, keys[2:], keys[0], keys[2])
	if err := read(notaryv1.Pin{Root: roots[1]}); err != nil {
		t.Error(err) // the pinned key has signed it as well
	}
	version(3, keys[2:], keys[1], keys[2])
	if err := read(notaryv1.Pin{KeyIDs: []string{keys[0].id}}, 1, 2); err != nil {
		t.Error(err)
	}
	if err := read(notaryv1.Pin{Root: roots[1]}, 1, 2); err != nil {
		t.Error(err)
	}
	refused(t, read(notaryv1.Pin{Root: roots[1]}), failure.NotFound, "2.root.json")
	good := roots[2]
	roots[2] = roots[1]
	refused(t, read(notaryv1.Pin{Root: roots[1]}, 2), failure.Denied, "the file of version 2 is version 1")
	version(2, keys[1:2], keys[1]) // which the first does not trust
	forgedSecond := roots[2]
	roots[2] = good
	version(3, keys[2:], keys[1], keys[2])
	roots[2] = forgedSecond
	refused(t, read(notaryv1.Pin{Root: roots[1]}, 2), failure.Denied, "version 2 does not follow version 1")
	refused(t, read(notaryv1.Pin{KeyIDs: []string{keys[0].id}}, 1, 2), failure.Denied, "version 2 does not follow")
	roots[2] = good
	version(3, keys[2:], keys[1]) // not by its own key
	refused(t, read(notaryv1.Pin{Root: roots[2]}), failure.Denied, "version 3 does not follow version 2")
	version(3, keys[2:], keys[1], keys[2])
	pinned := roots[3]
	version(3, keys[2:], keys[2])
	if err := read(notaryv1.Pin{Root: pinned}); err != nil {
		t.Error(err) // of the same content
	}
	f.roles["targets"].keys = []forged{newKey(t, "ecdsa", "")}
	version(3, keys[2:], keys[2])
	refused(t, read(notaryv1.Pin{Root: pinned}), failure.Denied, "its version 3 differs from the pinned root")
	version(2, keys[2:], keys[2])
	refused(t, read(notaryv1.Pin{Root: pinned}), failure.Denied, "older than the pinned root's, 3")
	version(3000, keys[2:], keys[2])
	refused(t, read(notaryv1.Pin{Root: roots[1]}), failure.Denied, "versions from the pinned root")
}
