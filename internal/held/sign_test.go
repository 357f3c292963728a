package held

import (
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// TestAlgorithms allows RSASSA-PKCS1-v1_5 in formats whose readers take it.
func TestAlgorithms(t *testing.T) {
	t.Parallel()
	spec, err := key.ParseSpec("RSA-2048")
	if err != nil {
		t.Fatal(err)
	}
	private, err := keystoretest.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	rsa := private.Public()
	for _, c := range []struct {
		format    payload.Format
		algorithm string
		allowed   bool
	}{
		{payload.Notation, "RSASSA-PSS-SHA-256", true}, {payload.Notation, "RSASSA-PKCS1-v1_5-SHA-256", false},
		{payload.TUF, "RSASSA-PSS-SHA-256", true}, {payload.TUF, "RSASSA-PKCS1-v1_5-SHA-256", false},
		{payload.X509, "RSASSA-PKCS1-v1_5-SHA-512", true}, {payload.Cosign, "RSASSA-PKCS1-v1_5-SHA-256", true},
		{payload.DSSE, "RSASSA-PKCS1-v1_5-SHA-256", true},
	} {
		if err := CheckAlgorithm(&payload.Artifact{Format: c.format}, rsa, c.algorithm); (err == nil) != c.allowed {
			t.Errorf("%s with %s: %v", c.format, c.algorithm, err)
		}
	}
}

// TestSign returns a signature that verifies, with one call of the key, and no other signature.
func TestSign(t *testing.T) {
	t.Parallel()
	s, m := testKeys(t)
	h := mustFind(t, s, m)
	const algorithm = "ECDSA-SHA-256"
	data := []byte("data")
	opts, err := brokerapi.Options(h.Public, algorithm)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := h.Sign(t.Context(), "app", data, algorithm)
	if err != nil || !brokerapi.Verify(h.Public, data, signature, opts) || m.Calls("Sign") != 1 {
		t.Errorf("%v, %d calls", err, m.Calls("Sign"))
	}
	if _, err := h.Sign(t.Context(), "app", data, "RSASSA-PSS-SHA-256"); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
	spec, err := key.ParseSpec("EC-256")
	if err != nil {
		t.Fatal(err)
	}
	other, err := keystoretest.NewKey(spec)
	if err != nil {
		t.Fatal(err)
	}
	h.Public = other.Public()
	if _, err := h.Sign(t.Context(), "app", data, algorithm); !failure.Is(err, failure.Internal) {
		t.Errorf("the signature of another key: %v", err)
	}
}
