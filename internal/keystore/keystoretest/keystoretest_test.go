package keystoretest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// TestPromises checks what the rooms' tests rely on: a key signs for its usage alone, leaves its token only wrapped,
// and a refused PIN is counted and not tried again by the same store.
func TestPromises(t *testing.T) {
	t.Parallel()
	ctx, m := t.Context(), New("a", "b")
	spec, _ := key.ParseSpec("EC-256")
	for _, token := range []string{"a", "b"} {
		w := key.WrappingKey{Label: "backup", ID: []byte{1}}
		if err := m.Reference(token, "").ImportWrapping(ctx, "env:SO", w, []byte("secret")); err != nil {
			t.Fatal(err)
		}
	}
	made, err := m.Reference("a", "").Generate(ctx, key.Request{Spec: spec, Usage: key.Sign, Label: "release",
		Wrappable: true})
	if err != nil {
		t.Fatal(err)
	}
	var wrapped key.Wrapped
	err = m.Reference("a", "release").WithKey(ctx, func(s keystore.Store, k keystore.Key) error {
		if _, err := k.ECDH(ctx, nil); !failure.Is(err, failure.Denied) {
			t.Errorf("a signing key derived: %v", err)
		}
		wrapped, err = s.Wrap(ctx, k, config.URI{})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	store, err := m.Reference("b", "release").Open(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Unwrap(ctx, wrapped, key.Sign, "release", made.ID, made.Public); err != nil {
		t.Fatal(err)
	}
	k, err := store.Key(ctx, nil)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	signature, err := k.Sign(ctx, digest[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(made.Public.(*ecdsa.PublicKey), digest[:], signature) {
		t.Errorf("the restored key does not sign as the first: %v", err)
	}
	store.Close()
	if m.OpenStores() != 0 {
		t.Errorf("%d stores are open", m.OpenStores())
	}

	wrong := m.Reference("a", "release")
	wrong.PIN = "1234"
	store, _ = wrong.Open(ctx)
	for range 2 {
		if err := store.Login(ctx); failure.From(err).CKR != "CKR_PIN_INCORRECT" {
			t.Error(err)
		}
	}
	if state := store.Describe().PIN; state != key.PINCountLow {
		t.Errorf("after one wrong PIN the token says %q", state)
	}
}
