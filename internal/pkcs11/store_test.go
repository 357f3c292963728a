package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // SoftHSM's OAEP knows no other
	"crypto/sha256"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// newToken makes a token and returns the settings of a key "release" on it, which is not there yet.
func newToken(t *testing.T) *config.Settings {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	return &config.Settings{
		Key: config.URI{Token: "signing", Object: "release"}, ModulePath: token.Module, PIN: softhsmtest.PIN,
		Timeout: time.Minute,
	}
}

// request is a request of a key "release".
func request(t *testing.T, spec string, usage key.Usage) key.Request {
	t.Helper()
	parsed, err := key.ParseSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	return key.Request{Spec: parsed, Usage: usage, Label: "release", ID: []byte("release")}
}

// generate makes a key and returns what is known of it.
func generateKey(t *testing.T, s *config.Settings, r key.Request) key.Info {
	t.Helper()
	info, err := New().Generate(t.Context(), s, r)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// open opens the token for the test.
func open(t *testing.T, s *config.Settings) *Token {
	t.Helper()
	token, err := New().open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := token.Close(); err != nil {
			t.Error(err)
		}
	})
	return token
}

// openKey opens the key that the settings name.
func openKey(t *testing.T, s *config.Settings) (*Token, *Key) {
	t.Helper()
	token := open(t, s)
	k, err := token.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	return token, k.(*Key)
}

// shimmed reaches the token of the settings through the shim, and returns where that logs its calls.
func shimmed(t *testing.T, s *config.Settings) (through *config.Settings, log string) {
	t.Helper()
	log = filepath.Join(t.TempDir(), "calls")
	t.Setenv("SHIM_LOG", log)
	other := *s
	other.ModulePath = softhsmtest.Shim(t, s.ModulePath)
	return &other, log
}

// fails checks the kind of an error and words of its message or hint.
func fails(t *testing.T, err error, kind failure.Kind, words string) {
	t.Helper()
	if err == nil {
		t.Errorf("it does not fail with %q", words)
	} else if !failure.Is(err, kind) || !strings.Contains(err.Error()+failure.From(err).Hint, words) {
		t.Errorf("it fails with %v (kind %v), not with kind %v and %q", err, failure.From(err).Kind, kind, words)
	}
}

// TestDecryptRSA decrypts what was encrypted to a key, and tells nobody by an error which ciphertexts of PKCS #1 v1.5
// are well formed.
func TestDecryptRSA(t *testing.T) {
	s := newToken(t)
	public := generateKey(t, s, request(t, "RSA-2048", key.Decrypt)).Public.(*rsa.PublicKey)
	_, k := openKey(t, s)
	secret := []byte("a content encryption key of 32 B")
	oaep, err := rsa.EncryptOAEP(sha1.New(), rand.Reader, public, secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.Decrypt(t.Context(), oaep, &rsa.OAEPOptions{Hash: crypto.SHA1}); err != nil ||
		string(got) != string(secret) {
		t.Errorf("OAEP gave %q, %v", got, err)
	}
	_, err = k.Decrypt(t.Context(), oaep, &rsa.OAEPOptions{Hash: crypto.SHA256})
	fails(t, err, failure.Unsupported, "?oaep=sha1")
	_, err = k.Decrypt(t.Context(), oaep, &rsa.OAEPOptions{Hash: crypto.MD5})
	fails(t, err, failure.Internal, "no OAEP with")
	_, err = k.Decrypt(t.Context(), oaep[1:], &rsa.OAEPOptions{Hash: crypto.SHA1})
	fails(t, err, failure.Invalid, "whose ciphertexts have 256")
	_, err = k.ECDH(t.Context(), nil)
	fails(t, err, failure.Invalid, "no elliptic curve key")

	good, err := rsa.EncryptPKCS1v15(rand.Reader, public, secret) //nolint:staticcheck // what CMS in images has
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.EncryptPKCS1v15(rand.Reader, public, secret[:16]) //nolint:staticcheck // as above
	if err != nil {
		t.Fatal(err)
	}
	malformed := make([]byte, len(good))
	malformed[200] = 1
	options := &rsa.PKCS1v15DecryptOptions{SessionKeyLen: len(secret)} //nolint:staticcheck // as above
	if got, err := k.Decrypt(t.Context(), good, options); err != nil || string(got) != string(secret) {
		t.Errorf("PKCS #1 v1.5 gave %q, %v", got, err)
	}
	for name, ciphertext := range map[string][]byte{"malformed": malformed, "of another length": short} {
		first, err := k.Decrypt(t.Context(), ciphertext, options)
		if err != nil || len(first) != len(secret) {
			t.Errorf("a ciphertext that is %s gave %d bytes, %v", name, len(first), err)
		}
		if second, err := k.Decrypt(t.Context(), ciphertext, options); err != nil || string(second) == string(first) {
			t.Errorf("a ciphertext that is %s gave the same key twice, %v", name, err)
		}
	}
	if _, err := k.Decrypt(t.Context(), malformed,
		&rsa.PKCS1v15DecryptOptions{}); err == nil { //nolint:staticcheck // as above
		t.Error("a malformed ciphertext was decrypted")
	}
	if info, err := k.Info(t.Context()); err != nil || *info.Sign || !*info.Decrypt || *info.Extractable ||
		!*info.Sensitive {
		t.Errorf("the key is %+v, %v", info, err)
	}
}

// TestFaultIsNotBadCiphertext reports a failing module as that, and not as a random key.
func TestFaultIsNotBadCiphertext(t *testing.T) {
	s := newToken(t)
	public := generateKey(t, s, request(t, "RSA-2048", key.Decrypt)).Public.(*rsa.PublicKey)
	s, _ = shimmed(t, s)
	_, k := openKey(t, s)
	good, err := rsa.EncryptPKCS1v15(rand.Reader, public, []byte("0123456789abcdef")) //nolint:staticcheck // as above
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("SHIM_FAULT", "C_Decrypt:2")                                                 // CKR_HOST_MEMORY
	_, err = k.Decrypt(t.Context(), good, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 16}) //nolint:staticcheck // as above
	if err == nil || failure.From(err).CKR != "CKR_HOST_MEMORY" {
		t.Errorf("a failing module gave %v", err)
	}
}

// TestECDH derives the secret that the other side derives.
func TestECDH(t *testing.T) {
	s := newToken(t)
	public := generateKey(t, s, request(t, "EC-384", key.Decrypt)).Public.(*ecdsa.PublicKey)
	_, k := openKey(t, s)
	other, err := ecdh.P384().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := public.ECDH()
	if err != nil {
		t.Fatal(err)
	}
	want, err := other.ECDH(own)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := k.ECDH(t.Context(), other.PublicKey()); err != nil || string(got) != string(want) {
		t.Errorf("%x, not %x: %v", got, want, err)
	}
	elsewhere, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, err = k.ECDH(t.Context(), elsewhere.PublicKey())
	fails(t, err, failure.Invalid, "another curve")
	_, err = k.Decrypt(t.Context(), nil, &rsa.OAEPOptions{})
	fails(t, err, failure.Invalid, "no RSA key")
}

// TestSigningKeyOnlySigns has a module refuse to decrypt and derive with signing keys.
func TestSigningKeyOnlySigns(t *testing.T) {
	s := newToken(t)
	r := request(t, "RSA-2048", key.Sign)
	generateKey(t, s, r)
	_, err := New().Generate(t.Context(), s, r)
	fails(t, err, failure.Conflict, "has a key with this label already")
	r.Label = "other"
	_, err = New().Generate(t.Context(), s, r)
	fails(t, err, failure.Conflict, "has a key with this id already")
	_, k := openKey(t, s)
	_, err = k.Decrypt(t.Context(), make([]byte, 256), &rsa.OAEPOptions{Hash: crypto.SHA1})
	fails(t, err, failure.Denied, "CKA_DECRYPT is false")
	digest := sha256.Sum256([]byte("message"))
	for name, opts := range map[string]crypto.SignerOpts{"PSS": &rsa.PSSOptions{Hash: crypto.SHA256},
		"PKCS1": crypto.SHA256} {
		signature, err := k.SignMessage(t.Context(), []byte("message"), opts)
		public := k.Public().(*rsa.PublicKey)
		if name == "PSS" && err == nil {
			err = rsa.VerifyPSS(public, crypto.SHA256, digest[:], signature, &rsa.PSSOptions{SaltLength: 32})
		} else if err == nil {
			err = rsa.VerifyPKCS1v15(public, crypto.SHA256, digest[:], signature)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestGenerateBesideStore refuses to make keys while another store has the module open, and makes them afterwards.
func TestGenerateBesideStore(t *testing.T) {
	s := newToken(t)
	backend := New()
	store, err := backend.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	brief := *s
	brief.Timeout = 100 * time.Millisecond
	_, err = backend.Generate(t.Context(), &brief, request(t, "EC-256", key.Sign))
	fails(t, err, failure.Conflict, "other operations of this process use the PKCS#11 module")
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := backend.Generate(t.Context(), s, request(t, "EC-256", key.Sign)); err != nil {
		t.Error(err)
	}
}

// TestGenerateAfterStore makes a key as soon as the store is closed that has the module open.
func TestGenerateAfterStore(t *testing.T) {
	s, log := shimmed(t, newToken(t))
	s.Timeout = 5 * time.Second
	backend := New()
	token, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	made := make(chan error)
	go func() {
		_, err := backend.Generate(t.Context(), s, request(t, "EC-256", key.Sign))
		made <- err
	}()
	for softhsmtest.Count(softhsmtest.Calls(t, log), "C_GetInfo") == 0 {
		continue // until it has looked at the token, after which it waits for this store
	}
	time.Sleep(50 * time.Millisecond)
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	if err := <-made; err != nil {
		t.Error(err)
	}
}

// TestBackup wraps a key under a trusted wrapping key, deletes it and makes it again: it is what it was, and cannot be
// wrapped by keys that are not trusted. A MAC holds data together with the wrapping key.
func TestBackup(t *testing.T) {
	s := newToken(t)
	t.Setenv("SO_PIN", softhsmtest.SOPIN)
	t.Setenv("WRONG_PIN", "000000")
	by := key.WrappingKey{Label: "backup", ID: []byte("backup")}
	value := make([]byte, 32)
	wrong := New()
	for range 2 { // the second is not tried
		err := wrong.ImportWrapping(t.Context(), s, "env:WRONG_PIN", by, value)
		fails(t, err, failure.Denied, "the security officer's PIN is wrong")
	}
	fails(t, wrong.ImportWrapping(t.Context(), s, "env:SO_PIN", by, value), failure.Denied, "is not tried again")
	fails(t, New().ImportWrapping(t.Context(), s, "", by, value), failure.Denied, "--so-pin-source")
	fails(t, New().ImportWrapping(t.Context(), s, pin.None, by, value), failure.Denied, "no PIN pad")
	if err := New().ImportWrapping(t.Context(), s, "env:SO_PIN", by, value); err != nil {
		t.Fatal(err)
	}
	fails(t, New().ImportWrapping(t.Context(), s, "env:SO_PIN", by, value), failure.Conflict, "already")

	r := request(t, "EC-256", key.Sign)
	r.Wrappable = true
	public := generateKey(t, s, r).Public
	token, k := openKey(t, s)
	found, err := token.WrappingKey(t.Context(), config.URI{})
	if err != nil || found.Label != by.Label {
		t.Fatalf("the wrapping key is %+v, %v", found, err)
	}
	_, err = token.WrappingKey(t.Context(), config.URI{Object: "other"})
	fails(t, err, failure.NotFound, "there is no wrapping key")
	wrapped, err := token.Wrap(t.Context(), k, config.URI{})
	if err != nil {
		t.Fatal(err)
	}
	mac, err := token.Authenticate(t.Context(), []byte("data"), wrapped.Mechanism, wrapped.By)
	if err != nil {
		t.Fatal(err)
	}
	if err := token.Verify(t.Context(), []byte("data"), mac, wrapped.Mechanism, wrapped.By); err != nil {
		t.Error(err)
	}
	fails(t, token.Verify(t.Context(), []byte("date"), mac, wrapped.Mechanism, wrapped.By), failure.Invalid,
		"does not verify")
	forged := mac
	forged.Key = make([]byte, len(mac.Key))
	fails(t, token.Verify(t.Context(), []byte("data"), forged, wrapped.Mechanism, wrapped.By), failure.Invalid,
		"did not unwrap")
	forged.Key = wrapped.Bytes // a private key must not become a secret key, not even for a moment
	fails(t, token.Verify(t.Context(), []byte("data"), forged, wrapped.Mechanism, wrapped.By), failure.Invalid,
		"MAC key has")
	fails(t, token.Verify(t.Context(), []byte("data"), mac, "CKM_X", wrapped.By), failure.Invalid, "not known here")

	if err := token.Delete(t.Context(), k, nil); err != nil {
		t.Fatal(err)
	}
	if err := token.Unwrap(t.Context(), wrapped, key.Sign, "restored", []byte("restored"), public); err != nil {
		t.Fatal(err)
	}
	restored := *s
	restored.Key.Object = "restored"
	_, again := openKey(t, &restored)
	if err := sign(t, again, "message"); err != nil || !public.(*ecdsa.PublicKey).Equal(again.Public()) {
		t.Errorf("the restored key did not sign, or is another: %v", err)
	}
	info, err := again.Info(t.Context())
	if err != nil || !*info.WrapWithTrusted || !*info.Sensitive || !*info.Extractable || *info.Decrypt || *info.Derive ||
		*info.Unwrap {
		t.Errorf("the restored key is %+v, %v", info, err)
	}
}

// TestWrapRefused wraps no key that was not made for it.
func TestWrapRefused(t *testing.T) {
	s := newToken(t)
	t.Setenv("SO_PIN", softhsmtest.SOPIN)
	generateKey(t, s, request(t, "EC-256", key.Sign))
	by := key.WrappingKey{Label: "backup", ID: []byte("backup")}
	if err := New().ImportWrapping(t.Context(), s, "env:SO_PIN", by, make([]byte, 32)); err != nil {
		t.Fatal(err)
	}
	token, k := openKey(t, s)
	_, err := token.Wrap(t.Context(), k, config.URI{})
	fails(t, err, failure.Denied, "does not let key")
}

// TestNoTrustedKeys says which attribute a module refuses that has no trusted keys, or that it is one of three, and
// stores nothing.
func TestNoTrustedKeys(t *testing.T) {
	s, _ := shimmed(t, newToken(t))
	t.Setenv("SO_PIN", softhsmtest.SOPIN)
	t.Setenv("SHIM_FAULT", "C_CreateObject:12") // CKR_ATTRIBUTE_TYPE_INVALID, as kryoptic 1.5 answers
	err := New().ImportWrapping(t.Context(), s, "env:SO_PIN", key.WrappingKey{Label: "b", ID: []byte("b")}, make([]byte,
		32))
	fails(t, err, failure.Unsupported, "it refuses CKA_TRUSTED, without which")
	t.Setenv("SHIM_FAULT_TIMES", "0")
	w := key.WrappingKey{Label: "b", ID: []byte("b")}
	err = New().ImportWrapping(t.Context(), s, "env:SO_PIN", w, make([]byte, 32))
	fails(t, err, failure.Unsupported, "it refuses CKA_TRUSTED, CKA_WRAP_TEMPLATE or CKA_UNWRAP_TEMPLATE, without which")
	t.Setenv("SHIM_FAULT", "")
	_, err = open(t, s).WrappingKey(t.Context(), config.URI{})
	fails(t, err, failure.NotFound, "there is no wrapping key")
}

// TestCertificates stores a chain beside a key, finds it again, and deletes the key with its certificate.
func TestCertificates(t *testing.T) {
	s := newToken(t)
	public := generateKey(t, s, request(t, "EC-256", key.Sign)).Public
	root := softhsmtest.NewCA(t, "Root", nil)
	leaf := root.Issue(t, softhsmtest.Template("release"), public)
	token, k := openKey(t, s)
	chain := []*x509.Certificate{leaf, root.Cert}
	for _, want := range []int{2, 0} { // the second time they are there
		if n, err := token.Import(t.Context(), k, chain); err != nil || n != want {
			t.Errorf("%d certificates were stored, not %d: %v", n, want, err)
		}
	}
	if found, err := token.Leaf(t.Context()); err != nil || !found.Equal(leaf) {
		t.Errorf("the leaf is %v, %v", found, err)
	}
	if found, err := token.Issuers(t.Context(), leaf); err != nil || len(found) != 1 || !found[0].Equal(root.Cert) {
		t.Errorf("the issuers are %v, %v", found, err)
	}
	if found, err := token.Certificates(t.Context()); err != nil || len(found) != 2 {
		t.Errorf("the certificates are %v, %v", found, err)
	}
	if got, err := token.Public(t.Context()); err != nil || !public.(*ecdsa.PublicKey).Equal(got) {
		t.Errorf("the public key is %v, %v", got, err)
	}
	if taken, err := token.Taken(t.Context(), config.URI{Object: "release"}); err != nil || !taken {
		t.Errorf("the name is free: %v", err)
	}
	if err := token.Delete(t.Context(), k, []*x509.Certificate{leaf}); err != nil {
		t.Fatal(err)
	}
	if found, err := token.Certificates(t.Context()); err != nil || len(found) != 1 || !found[0].Equal(root.Cert) {
		t.Errorf("after the deletion, the certificates are %v, %v", found, err)
	}
	if taken, err := token.Taken(t.Context(), config.URI{Object: "release"}); err != nil || taken {
		t.Errorf("after the deletion, the name is taken: %v", err)
	}
	_, err := token.Key(t.Context(), nil)
	fails(t, err, failure.NotFound, "make one with")
}

// TestDiscard deletes what an interrupted generation left behind, by label and id alone.
func TestDiscard(t *testing.T) {
	s := newToken(t)
	generateKey(t, s, request(t, "EC-256", key.Sign))
	fails(t, open(t, s).Discard(t.Context()), failure.Internal, "named by label and id")
	s.Key.ID = []byte("release")
	token := open(t, s)
	if err := token.Discard(t.Context()); err != nil {
		t.Fatal(err)
	}
	if taken, err := token.Taken(t.Context(), s.Key); err != nil || taken {
		t.Errorf("the key is there: %v", err)
	}
}

// TestList lists keys with one search for each class of objects, and one call for each object, and finds the public
// half of each wherever it is.
func TestList(t *testing.T) {
	s := newToken(t)
	token := &softhsmtest.Token{Module: s.ModulePath, Label: "signing"}
	const count = 6
	for i := range count {
		spec := []string{"EC-256", "RSA-2048"}[i%2]
		token.Generate(t, spec, spec+string(rune('a'+i)))
	}
	generateKey(t, s, request(t, "EC-256", key.Sign))
	store, k := openKey(t, s)
	leaf := softhsmtest.NewCA(t, "Root", nil).Issue(t, softhsmtest.Template("release"), k.Public())
	if _, err := store.Import(t.Context(), k, []*x509.Certificate{leaf}); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Run(t, softhsmtest.Program(t, "pkcs11-tool"), "--module", s.ModulePath, "--token-label", "signing",
		"--login",
		"--pin", softhsmtest.PIN, "--delete-object", "--type", "pubkey", "--label", "release")
	s.Key.Object = ""
	s, log := shimmed(t, s)
	listing := open(t, s)
	ctx := keystore.WithProgress(t.Context(), func(activity string, _, total int) { t.Log(activity, total) })
	keys, err := listing.Keys(ctx)
	if err != nil || len(keys) != count+1 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, k := range keys {
		info, err := k.Info(ctx)
		if err != nil || info.Public == nil || info.Label == "" || !*info.Sign {
			t.Errorf("a key is listed as %+v, %v", info, err)
		}
	}
	calls := softhsmtest.Calls(t, log)
	if n := softhsmtest.Count(calls, "C_FindObjectsInit"); n != 3 {
		t.Errorf("%d searches, not one for each class", n)
	}
	// The keys, the public keys and the certificate.
	if n := softhsmtest.Count(calls, "C_GetAttributeValue"); n != count+1+count+1 {
		t.Errorf("%d reads of attributes", n)
	}
	_, err = listing.Key(ctx, nil)
	fails(t, err, failure.Invalid, "more than one key")
	other := *s
	other.Key.Object = "other"
	_, err = open(t, &other).Key(ctx, nil)
	fails(t, err, failure.NotFound, "it has:")
}

// TestReceives tells recipients' keys from others.
func TestReceives(t *testing.T) {
	for _, c := range []struct {
		spec     string
		usage    key.Usage
		receives bool
	}{{"RSA-2048", key.Decrypt, true}, {"RSA-2048", key.Sign, false}, {"EC-256", key.Decrypt, true}} {
		t.Run(c.spec+" to "+string(c.usage), func(t *testing.T) {
			s := newToken(t)
			public := generateKey(t, s, request(t, c.spec, c.usage)).Public
			got, err := open(t, s).Receives(t.Context(), public)
			if err != nil || got.Sure != c.receives || (got.Refusal == "") != c.receives {
				t.Errorf("%+v, %v", got, err)
			}
		})
	}
}

// TestWhichToken finds the one token that is named, and says what there is otherwise.
func TestWhichToken(t *testing.T) {
	s := newToken(t)
	backend := New()
	tokens, err := backend.Tokens(t.Context(), s)
	if err != nil || len(tokens) == 0 || tokens[0].Label != "signing" || tokens[0].PIN != key.PINReady {
		t.Fatalf("%+v, %v", tokens, err)
	}
	if !backend.Matches(config.URI{Token: "signing"}, tokens[0]) || backend.Matches(config.URI{Token: "other"},
		tokens[0]) {
		t.Error("a token matches another's name, or not its own")
	}
	if backend.Scheme() != "pkcs11:" || backend.Close() != nil {
		t.Error("the backend is another")
	}
	slot := tokens[0].Slot
	s.Key = config.URI{SlotID: &slot}
	t.Run("by slot", func(t *testing.T) {
		if got := open(t, s).Describe(); got.Serial != tokens[0].Serial {
			t.Errorf("slot %d has %+v", slot, got)
		}
	})
	fail := func(uri config.URI, kind failure.Kind, words string) {
		t.Helper()
		s.Key = uri
		_, err := backend.Open(t.Context(), s)
		fails(t, err, kind, words)
	}
	fail(config.URI{Token: "other"}, failure.NotFound, "no token matches")
	free := tokens[len(tokens)-1].Slot
	fail(config.URI{SlotID: &free}, failure.Invalid, "is not initialised")
	none := uint(1 << 20)
	fail(config.URI{SlotID: &none}, failure.NotFound, "token list")
	for range 2 {
		softhsmtest.Run(t, softhsmtest.Program(t, "softhsm2-util"), "--init-token", "--free", "--label", "twice", "--pin",
			softhsmtest.PIN, "--so-pin", softhsmtest.SOPIN)
	}
	fail(config.URI{Token: "twice"}, failure.Invalid, "2 tokens match")
	fail(config.URI{}, failure.Invalid, "none is named")
}

// TestModuleNotLoaded says what is wrong with a module that cannot be loaded.
func TestModuleNotLoaded(t *testing.T) {
	for path, words := range map[string]string{
		"": "no PKCS#11 module is named", t.TempDir(): "is a folder", "/nonexistent.so": "cannot load",
		"libc.so.6": "it is not a PKCS#11 module",
	} {
		_, err := New().Open(t.Context(), &config.Settings{ModulePath: path, Timeout: time.Minute})
		fails(t, err, failure.Invalid, words)
	}
}

// TestEnvironment sets the variables of a token for its module alone, and refuses another value for another token.
func TestEnvironment(t *testing.T) {
	s := newToken(t)
	s, log := shimmed(t, s)
	t.Setenv("SHIM_LOG", "")
	s.Env = map[string]string{"SHIM_LOG": log}
	backend := New()
	store, err := backend.Open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if len(softhsmtest.Calls(t, log)) == 0 {
		t.Error("the module did not see the variable")
	}
	other := *s
	other.Env = map[string]string{"SHIM_LOG": "elsewhere"}
	_, err = backend.Open(t.Context(), &other)
	fails(t, err, failure.Conflict, "has set SHIM_LOG to another value")
	other.Env = map[string]string{"SHIM_NOISE": "1"} // which the module would not see before it starts again
	_, err = backend.Open(t.Context(), &other)
	fails(t, err, failure.Conflict, "has started it without SHIM_NOISE")
	s.Env = map[string]string{"A=B": ""}
	_, err = New().Open(t.Context(), s)
	fails(t, err, failure.Invalid, "check env")
}

// TestPIN tries no PIN of a token that is locked or close to it, asks at the token's own pad, and clears the PIN after
// the login.
func TestPIN(t *testing.T) {
	s := newToken(t)
	generateKey(t, s, request(t, "EC-256", key.Sign))
	s, log := shimmed(t, s)
	for flags, words := range map[string]string{"40000": "is locked", "20000": "one more wrong PIN locks"} {
		t.Setenv("SHIM_TOKEN_FLAGS", flags)
		fails(t, open(t, s).Login(t.Context()), failure.Denied, words)
	}
	t.Setenv("SHIM_TOKEN_FLAGS", "")
	none := *s
	none.PIN = ""
	fails(t, open(t, &none).Login(t.Context()), failure.Denied, "no pin-source is set")
	none.PINSource = pin.None
	fails(t, open(t, &none).Login(t.Context()), failure.Denied, "no PIN pad")
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 0 {
		t.Errorf("%d logins", n)
	}
	t.Setenv("SHIM_TOKEN_FLAGS", "100")
	t.Setenv("SHIM_PIN", softhsmtest.PIN)
	if err := open(t, &none).Login(t.Context()); err != nil {
		t.Errorf("at the token's own pad: %v", err)
	}
	t.Setenv("SHIM_TOKEN_FLAGS", "")
	token := open(t, s)
	secret, err := pin.From(softhsmtest.PIN)
	if err != nil {
		t.Fatal(err)
	}
	_, err = inSessionSteps(t.Context(), token, "logging in", func(ctx context.Context, s *session) (struct{}, error) {
		return struct{}{}, s.loginWith(ctx, pkcs11.CKU_USER, s.handle, secret)
	})
	if err != nil || len(secret.Bytes()) != 0 {
		t.Errorf("the PIN is not cleared after the login: %v", err)
	}
}

// TestPINAtBrokenDevice tries a PIN once when the module answers CKR_DEVICE_ERROR: the device may have counted it.
func TestPINAtBrokenDevice(t *testing.T) {
	s := newToken(t)
	generateKey(t, s, request(t, "EC-256", key.Sign))
	s, log := shimmed(t, s)
	t.Setenv("SHIM_FAULT", "C_Login:30")
	t.Setenv("SHIM_FAULT_TIMES", "0")
	backend := New()
	for range 2 {
		token, err := backend.Open(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		if err := token.Login(t.Context()); err == nil {
			t.Error("it logged in")
		}
		token.Close()
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// TestPINForEachUse logs in for each use of a key that asks for it, and once for the token.
func TestPINForEachUse(t *testing.T) {
	s := newToken(t)
	softhsmtest.Run(t, softhsmtest.Program(t, "pkcs11-tool"), "--module", s.ModulePath, "--token-label", "signing",
		"--login",
		"--pin", softhsmtest.PIN, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "release", "--id", "ca5e",
		"--always-auth", "--usage-sign")
	s, log := shimmed(t, s)
	_, k := openKey(t, s)
	for range 3 {
		if err := sign(t, k, "message"); err != nil {
			t.Error(err)
		}
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 4 {
		t.Errorf("%d logins for three signatures", n)
	}
}

// TestWrongPINForEachUse has many goroutines use a key whose every use needs the PIN, when the PIN's source holds a
// wrong one by then. One of them tries it.
func TestWrongPINForEachUse(t *testing.T) {
	s := newToken(t)
	softhsmtest.Run(t, softhsmtest.Program(t, "pkcs11-tool"), "--module", s.ModulePath, "--token-label", "signing",
		"--login", "--pin", softhsmtest.PIN, "--keypairgen", "--key-type", "EC:prime256v1", "--label", "release",
		"--id", "ca5e", "--always-auth", "--usage-sign")
	file := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(file, []byte(softhsmtest.PIN), 0o600); err != nil {
		t.Fatal(err)
	}
	s.PIN, s.PINSource = "", "file:"+file
	s, log := shimmed(t, s)
	_, k := openKey(t, s)
	if err := sign(t, k, "message"); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("000000"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login")
	t.Setenv("SHIM_DELAY_MS", "20") // so that they meet
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			if err := sign(t, k, "message"); !failure.Is(err, failure.Denied) {
				t.Errorf("a signature with a wrong PIN: %v", err)
			}
		})
	}
	group.Wait()
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login") - before; n != 1 {
		t.Errorf("the wrong PIN was tried %d times", n)
	}
}

// TestWrongPINOfGenerate tries a PIN once that a module refuses by a value of its own.
func TestWrongPINOfGenerate(t *testing.T) {
	s, log := shimmed(t, newToken(t))
	t.Setenv("SHIM_FAULT", "C_Login:6") // CKR_FUNCTION_FAILED
	backend := New()
	for range 2 {
		if _, err := backend.Generate(t.Context(), s, request(t, "EC-256", key.Sign)); err == nil {
			t.Error("a key was made after a refused login")
		}
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 1 {
		t.Errorf("%d logins", n)
	}
}

// TestNetHSM asks a NetHSM's module for no more than it answers: one session, one search by id, and nothing that the
// administrator alone may do.
func TestNetHSM(t *testing.T) {
	s := newToken(t)
	generateKey(t, s, request(t, "EC-256", key.Sign))
	s, log := shimmed(t, s)
	t.Setenv("SHIM_NETHSM", "1")
	token, k := openKey(t, s)
	if err := sign(t, k, "message"); err != nil {
		t.Error(err)
	}
	if _, err := token.Leaf(t.Context()); err != nil {
		t.Error(err)
	}
	if found, err := token.Issuers(t.Context(), nil); err != nil || found != nil {
		t.Errorf("%v, %v", found, err)
	}
	_, err := token.Import(t.Context(), k, nil)
	fails(t, err, failure.Denied, "Administrator")
	_, err = token.WrappingKey(t.Context(), config.URI{})
	fails(t, err, failure.Unsupported, "wraps no keys")
	calls := softhsmtest.Calls(t, log)
	if n := softhsmtest.Count(calls, "C_FindObjectsInit_all"); n != 0 {
		t.Errorf("%d searches through all keys", n)
	}
	unnamed := *s
	unnamed.Key.Object = ""
	_, err = open(t, &unnamed).Key(t.Context(), nil)
	fails(t, err, failure.Invalid, "is named")
	t.Setenv("SHIM_FAULT", "C_Sign:101") // CKR_USER_NOT_LOGGED_IN, which says 403 there
	before := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login")
	fails(t, sign(t, k, "message"), failure.Denied, "403")
	if after := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); after != before {
		t.Error("a request that was refused led to a login")
	}
}

// TestListAmbiguous shows no public half of a key whose id two public keys have.
func TestListAmbiguous(t *testing.T) {
	s := newToken(t)
	token := &softhsmtest.Token{Module: s.ModulePath, Label: "signing"}
	for _, label := range []string{"twice", "twice", "once"} {
		token.Generate(t, "EC-256", label)
	}
	s.Key.Object = ""
	keys, err := open(t, s).Keys(t.Context())
	if err != nil || len(keys) != 3 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	for _, k := range keys {
		info, err := k.Info(t.Context())
		if err != nil || (info.Public == nil) != (info.Label == "twice") {
			t.Errorf("%q has the public half %v, %v", info.Label, info.Public, err)
		}
	}
}

// BenchmarkSign signs through the pool, from as many goroutines as there are processors.
func BenchmarkSign(b *testing.B) {
	for _, spec := range []string{"EC-256", "RSA-2048"} {
		b.Run(spec, func(b *testing.B) {
			token := softhsmtest.NewToken(b, "signing")
			token.Generate(b, spec, "release")
			store, err := New().Open(b.Context(), &config.Settings{
				Key: config.URI{Token: "signing", Object: "release"}, ModulePath: token.Module, PIN: softhsmtest.PIN,
				Timeout: time.Minute,
			})
			if err != nil {
				b.Fatal(err)
			}
			defer store.Close()
			k, err := store.Key(b.Context(), nil)
			if err != nil {
				b.Fatal(err)
			}
			digest := sha256.Sum256([]byte("payload"))
			b.ReportAllocs()
			b.ResetTimer()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := k.Sign(b.Context(), digest[:], crypto.SHA256); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
