package worker

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"math/big"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// certificate returns a self-signed certificate of the fixture's key.
func (f *fixture) certificate(t testing.TB) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "release"}, NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, f.private.Public(), f.private)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// TestStore makes every call of a store.
func TestStore(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	store, k := f.open(t)
	tokens, err := f.backend.Tokens(ctx, &f.settings)
	if err != nil || len(tokens) != 1 || tokens[0] != store.Describe() || tokens[0].Label != "signing" {
		t.Errorf("tokens: %v, %v", tokens, err)
	}
	if !f.backend.Matches(f.settings.Key, tokens[0]) || f.backend.Scheme() != config.Scheme {
		t.Error("the token does not match its URI")
	}
	if err := store.Login(ctx); err != nil {
		t.Error(err)
	}
	public, err := store.Public(ctx)
	if err != nil || !f.private.Public().(*ecdsa.PublicKey).Equal(public) {
		t.Errorf("public: %v, %v", public, err)
	}
	if public, err = k.ReadPublic(ctx); err != nil || !f.private.Public().(*ecdsa.PublicKey).Equal(public) {
		t.Errorf("public half read: %v, %v", public, err)
	}
	i, err := k.Info(ctx)
	if err != nil || i.Label != "release" || i.Sign == nil || !*i.Sign || i.Public == nil {
		t.Errorf("info: %+v, %v", i, err)
	}
	if _, err := store.Receives(ctx, public); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]bool{"release": true, "other": false} {
		if taken, err := store.Taken(ctx, config.URI{Object: name}); err != nil || taken != want {
			t.Errorf("%s taken: %v, %v", name, taken, err)
		}
	}
	cert := f.certificate(t)
	if leaf, err := store.Leaf(ctx); err != nil || leaf != nil {
		t.Errorf("leaf before it is stored: %v, %v", leaf, err)
	}
	if n, err := store.Import(ctx, k, []*x509.Certificate{cert}); err != nil || n != 1 {
		t.Errorf("imported %d: %v", n, err)
	}
	if leaf, err := store.Leaf(ctx); err != nil || leaf == nil || !leaf.Equal(cert) {
		t.Errorf("leaf: %v, %v", leaf, err)
	}
	if found, err := store.Issuers(ctx, cert); err != nil || len(found) != 1 || !found[0].Equal(cert) {
		t.Errorf("issuers: %v, %v", found, err)
	}
	if found, err := store.Certificates(ctx); err != nil || len(found) != 1 {
		t.Errorf("certificates: %v, %v", found, err)
	}
	if err := store.Delete(ctx, k, []*x509.Certificate{cert}); err != nil {
		t.Error(err)
	}
	if taken, err := store.Taken(ctx, config.URI{Object: "release"}); err != nil || taken {
		t.Errorf("after it was deleted: %v, %v", taken, err)
	}
	if err := store.Discard(ctx); err != nil && !failure.Is(err, failure.Internal) {
		t.Error(err)
	}
	if err := store.Close(); err != nil {
		t.Error(err)
	}
	if err := store.Login(ctx); !failure.Is(err, failure.Internal) {
		t.Errorf("a store that is closed: %v", err)
	}
}

// TestBackUp wraps a key and makes it again.
func TestBackUp(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ctx := t.Context()
	if err := f.backend.ImportWrapping(ctx, &f.settings, "env:UNUSED", key.WrappingKey{Label: "backup", ID: []byte{1}},
		[]byte("value")); err != nil {
		t.Fatal(err)
	}
	spec, _ := key.ParseSpec("EC-256")
	made, err := f.backend.Generate(ctx, &f.settings,
		key.Request{Spec: spec, Label: "new", Usage: key.Sign, Wrappable: true})
	if err != nil || made.Public == nil || made.Label != "new" {
		t.Fatalf("%+v, %v", made, err)
	}
	f.settings.Key.Object = "new"
	store, k := f.open(t)
	wrapped, err := store.Wrap(ctx, k, config.URI{})
	if err != nil {
		t.Fatal(err)
	}
	mac, err := store.Authenticate(ctx, []byte("data"), wrapped.Mechanism, wrapped.By)
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Verify(ctx, []byte("data"), mac, wrapped.Mechanism, wrapped.By); err != nil {
		t.Error(err)
	}
	if err := store.Verify(ctx, []byte("other"), mac, wrapped.Mechanism, wrapped.By); !failure.Is(err, failure.Invalid) {
		t.Errorf("other data: %v", err)
	}
	if err := store.Delete(ctx, k, nil); err != nil {
		t.Error(err)
	}
	if err := store.Unwrap(ctx, wrapped, key.Sign, "new", made.ID, made.Public); err != nil {
		t.Error(err)
	}
	again, err := store.Key(ctx, nil)
	if err != nil || !made.Public.(*ecdsa.PublicKey).Equal(again.Public()) {
		t.Errorf("the key that was made again: %v", err)
	}
}

// TestKeys uses each of the keys that a token has, also after a restart.
func TestKeys(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.settings.Key.Object = ""
	store, err := f.backend.Open(t.Context(), &f.settings)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	keys, err := store.Keys(t.Context())
	if err != nil || len(keys) != 1 {
		t.Fatal(keys, err)
	}
	for range 2 {
		if err := f.signs(t.Context(), keys[0]); err != nil {
			t.Error(err)
		}
		f.order(t, "Sign.crash")
	}
}

// TestOtherKey refuses to use another key that is in the place of the one that was opened.
func TestOtherKey(t *testing.T) {
	t.Parallel()
	f, other := newFixture(t), newFixture(t)
	_, k := f.open(t)
	for _, m := range f.backend.modules {
		m.env[keyVariable] = other.settings.Env[keyVariable]
	}
	f.order(t, "Sign.crash")
	if err := f.signs(t.Context(), k); !failure.Is(err, failure.Conflict) {
		t.Error(err)
	}
}

// rsaFixture returns a fixture whose key is an RSA key for a usage.
func rsaFixture(t testing.TB, usage key.Usage) (*fixture, *rsa.PrivateKey) {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	f := newFixture(t)
	f.settings.Env[keyVariable] = base64.StdEncoding.EncodeToString(der)
	f.settings.Env[usageVariable] = string(usage)
	return f, private
}

// TestRSA signs and decrypts in each scheme.
func TestRSA(t *testing.T) {
	t.Parallel()
	ctx, digest := t.Context(), sha256.Sum256([]byte("message"))
	f, private := rsaFixture(t, key.Sign)
	_, k := f.open(t)
	pss := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: crypto.SHA256}
	signature, err := k.Sign(ctx, digest[:], pss)
	if err != nil || rsa.VerifyPSS(&private.PublicKey, crypto.SHA256, digest[:], signature, pss) != nil {
		t.Errorf("PSS: %v", err)
	}
	if signature, err = k.SignMessage(ctx, []byte("message"), crypto.SHA256); err != nil ||
		rsa.VerifyPKCS1v15(&private.PublicKey, crypto.SHA256, digest[:], signature) != nil {
		t.Errorf("PKCS #1 v1.5: %v", err)
	}
	long := bytes.Repeat([]byte("message"), 1<<20)
	if signature, err = k.SignMessage(ctx, long, pss); err != nil {
		t.Errorf("a message of 7 MiB: %v", err)
	} else if sum := sha256.Sum256(long); rsa.VerifyPSS(&private.PublicKey, crypto.SHA256, sum[:], signature, pss) != nil {
		t.Error("a message of 7 MiB: the signature does not verify")
	}
	if _, err := k.SignMessage(ctx, make([]byte, frameLimit), pss); !failure.Is(err, failure.Invalid) {
		t.Errorf("a message that is too long: %v", err)
	}
	sha256OAEP := &rsa.OAEPOptions{Hash: crypto.SHA256}
	if _, err := k.Decrypt(ctx, make([]byte, 256), sha256OAEP); !failure.Is(err, failure.Denied) {
		t.Errorf("a signing key decrypted: %v", err)
	}

	f, private = rsaFixture(t, key.Decrypt)
	_, k = f.open(t)
	ciphertext, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, &private.PublicKey, []byte("secret"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err := k.Decrypt(ctx, ciphertext, sha256OAEP); err != nil || string(plain) != "secret" {
		t.Errorf("OAEP: %q, %v", plain, err)
	}
	//nolint:staticcheck // what CMS has
	ciphertext, err = rsa.EncryptPKCS1v15(rand.Reader, &private.PublicKey, []byte("secret"))
	if err != nil {
		t.Fatal(err)
	}
	//nolint:staticcheck // as above
	plain, err := k.Decrypt(ctx, ciphertext, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 6})
	if err != nil || string(plain) != "secret" {
		t.Errorf("PKCS #1 v1.5: %q, %v", plain, err)
	}
	if _, err := k.Decrypt(ctx, ciphertext, nil); !failure.Is(err, failure.Internal) {
		t.Errorf("no scheme: %v", err)
	}
}

// TestECDH derives a shared secret.
func TestECDH(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.settings.Env[usageVariable] = string(key.Decrypt)
	_, k := f.open(t)
	other, err := ecdh.P256().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, err := f.private.(*ecdsa.PrivateKey).ECDH()
	if err != nil {
		t.Fatal(err)
	}
	want, err := own.ECDH(other.PublicKey())
	if err != nil {
		t.Fatal(err)
	}
	if shared, err := k.ECDH(t.Context(), other.PublicKey()); err != nil || !bytes.Equal(shared, want) {
		t.Errorf("%x instead of %x: %v", shared, want, err)
	}
}

// TestFailure hands a failure on with all its parts.
func TestFailure(t *testing.T) {
	t.Parallel()
	sent := failure.New(failure.Throttled, "cannot open a session on token %q", "signing").WithHint("wait")
	sent.CKR = "CKR_SESSION_COUNT"
	got := decodeFailure(encodeFailure(sent))
	if got.Kind != sent.Kind || got.What != sent.What || got.Hint != sent.Hint || got.CKR != sent.CKR {
		t.Errorf("%+v", got)
	}
	for _, text := range []string{"", "{}", "no JSON", `{"Kind":99,"What":"text"}`, `{"Kind":-1,"What":"text"}`} {
		if f := decodeFailure([]byte(text)); f.Kind != failure.Internal || f.What == "" {
			t.Errorf("%q: %+v", text, f)
		}
	}
	f := newFixture(t)
	f.settings.Key.Token = "other"
	if _, err := f.backend.Open(t.Context(), &f.settings); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	f.settings.ModulePath = ""
	if _, err := f.backend.Open(t.Context(), &f.settings); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
}

// TestUse encodes each use of a key.
func TestUse(t *testing.T) {
	t.Parallel()
	for _, u := range []use{
		{key: 1, hash: crypto.SHA256, data: []byte("digest")},
		{key: 1 << 40, scheme: pss, hash: crypto.SHA512, length: rsa.PSSSaltLengthEqualsHash, data: []byte("digest")},
		{key: 2, scheme: oaep, hash: crypto.SHA256, mgf: crypto.SHA1, label: []byte("label"), data: []byte("data")},
		{key: 3, scheme: pkcs1Decryption, length: 32},
	} {
		got, ok := decodeUse(append(u.head(), u.data...))
		if !ok || got.key != u.key || got.scheme != u.scheme || got.hash != u.hash || got.mgf != u.mgf ||
			got.length != u.length || !bytes.Equal(got.label, u.label) || !bytes.Equal(got.data, u.data) {
			t.Errorf("%+v became %+v", u, got)
		}
	}
}

// TestCurves keeps public keys as they are.
func TestCurves(t *testing.T) {
	t.Parallel()
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		private, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := encodePublic(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		if half, err := decodePublic(der); err != nil || !private.PublicKey.Equal(half) {
			t.Errorf("%s: %v", curve.Params().Name, err)
		}
	}
	if _, err := encodePublic("no key"); !failure.Is(err, failure.Unsupported) {
		t.Error(err)
	}
	var none keystore.Key = &remoteKey{}
	if none.Public() != nil {
		t.Error("a public half out of nothing")
	}
}
