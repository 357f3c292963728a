package nethsm

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1" //nolint:gosec // for OAEP
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// TestSignRSA makes RSASSA-PSS and PKCS #1 v1.5 signatures that verify, also with a key of a list.
func TestSignRSA(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].AddKey("release", rsaKey())
	s.Key.Object = "rel*"
	keys, err := open(t, s).Keys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	digest := sha256.Sum256([]byte("payload"))
	signature, err := keys[0].Sign(t.Context(), digest[:], &rsa.PSSOptions{Hash: crypto.SHA256})
	if err == nil {
		err = rsa.VerifyPSS(&rsaKey().PublicKey, crypto.SHA256, digest[:], signature,
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash})
	}
	if err != nil {
		t.Errorf("PSS: %v", err)
	}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		signature, err := keys[0].SignMessage(t.Context(), []byte("payload"), hash)
		if err == nil {
			h := hash.New()
			h.Write([]byte("payload"))
			err = rsa.VerifyPKCS1v15(&rsaKey().PublicKey, hash, h.Sum(nil), signature)
		}
		if err != nil {
			t.Errorf("PKCS #1 v1.5, %v: %v", hash, err)
		}
	}
	servers[0].ResetRequests()
	_, length := keys[0].Sign(t.Context(), digest[:], crypto.SHA384)
	_, unknown := keys[0].Sign(t.Context(), digest[:], crypto.SHA3_256)
	_, noInfo := keys[0].SignMessage(t.Context(), nil, crypto.SHA1)
	_, noHash := keys[0].SignMessage(t.Context(), nil, crypto.MD4)
	for what, err := range map[string]error{"length": length, "unknown": unknown, "PKCS #1 v1.5 with SHA-1": noInfo,
		"not linked in": noHash} {
		if !failure.Is(err, failure.Internal) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := len(servers[0].Requests()); n > 0 {
		t.Errorf("%d requests", n)
	}
}

// TestDecrypt decrypts OAEP with each hash and PKCS #1 v1.5, and refuses what a NetHSM does not support.
func TestDecrypt(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].AddKey("release", rsaKey())
	k, err := open(t, s).Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	const plain = "layer key"
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		encrypted, err := rsa.EncryptOAEP(hash.New(), rand.Reader, &rsaKey().PublicKey, []byte(plain), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := k.Decrypt(t.Context(), encrypted, &rsa.OAEPOptions{Hash: hash})
		if err != nil || string(got) != plain {
			t.Errorf("%v: %q, %v", hash, got, err)
		}
	}
	encrypted := encryptPKCS1(t, plain)
	for _, length := range []int{0, len(plain)} {
		o := &rsa.PKCS1v15DecryptOptions{SessionKeyLen: length} //nolint:staticcheck // CMS in images has it
		if got, err := k.Decrypt(t.Context(), encrypted, o); err != nil || string(got) != plain {
			t.Errorf("PKCS #1 v1.5: %q, %v", got, err)
		}
	}
	for name, o := range map[string]crypto.DecrypterOpts{
		"a label": &rsa.OAEPOptions{Hash: crypto.SHA1, Label: []byte("x")}, "MD5": &rsa.OAEPOptions{Hash: crypto.MD5},
		"two hashes": &rsa.OAEPOptions{Hash: crypto.SHA256, MGFHash: crypto.SHA1},
	} {
		if _, err := k.Decrypt(t.Context(), encrypted, o); !failure.Is(err, failure.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := k.Decrypt(t.Context(), encrypted, nil); !failure.Is(err, failure.Internal) {
		t.Error(err)
	}
	ec, err := open(t, s).Key(t.Context(), &newECKey(t).PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ec.Decrypt(t.Context(), encrypted, &rsa.OAEPOptions{Hash: crypto.SHA256}); !failure.Is(err,
		failure.Invalid) {
		t.Error(err)
	}
}

func encryptPKCS1(t *testing.T, plain string) []byte {
	t.Helper()
	encrypted, err := rsa.EncryptPKCS1v15(rand.Reader, &rsaKey().PublicKey, []byte(plain)) //nolint:staticcheck // as above
	if err != nil {
		t.Fatal(err)
	}
	return encrypted
}

// TestPaddingErrors returns a random session key for a PKCS #1 v1.5 ciphertext that cannot be decrypted, or has a
// plaintext of another length. Other failures are returned.
func TestPaddingErrors(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].AddKey("release", rsaKey())
	k, err := open(t, s).Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	encrypted := encryptPKCS1(t, "short")
	damaged := append([]byte{}, encrypted...)
	damaged[255] ^= 1
	o := &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 32} //nolint:staticcheck // CMS in images has it
	seen := map[string]bool{}
	for name, ciphertext := range map[string][]byte{"damaged": damaged, "of another length": encrypted} {
		got, err := k.Decrypt(t.Context(), ciphertext, o)
		if err != nil || len(got) != 32 || seen[string(got)] {
			t.Errorf("%s: %x, %v", name, got, err)
		}
		seen[string(got)] = true
	}
	o.SessionKeyLen = 0
	if _, err := k.Decrypt(t.Context(), damaged, o); !failure.Is(err, failure.Invalid) {
		t.Errorf("without a length: %v", err)
	}
	o.SessionKeyLen = 32
	servers[0].Inject(http.MethodPost, "/keys/*/decrypt", 1, nethsmtest.Respond(http.StatusForbidden))
	if _, err := k.Decrypt(t.Context(), encrypted, o); !failure.Is(err, failure.Denied) {
		t.Errorf("forbidden: %v", err)
	}
}

// publicRSA returns the public half of an RSA key as a property of JSON.
func publicRSA(modulus []byte, exponent string) string {
	return fmt.Sprintf(`"public":{"modulus":%q,"publicExponent":%q}`, base64.StdEncoding.EncodeToString(modulus), exponent)
}

// TestMalformedResults fails with Internal, and shows no plaintext.
func TestMalformedResults(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].AddKey("release", rsaKey())
	k, err := open(t, s).Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{`{}`, `{"decrypted":"secret!"}`, `[]`} {
		servers[0].Inject(http.MethodPost, "/keys/*/decrypt", 1, nethsmtest.RespondWith(200, typeJSON, body))
		_, err := k.Decrypt(t.Context(), make([]byte, 256), &rsa.OAEPOptions{Hash: crypto.SHA256})
		if !failure.Is(err, failure.Internal) || !strings.Contains(err.Error(), "cannot read the response") ||
			strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", body, err)
		}
	}
	for name, body := range map[string]string{
		"no type":    `{}`,
		"an ID":      `[]`,
		"no public":  `{"type":"Generic"}`,
		"unknown":    `{"type":"BrainpoolP256","public":{"data":"BA=="}}`,
		"no point":   `{"type":"EC_P256","public":{"data":"BA=="}}`,
		"short":      `{"type":"RSA","public":{"modulus":"AQAB","publicExponent":"AQAB"}}`,
		"long":       `{"type":"RSA",` + publicRSA(append(rsaKey().N.Bytes(), make([]byte, maxModulus)...), "AQAB") + `}`,
		"exponent 1": `{"type":"RSA",` + publicRSA(rsaKey().N.Bytes(), "AQ==") + `}`,
	} {
		servers[0].Inject(http.MethodGet, "/keys/*", 1, nethsmtest.RespondWith(200, typeJSON, body))
		if _, err := k.ReadPublic(t.Context()); !failure.Is(err, failure.Internal) && !failure.Is(err, failure.Unsupported) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGenerate generates keys for one usage, and refuses names that are in use or invalid.
func TestGenerate(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	info, err := generate(t.Context(), s, key.Request{Spec: decryptSpec, Usage: key.Decrypt, Label: "recipient"})
	if err != nil || *info.Sign || !*info.Decrypt || *info.Extractable || info.URI != "nethsm:recipient" {
		t.Errorf("%+v, %v", info, err)
	}
	recipient := *s
	recipient.Key.Object = "recipient"
	d, err := open(t, &recipient).key("recipient").describe(t.Context(), open(t, s).ask)
	if err != nil || slices.ContainsFunc(d.Mechanisms, func(m string) bool {
		return !strings.HasPrefix(m, "RSA_Decryption_OAEP_SHA")
	}) {
		t.Errorf("%+v, %v", d, err)
	}
	for kind, labels := range map[failure.Kind][]string{failure.Conflict: {"recipient"},
		failure.Invalid: {"no/path", "", "rel*"}} {
		for _, label := range labels {
			_, err := generate(t.Context(), s, key.Request{Spec: signSpec, Usage: key.Sign, Label: label})
			if !failure.Is(err, kind) {
				t.Errorf("%q: %v", label, err)
			}
		}
	}
	if keys := servers[0].Keys(""); len(keys) != 1 || keys[0] != "recipient" {
		t.Errorf("keys are %v", keys)
	}
	receives, err := open(t, &recipient).Receives(t.Context(), info.Public)
	if err != nil || !receives.Sure || len(receives.OAEP) != 2 {
		t.Errorf("%+v, %v", receives, err)
	}
	if receives, err = open(t, s).Receives(t.Context(), &newECKey(t).PublicKey); err != nil ||
		receives.Refusal != "a NetHSM does not support ECDH" {
		t.Errorf("%+v, %v", receives, err)
	}
	if _, err = open(t, s).Receives(t.Context(), info.Public); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
}

// TestTags generates a key for the users of two tags alone, in one request, and recognizes it by them.
func TestTags(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].Inject(http.MethodPost, "/keys/generate", 1, nethsmtest.DropAfter())
	info, err := generate(t.Context(), s,
		key.Request{Spec: signSpec, Usage: key.Sign, Label: "release", Tags: []string{"a", "b"}})
	if err != nil || strings.Join(info.Tags, " ") != "a b" || len(paths(http.MethodPut, servers...)) > 0 {
		t.Errorf("%+v, %v", info, err)
	}
}

// TestMatches takes a key for the one that a lost request has generated only if nothing differs.
func TestMatches(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	request := key.Request{Spec: decryptSpec, Usage: key.Decrypt, Label: "release", Tags: []string{"a"}}
	store := open(t, s)
	k, err := store.generate(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	g, err := newGeneration(request)
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*generation){
		"": func(*generation) {}, "type": func(g *generation) { g.Type = "EC_P256" },
		"length":     func(g *generation) { g.Length = 3072 },
		"mechanisms": func(g *generation) { g.Mechanisms = g.Mechanisms[1:] },
		"tags":       func(g *generation) { g.Restrictions = nil },
	} {
		other := g
		change(&other)
		if matches, err := k.matches(t.Context(), other); err != nil || matches != (name == "") {
			t.Errorf("%q: %v, %v", name, matches, err)
		}
	}
	for name, body := range map[string]string{"used": `"operations":1,` + publicRSA(rsaKey().N.Bytes(), "AQAB"),
		"another": `"public":null`} {
		body = fmt.Sprintf(`{"type":"RSA","mechanisms":["%s"],"restrictions":{"tags":["a"]},%s}`,
			strings.Join(g.Mechanisms, `","`), body)
		servers[0].Inject(http.MethodGet, "/keys/*", 2, nethsmtest.RespondWith(200, typeJSON, body))
		if matches, err := k.matches(t.Context(), g); err != nil || matches {
			t.Errorf("%s: %v, %v", name, matches, err)
		}
	}
}
