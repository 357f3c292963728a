package notaryv1_test

import (
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestKeyTypes verifies signatures of all key types and methods of Notary.
func TestKeyTypes(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"ecdsa", "ecdsa:384", "ecdsa:521", "rsa", "rsa:pkcs1", "ed25519", "ecdsa-x509",
		"rsa-x509", "rsa-x509:pkcs1"} {
		f := newForgery(t)
		f.roles["targets"].keys = []forged{newKey(t, kind, "anything")}
		if strings.Contains(kind, "x509") {
			f.roles["root"].keys = []forged{newKey(t, kind, gun)}
		}
		f.changeFile = func(_ string, envelope object) {
			for _, s := range envelope["signatures"].([]object) {
				s["method"] = strings.ToUpper(s["method"].(string)) // which old clients write
			}
		}
		r, err := f.read(f.pin())
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		key := role(t, r, "targets").Keys[0]
		bare, _, _ := strings.Cut(kind, ":")
		if key.Unusable != nil || key.Algorithm != bare || key.PEM == "" ||
			(key.ID == key.PublicID) == strings.Contains(kind, "x509") {
			t.Errorf("%s: %+v", kind, key)
		}
		if got := digestOf(r, "targets", commonTag); got != digest.FromString("a manifest") {
			t.Errorf("%s: the digest is %s", kind, got)
		}
	}
}

// TestSignatures refuses signatures that a key did not make, or made in another way than Notary does.
func TestSignatures(t *testing.T) {
	t.Parallel()
	ecdsaKey, rsaKey := newKey(t, "ecdsa", ""), newKey(t, "rsa", "")
	for name, c := range map[string]struct {
		key    forged
		change func(s object, message []byte)
	}{
		"method of another key": {ecdsaKey, func(s object, _ []byte) { s["method"] = "rsapss" }},
		"method unknown":        {rsaKey, func(s object, _ []byte) { s["method"] = "pycrypto-pkcs#1 pss" }},
		"no method":             {ecdsaKey, func(s object, _ []byte) { delete(s, "method") }},
		"the other RSA method":  {rsaKey, func(s object, _ []byte) { s["method"] = "rsapkcs1v15" }},
		"cut short":             {ecdsaKey, func(s object, _ []byte) { s["sig"] = s["sig"].([]byte)[:63] }},
		"longer":                {ecdsaKey, func(s object, _ []byte) { s["sig"] = append(s["sig"].([]byte), 0, 0) }},
		"a zero before s": {ecdsaKey, func(s object, _ []byte) {
			s["sig"] = slices.Insert(s["sig"].([]byte), 32, 0)
		}},
		"empty":   {ecdsaKey, func(s object, _ []byte) { s["sig"] = []byte{} }},
		"zeroes":  {ecdsaKey, func(s object, _ []byte) { s["sig"] = make([]byte, 64) }},
		"one bit": {rsaKey, func(s object, _ []byte) { s["sig"].([]byte)[9] ^= 1 }},
		"by a key that it does not name": {ecdsaKey, func(s object, message []byte) {
			s["sig"] = newKey(t, "ecdsa", "").sign(t, message)["sig"]
		}},
		"in DER": {ecdsaKey, func(s object, message []byte) {
			sum := sha256.Sum256(message)
			s["sig"], _ = ecdsa.SignASN1(rand.Reader, ecdsaKey.private.(*ecdsa.PrivateKey), sum[:])
		}},
	} {
		f := newForgery(t)
		f.roles["targets"].keys = []forged{c.key}
		f.changeFile = func(role string, envelope object) {
			if role == "targets" {
				c.change(envelope["signatures"].([]object)[0], canonical(t, envelope["signed"]))
			}
		}
		_, err := f.read(f.pin())
		if err == nil || !strings.Contains(err.Error(), "cannot verify role targets") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
