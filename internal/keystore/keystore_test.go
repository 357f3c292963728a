package keystore_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

func ecKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	spec, _ := key.ParseSpec("EC-256")
	private, err := keystoretest.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	return private.(*ecdsa.PrivateKey)
}

// TestScheme takes the backend by the scheme of the URI, and fails with Unsupported for a scheme without one.
func TestScheme(t *testing.T) {
	t.Parallel()
	ctx, m := t.Context(), keystoretest.New("signing")
	missing := failure.New(failure.Unsupported, "no NetHSM here")
	for name, ks := range map[string]*keystore.Keystore{
		"a general failure": m.Keystore(),
		"its own failure":   keystore.New(func(string) error { return missing }, m),
	} {
		if tokens, err := ks.Reference(&config.Settings{}).Tokens(ctx); err != nil || len(tokens) != 1 {
			t.Errorf("%s: %d tokens, %v", name, len(tokens), err)
		}
		elsewhere := ks.Reference(&config.Settings{Key: config.URI{NetHSM: true, Object: "release"}})
		_, opened := elsewhere.Open(ctx)
		_, listed := elsewhere.Tokens(ctx)
		_, generated := elsewhere.Generate(ctx, key.Request{})
		for what, err := range map[string]error{
			"Open": opened, "Tokens": listed, "Generate": generated,
			"ImportWrapping": elsewhere.ImportWrapping(ctx, "", key.WrappingKey{}, nil),
			"WithKey": elsewhere.WithKey(ctx, func(keystore.Store, keystore.Key) error {
				t.Error("a key of another backend was opened")
				return nil
			}),
		} {
			if !failure.Is(err, failure.Unsupported) || name == "its own failure" && !errors.Is(err, missing) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
		}
		if err := ks.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestMatches matches a token only under the scheme of its own URI.
func TestMatches(t *testing.T) {
	t.Parallel()
	ks := keystoretest.New().Keystore()
	token := key.Token{URI: "pkcs11:token=signing", Label: "signing"}
	for _, c := range []struct {
		want    config.URI
		token   key.Token
		matches bool
	}{
		{config.URI{Token: "signing"}, token, true},
		{config.URI{}, token, true},
		{config.URI{Token: "other"}, token, false},
		{config.URI{NetHSM: true}, token, false},
		{config.URI{}, key.Token{URI: "nethsm:"}, false},
	} {
		if ks.Matches(c.want, c.token) != c.matches {
			t.Errorf("%v matches %v: not %v", c.want, c.token, c.matches)
		}
	}
}

// TestReference resolves a reference once; a copy with other settings names another key of the same keystore.
func TestReference(t *testing.T) {
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("NOTATION_HSM_MODULE_PATH", keystoretest.Path)
	t.Setenv("NOTATION_HSM_PIN", keystoretest.PIN)
	ctx, m := t.Context(), keystoretest.New("signing")
	m.Key(t, "signing", "one", ecKey(t), key.Sign)
	m.Key(t, "signing", "two", ecKey(t), key.Sign)
	ks := m.Keystore()
	one, err := ks.Resolve("pkcs11:token=signing;object=one", nil, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	two := *one
	two.Key.Object = "two"
	labels := map[string]bool{}
	for _, r := range []*keystore.Reference{one, &two} {
		err := r.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error {
			info, err := k.Info(ctx)
			labels[info.Label] = true
			return err
		})
		if err != nil || r.Keystore() != ks {
			t.Error(err)
		}
	}
	if len(labels) != 2 || m.OpenStores() != 0 {
		t.Errorf("%v, and %d stores are open", labels, m.OpenStores())
	}
	if _, err := ks.Resolve("unknown", nil, config.Flags); err == nil {
		t.Error("an unknown alias was resolved")
	}
	stored, err := ks.ResolveStored("pkcs11:object=one", map[string]string{"token": "signing"},
		config.Stored("ca.json"), nil)
	if err != nil || stored.Key.Token != "signing" {
		t.Errorf("%v", err)
	}
}

// TestWithKey closes the store whatever happens.
func TestWithKey(t *testing.T) {
	t.Parallel()
	ctx, m := t.Context(), keystoretest.New("signing")
	r, broken := m.Key(t, "signing", "release", ecKey(t), key.Sign), errors.New("broken")
	if err := r.WithKey(ctx, func(keystore.Store, keystore.Key) error { return broken }); !errors.Is(err, broken) {
		t.Error(err)
	}
	absent := m.Reference("signing", "absent")
	if err := absent.WithKey(ctx, nil); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	m.Fail("Open", broken)
	if err := r.WithKey(ctx, nil); !errors.Is(err, broken) || m.OpenStores() != 0 {
		t.Errorf("%v, and %d stores are open", err, m.OpenStores())
	}
}

// TestSigner signs for the standard library, with the context that it was made with, and finds issuers for it.
func TestSigner(t *testing.T) {
	t.Parallel()
	m := keystoretest.New("signing")
	private := ecKey(t)
	r := m.Key(t, "signing", "root", private, key.Sign)
	ctx, cancel := context.WithCancel(t.Context())
	err := r.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		signer := keystore.Signer(ctx, k)
		template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}}
		der, err := x509.CreateCertificate(rand.Reader, template, template, signer.Public(), signer)
		if err != nil {
			return err
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		m.Certificate(t, "signing", "root", cert)
		if found, err := keystore.IssuerLookup(ctx, store)(cert); err != nil || len(found) != 1 {
			t.Errorf("%d issuers, %v", len(found), err)
		}
		message := []byte("message")
		digest := sha256.Sum256(message)
		signature, err := crypto.SignMessage(signer, nil, message, crypto.SHA256)
		if err != nil || !ecdsa.VerifyASN1(&private.PublicKey, digest[:], signature) {
			t.Errorf("the signature does not verify: %v", err)
		}
		cancel()
		if _, err := signer.Sign(nil, digest[:], crypto.SHA256); !errors.Is(err, context.Canceled) {
			t.Errorf("it signed after its context had ended: %v", err)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}
