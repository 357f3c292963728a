package nethsm

import (
	"crypto"
	"crypto/ecdh"
	"crypto/x509"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// TestRequests counts requests: no keys are listed to find one, and the certificates of a key are read once.
func TestRequests(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	servers[0].SetKeyCertificate("release", certs.Encode([]*x509.Certificate{selfSigned(t, private)}))
	for _, c := range []struct {
		what string
		do   func(*Store) error
		want []string
	}{
		{"opening", func(*Store) error { return nil }, nil},
		{"with a chain file", func(store *Store) error { return sign(t.Context(), store, &private.PublicKey) },
			[]string{"/keys/release/sign"}},
		{"without", func(store *Store) error {
			leaf, err := store.Leaf(t.Context())
			if err != nil {
				return err
			}
			if issuers, err := store.Issuers(t.Context(), leaf); err != nil || len(issuers) != 1 {
				t.Errorf("%d issuers, %v", len(issuers), err)
			}
			return sign(t.Context(), store, &private.PublicKey)
		}, []string{"/keys/release/cert", "/keys/release/sign"}},
		{"describing", func(store *Store) error { _, err := store.Public(t.Context()); return err },
			[]string{"/keys/release"}},
		{"logging in", func(store *Store) error { return store.Login(t.Context()) }, []string{"/users/operator"}},
		{"listing", func(store *Store) error {
			store.settings.Key.Object = "rel*"
			keys, err := store.Keys(t.Context())
			if err != nil || len(keys) != 1 {
				t.Errorf("%d keys, %v", len(keys), err)
			}
			all, err := store.Certificates(t.Context())
			if len(all) != 1 {
				t.Errorf("%d certificates", len(all))
			}
			return err
		}, []string{"/keys/rel*", "/keys/release/cert"}},
	} {
		servers[0].ResetRequests()
		settings := *s
		if err := c.do(open(t, &settings)); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		if got := paths("", servers...); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// TestNewCertificate reads a certificate that another process has stored, in a store that is open for long.
func TestNewCertificate(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	b := warnTo(io.Discard)
	store := openWith(t, b, s)
	if leaf, err := store.Leaf(t.Context()); leaf != nil || err != nil {
		t.Errorf("%v, %v", leaf, err)
	}
	cert := selfSigned(t, private)
	servers[0].SetKeyCertificate("release", certs.Encode([]*x509.Certificate{cert}))
	if leaf, err := store.Leaf(t.Context()); leaf != nil || err != nil {
		t.Errorf("within the age: %v, %v", leaf, err)
	}
	store.mu.Lock()
	old := store.chains["release"]
	old.at = old.at.Add(-b.certificateAge)
	store.chains["release"] = old
	store.mu.Unlock()
	if leaf, err := store.Leaf(t.Context()); err != nil || leaf == nil || !leaf.Equal(cert) {
		t.Errorf("after it: %v, %v", leaf, err)
	}
	if New(io.Discard).certificateAge > time.Minute {
		t.Error("a process that runs for long signs with an old certificate")
	}
}

// TestShared uses a store and its keys from many goroutines, as a service does. The race detector watches.
func TestShared(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 2)
	private := ecKey(t, servers[0])
	chain := []*x509.Certificate{selfSigned(t, private)}
	s.Key.Object = "rel*"
	store := open(t, s)
	listed, err := store.Keys(t.Context())
	if err != nil || len(listed) != 1 {
		t.Fatalf("%d keys, %v", len(listed), err)
	}
	ctx, k := t.Context(), listed[0]
	var all sync.WaitGroup
	for range 4 {
		for _, do := range []func() error{
			func() error { _, err := k.SignMessage(ctx, []byte("payload"), crypto.SHA256); return err },
			func() error { _, err := k.Info(ctx); return err },
			func() error { k.Public(); return nil },
			func() error { _, err := store.Keys(ctx); return err },
			func() error { _, err := store.Certificates(ctx); return err },
			func() error { _, err := store.chain(ctx, "release", store.change); return err },
			func() error { return store.Login(ctx) },
			func() error { store.forget("release"); store.remember("release", chain); return nil },
		} {
			all.Go(func() {
				if err := do(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	if k.Public() == nil {
		t.Error("the public half of the listed key is not known")
	}
}

// TestFind finds keys by their ID, by a prefix and all, and reports whether one exists.
func TestFind(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	for _, id := range []string{"release", "release-2", "other"} {
		servers[0].AddKey(id, newECKey(t))
	}
	for name, want := range map[string][]string{"release": {"release"}, "rel*": {"release", "release-2"},
		"": {"other", "release", "release-2"}, "missing": nil, "missing*": nil} {
		settings := *s
		settings.Key.Object = name
		keys, err := open(t, &settings).Keys(t.Context())
		var got []string
		for _, k := range keys {
			info, err := k.Info(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, info.Label)
		}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	store := open(t, s)
	for name, want := range map[string]bool{"release": true, "missing": false, "": false} {
		if taken, err := store.Taken(t.Context(), config.URI{Object: name}); err != nil || taken != want {
			t.Errorf("%q is taken: %v, %v", name, taken, err)
		}
	}
	servers[0].Inject("", "/keys", 0, nethsmtest.RespondWith(200, typeJSON, `[{"id":"../config"}]`))
	s.Key.Object = ""
	if _, err := open(t, s).Keys(t.Context()); !failure.Is(err, failure.Internal) ||
		!strings.Contains(err.Error(), "invalid key ID") {
		t.Error(err)
	}
}

// TestDiscard fails if the key exists: an interrupted Generate leaves nothing behind, so it is the key of somebody
// else.
func TestDiscard(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	store := open(t, s)
	if err := store.Discard(t.Context()); err != nil {
		t.Error(err)
	}
	ecKey(t, servers[0])
	if err := store.Discard(t.Context()); !failure.Is(err, failure.Conflict) ||
		!slices.Equal(servers[0].Keys(""), []string{"release"}) {
		t.Error(err)
	}
	if len(paths(http.MethodDelete, servers...)) > 0 {
		t.Error("it was deleted")
	}
}

// TestTokens describes the NetHSM if an instance is operational.
func TestTokens(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 2)
	servers[0].SetState(nethsmtest.Locked)
	tokens, err := warnTo(io.Discard).Tokens(t.Context(), s)
	if err != nil || len(tokens) != 1 || tokens[0].URI != "nethsm:" ||
		tokens[0].Label != strings.Join(s.NetHSM.Instances, " ") {
		t.Errorf("%+v, %v", tokens, err)
	}
	if described := open(t, s).Describe(); described != tokens[0] {
		t.Errorf("%+v", described)
	}
	servers[1].SetState(nethsmtest.Locked)
	if _, err := warnTo(io.Discard).Tokens(t.Context(), s); !failure.Is(err, failure.Unavailable) {
		t.Error(err)
	}
}

// TestUnsupported fails with Unsupported for what a NetHSM does not have, without a request.
func TestUnsupported(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	ctx := t.Context()
	b := warnTo(io.Discard)
	opened, err := b.Open(ctx, s)
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	_, wrapping := opened.WrappingKey(ctx, config.URI{})
	_, wrapped := opened.Wrap(ctx, nil, config.URI{})
	_, mac := opened.Authenticate(ctx, nil, "", key.WrappingKey{})
	_, derived := open(t, s).key("release").ECDH(ctx, &ecdh.PublicKey{})
	_, wrappable := b.Generate(ctx, s, key.Request{Spec: signSpec, Usage: key.Sign, Label: "x", Wrappable: true})
	_, curve := b.Generate(ctx, s, key.Request{Spec: signSpec, Usage: key.Decrypt, Label: "x"})
	for what, err := range map[string]error{
		"WrappingKey": wrapping, "Wrap": wrapped, "Authenticate": mac, "ECDH": derived, "a wrappable key": wrappable,
		"an EC key to decrypt": curve,
		"Unwrap":               opened.Unwrap(ctx, key.Wrapped{}, key.Sign, "", nil, nil),
		"Verify":               opened.Verify(ctx, nil, key.MAC{}, "", key.WrappingKey{}),
		"ImportWrapping":       b.ImportWrapping(ctx, s, "", key.WrappingKey{}, nil),
	} {
		if !failure.Is(err, failure.Unsupported) || failure.From(err).Hint == "" {
			t.Errorf("%s: %v", what, err)
		}
	}
	if n := len(servers[0].Requests()); n > 0 {
		t.Errorf("%d requests", n)
	}
}

// TestBackendOfKeystore reaches NetHSM keys through a keystore.
func TestBackendOfKeystore(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	b := warnTo(io.Discard)
	ks := keystore.New(nil, b)
	reference := ks.Reference(s)
	if got, err := reference.Backend(); err != nil || got != b {
		t.Errorf("%v, %v", got, err)
	}
	if !ks.Matches(s.Key, key.Token{URI: "nethsm:"}) || ks.Matches(s.Key, key.Token{URI: "pkcs11:token=signing"}) {
		t.Error("the backend matches tokens of another")
	}
	err := reference.WithKey(t.Context(), func(_ keystore.Store, k keystore.Key) error {
		if !private.PublicKey.Equal(k.Public()) {
			t.Error("it is another key")
		}
		return nil
	})
	if err != nil || ks.Close() != nil {
		t.Error(err)
	}
	s.NetHSM.CAFile = "/does/not/exist.pem"
	s.NetHSM.Fingerprints = nil
	_, opened := b.Open(t.Context(), s)
	_, listed := b.Tokens(t.Context(), s)
	_, generated := b.Generate(t.Context(), s, key.Request{})
	_, status := b.Status(t.Context(), s)
	for what, err := range map[string]error{"Open": opened, "Tokens": listed, "Generate": generated, "Status": status} {
		if !failure.Is(err, failure.NotFound) || !strings.HasPrefix(err.Error(), "cannot read /does/not/exist.pem: ") {
			t.Errorf("%s: %v", what, err)
		}
	}
}
