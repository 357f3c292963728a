package translog

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"io"
	"strings"
	"testing"

	formats "github.com/transparency-dev/formats/note"
	"golang.org/x/mod/sumdb/note"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const origin = "broker.example.com/log"

// newKey returns a key and the verifier of its public key.
func newKey(t testing.TB, curve elliptic.Curve) (crypto.Signer, *Verifier) {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v, err := NewVerifier(origin, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key, v
}

// TestCheckpoint signs checkpoints with keys of each type, and verifies them also with the libraries of others.
func TestCheckpoint(t *testing.T) {
	t.Parallel()
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p256, _ := newKey(t, elliptic.P256())
	p384, _ := newKey(t, elliptic.P384())
	tree, _ := (&Tree{}).Append(numbered(0, 1000))
	c := Checkpoint{origin, tree.Size(), tree.Root()}
	for name, key := range map[string]crypto.Signer{"Ed25519": edwards, "P-256": p256, "P-384": p384} {
		signed, err := c.Sign(key)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		v, err := NewVerifier(origin, key.Public())
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := ParseVerifier(v.String())
		if err != nil || parsed.String() != v.String() {
			t.Fatalf("%s: verifier key %s: %v", name, v, err)
		}
		if opened, err := Open(signed, []*Verifier{parsed, v}); err != nil || opened != c {
			t.Errorf("%s: %v: %v", name, opened, err)
		}
		other, err := formats.NewVerifier(v.String())
		if err != nil {
			t.Fatalf("%s: the library of others refuses %s: %v", name, v, err)
		}
		if _, err := note.Open(signed, note.VerifierList(other)); err != nil {
			t.Errorf("%s: the library of others: %v\n%s", name, err, signed)
		}
	}
}

// TestRotation verifies that a checkpoint of two keys verifies with either, and one of the old key not with the new.
func TestRotation(t *testing.T) {
	t.Parallel()
	older, oldVerifier := newKey(t, elliptic.P256())
	newer, newVerifier := newKey(t, elliptic.P384())
	c := Checkpoint{Origin: origin, Root: emptyRoot}
	both, err := c.Sign(older, newer)
	if err != nil {
		t.Fatal(err)
	}
	for _, verifiers := range [][]*Verifier{{oldVerifier}, {newVerifier}, {oldVerifier, newVerifier}} {
		if opened, err := Open(both, verifiers); err != nil || opened != c {
			t.Errorf("%v: %v", opened, err)
		}
	}
	one, err := c.Sign(older)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(one, []*Verifier{newVerifier}); !failure.Is(err, failure.Denied) {
		t.Errorf("a signature of another key: %v", err)
	}
	if _, err := Open(one, nil); !failure.Is(err, failure.Denied) {
		t.Errorf("no key: %v", err)
	}
}

// TestCheckpointBytes changes each byte of a signed checkpoint, to each other value.
func TestCheckpointBytes(t *testing.T) {
	t.Parallel()
	key, v := newKey(t, elliptic.P256())
	var signed []byte
	for !strings.HasSuffix(string(signed), "=\n") { // so that its base64 has bits that do not count
		var err error
		if signed, err = (Checkpoint{origin, 7, emptyRoot}).Sign(key); err != nil {
			t.Fatal(err)
		}
	}
	for i := range signed {
		for value := range 256 {
			changed := []byte(string(signed))
			if changed[i] = byte(value); changed[i] == signed[i] {
				continue
			}
			if c, err := Open(changed, []*Verifier{v}); err == nil {
				t.Errorf("byte %d changed from %q to %q: %v", i, signed[i], changed[i], c)
			}
		}
	}
}

// TestBadCheckpoints signs texts that are no checkpoints.
func TestBadCheckpoints(t *testing.T) {
	t.Parallel()
	key, v := newKey(t, elliptic.P256())
	root := base64.StdEncoding.EncodeToString(emptyRoot[:])
	for text, want := range map[string]string{
		origin + "\n1\n":                                 "lacks",
		"\n1\n" + root + "\n":                            "lacks",
		origin + "\n01\n" + root + "\n":                  "not a number",
		origin + "\n-1\n" + root + "\n":                  "not a number",
		origin + "\n9223372036854775808\n" + root + "\n": "not a number",
		origin + "\n1\n" + root[:40] + "\n":              "not a SHA-256 hash",
		origin + "\n1\n" + root[:42] + "V=\n":            "not a SHA-256 hash",
		origin + "\n1\n" + root + "\n\nextension\n":      "empty line",
		"another.example.com\n1\n" + root + "\n":         "no signature of its own key",
		origin + "\n1\n" + root + "\nan extension\n":     "",
		strings.Repeat("x", maxCheckpoint) + "\n1\n\n":   "more than",
	} {
		signed, err := note.Sign(&note.Note{Text: text}, signer{v, key})
		if err != nil {
			t.Fatal(err)
		}
		if _, err = Open(signed, []*Verifier{v}); (err == nil) != (want == "") ||
			(err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%.90q: %v, want %q", text, err, want)
		}
	}
}

// TestKeys verifies which keys and names are refused.
func TestKeys(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Checkpoint{Origin: origin}).Sign(rsaKey); !failure.Is(err, failure.Unsupported) {
		t.Errorf("RSA: %v", err)
	}
	if _, err := (Checkpoint{Origin: origin}).Sign(); !failure.Is(err, failure.Invalid) {
		t.Errorf("no key: %v", err)
	}
	key, v := newKey(t, elliptic.P256())
	for _, name := range []string{"", "a b", "a+b", "a\n", " a", "a\u00a0b", "\xff"} {
		if _, err := (Checkpoint{Origin: name}).Sign(key); !failure.Is(err, failure.Invalid) {
			t.Errorf("origin %q: %v", name, err)
		}
	}
	if _, err := (Checkpoint{Origin: origin}).Sign(damaging{key}); !failure.Is(failure.From(err), failure.Internal) {
		t.Errorf("a damaged signature: %v", err)
	}
	vkey := v.String()
	name, rest, _ := strings.Cut(vkey, "+")
	id, encoded, _ := strings.Cut(rest, "+")
	for _, bad := range []string{"", name, name + "+" + id, name + "+00000000+" + encoded, name + "+" + id + "+AA==",
		name + "+" + strings.ToUpper(id) + "0+" + encoded, name + "+" + id + "+B" + encoded[1:],
		vkey + strings.Repeat("A", 5000),
		name + "+" + id + "+" + encoded[:len(encoded)-8], "+" + id + "+" + encoded} {
		if _, err := ParseVerifier(bad); !failure.Is(err, failure.Invalid) {
			t.Errorf("verifier key %.80q: %v", bad, err)
		}
	}
}

// damaging is a key whose module returns damaged signatures.
type damaging struct{ crypto.Signer }

func (d damaging) Sign(random io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	signature, err := d.Signer.Sign(random, digest, opts)
	if err == nil {
		signature[len(signature)-1] ^= 1
	}
	return signature, err
}

// FuzzCheckpoint verifies that whatever verifies is encoded in one way.
func FuzzCheckpoint(f *testing.F) {
	key, v := newKey(f, elliptic.P256())
	signed, err := Checkpoint{origin, 7, emptyRoot}.Sign(key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(signed)
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Open(data, []*Verifier{v})
		if err == nil && !strings.HasPrefix(string(data), c.text()) {
			t.Errorf("%q is read as %v", data, c)
		}
		text, _, _ := strings.Cut(string(data), "\n\n")
		if c, err := parseText(text + "\n"); err == nil && !strings.HasPrefix(text+"\n", c.text()) {
			t.Errorf("%q is read as %v", text, c)
		}
	})
}
