package pkcs11

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestInitArgs signs with keys of every spec in NSS's softoken, which starts with the parameters of init-args alone.
func TestInitArgs(t *testing.T) {
	token := softhsmtest.NSS(t)
	s := config.Settings{ModulePath: token.Module, PIN: softhsmtest.PIN, Timeout: time.Minute, InitArgs: token.InitArgs}
	backend := New()
	for _, spec := range []string{"RSA-2048", "RSA-3072", "RSA-4096", "EC-256", "EC-384", "EC-521"} {
		token.Generate(t, spec, spec)
		s := s
		s.Key = config.URI{Token: token.Label, Object: spec}
		store, err := backend.Open(t.Context(), &s)
		if err != nil {
			t.Fatal(err)
		}
		k, err := store.Key(t.Context(), nil)
		if err != nil {
			t.Fatal(err)
		}
		digest := sha256.Sum256([]byte("payload"))
		verified := false
		switch public := k.Public().(type) {
		case *ecdsa.PublicKey:
			signature, err := k.Sign(t.Context(), digest[:], crypto.SHA256)
			verified = err == nil && ecdsa.VerifyASN1(public, digest[:], signature)
		case *rsa.PublicKey:
			options := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
			signature, err := k.Sign(t.Context(), digest[:], options)
			verified = err == nil && rsa.VerifyPSS(public, crypto.SHA256, digest[:], signature, options) == nil
		}
		if !verified {
			t.Errorf("%s: no right signature", spec)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}
	if _, err := backend.Generate(t.Context(), &s, key.Request{}); !failure.Is(err, failure.Unsupported) {
		t.Errorf("a key was generated with init-args: %v", err)
	}
	without := s
	without.InitArgs = ""
	if _, err := New().Open(t.Context(), &without); err == nil || failure.From(err).CKR != "CKR_ARGUMENTS_BAD" ||
		!strings.Contains(failure.From(err).Hint, "init-args") {
		t.Errorf("without init-args: %v", err)
	}
	s.Key = config.URI{Token: token.Label}
	store, err := backend.Open(t.Context(), &s)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := backend.Open(t.Context(), &without); !failure.Is(err, failure.Conflict) {
		t.Errorf("other init-args for a module in use: %v", err)
	}
}
