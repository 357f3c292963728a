package trust

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"slices"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// TestOneCOSEKey verifies that two people cannot have one public key, in whichever encoding of a passkey's key, and as
// a passkey and a key in a module.
func TestOneCOSEKey(t *testing.T) {
	t.Parallel()
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edPublic, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	point, err := ec.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	exponent := big.NewInt(int64(rsaKey.E)).Bytes()
	for name, c := range map[string]struct {
		public  crypto.PublicKey
		one     map[int]any
		another map[int]any
	}{
		"P-256": {&ec.PublicKey, map[int]any{1: 2, 3: -7, -1: 1, -2: point[1:33], -3: point[33:]},
			map[int]any{1: 2, 3: -9, -1: 1, -2: point[1:33], -3: point[33:], -70: "another member"}},
		"Ed25519": {edPublic, map[int]any{1: 1, 3: -8, -1: 6, -2: []byte(edPublic)},
			map[int]any{1: 1, 3: -19, -1: 6, -2: []byte(edPublic)}},
		"RSA": {&rsaKey.PublicKey, map[int]any{1: 3, 3: -257, -1: rsaKey.N.Bytes(), -2: exponent},
			map[int]any{1: 3, 3: -37, -1: append([]byte{0}, rsaKey.N.Bytes()...),
				-2: slices.Concat(make([]byte, 9), exponent)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			der, err := x509.MarshalPKIXPublicKey(c.public)
			if err != nil {
				t.Fatal(err)
			}
			module := Credential{Kind: kindKey, Salt: strings.Repeat("5a", 32),
				Public: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
			for what, other := range map[string]Credential{"another encoding": passkey(t, c.another), "a module": module} {
				err := readApprovers([]Approver{
					{Name: "alice", ID: strings.Repeat("a", 32), Credentials: []Credential{passkey(t, c.one)}},
					{Name: "bob", ID: strings.Repeat("b", 32), Credentials: []Credential{other}}})
				if err == nil || !strings.Contains(err.Error(), "have the same public key") {
					t.Errorf("%s: %v", what, err)
				}
			}
		})
	}
}

// passkey returns a credential of a COSE key.
func passkey(t *testing.T, key map[int]any) Credential {
	t.Helper()
	public, err := cbor.Marshal(key)
	if err != nil {
		t.Fatal(err)
	}
	return Credential{Kind: kindPasskey, Salt: strings.Repeat("5a", 32),
		Public: base64.StdEncoding.EncodeToString(public), Passkey: &Passkey{AAGUID: "00000000-0000-0000-0000-000000000000",
			RPID: "broker.example.com", Origins: []string{"https://broker.example.com"}, ID: "AQID"}}
}

// TestNoCOSEKey verifies that other bytes are compared as they are.
func TestNoCOSEKey(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "\xa0", "key", "\xa1\x01\x03", "\xa1\x01\x02",
		"\xa3\x01\x02\x21\x41\x01\x22\x41\x01"} {
		if got := sameCOSE([]byte(text)); got != text {
			t.Errorf("%q is %q", text, got)
		}
	}
}
