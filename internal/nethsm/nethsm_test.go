package nethsm

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1" //nolint:gosec // for OAEP
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

const (
	adminPassphrase    = "admin passphrase"
	operatorPassphrase = "operator passphrase"
)

// start starts a cluster of one or more instances and returns the settings for a key on it.
func start(t *testing.T, instances int) ([]*nethsmtest.Server, *config.Settings) {
	t.Helper()
	first := nethsmtest.Start(t)
	first.Provision(adminPassphrase, operatorPassphrase)
	servers := []*nethsmtest.Server{first}
	for range instances - 1 {
		servers = append(servers, first.Instance())
	}
	t.Setenv("ADMIN_PASSPHRASE", adminPassphrase)
	t.Setenv("OPERATOR_PASSPHRASE", operatorPassphrase)
	s := &config.Settings{
		Key: config.URI{NetHSM: true, Object: "release"}, PINSource: "env:OPERATOR_PASSPHRASE", Timeout: 10 * time.Second,
		NetHSM: &config.NetHSM{User: nethsmtest.OperatorUser, Administrator: nethsmtest.AdminUser,
			AdministratorPINSource: "env:ADMIN_PASSPHRASE"},
	}
	for _, server := range servers {
		s.NetHSM.Instances = append(s.NetHSM.Instances, "https://"+server.Address)
		s.NetHSM.Fingerprints = append(s.NetHSM.Fingerprints, sha256.Sum256(server.Certificate().Raw))
	}
	return servers, s
}

func open(t *testing.T, s *config.Settings) *Store {
	t.Helper()
	store, err := Open(s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { store.Close() })
	return store
}

// ecKey puts a key on the NetHSM without a request.
func ecKey(t *testing.T, server *nethsmtest.Server, tags ...string) *ecdsa.PrivateKey {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server.AddKey("release", private, tags...)
	return private
}

func paths(server *nethsmtest.Server, method string) (found []string) {
	for _, r := range server.Requests() {
		if r.Method == method {
			found = append(found, r.Path)
		}
	}
	return found
}

// TestFailover stops and restarts instances under 500 signatures of many goroutines: none is lost, none is wrong, and
// each instance has made some.
func TestFailover(t *testing.T) {
	servers, s := start(t, 3)
	private := ecKey(t, servers[0])
	k, err := open(t, s).Key(t.Context(), &private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	const workers, each = 10, 50
	var made atomic.Int32
	stop := make(chan struct{})
	var chaos, signers sync.WaitGroup
	chaos.Go(func() { // one instance is always there
		for i := 0; ; i++ {
			server := servers[i%len(servers)]
			server.Stop()
			for before := made.Load(); made.Load() < before+20; {
				select {
				case <-stop:
					server.Restart()
					return
				case <-time.After(time.Millisecond):
				}
			}
			server.Restart()
		}
	})
	for worker := range workers {
		signers.Go(func() {
			for i := range each {
				message := fmt.Appendf(nil, "payload %d of worker %d", i, worker)
				signature, err := k.SignMessage(t.Context(), message, crypto.SHA256)
				digest := sha256.Sum256(message)
				if err != nil || !ecdsa.VerifyASN1(&private.PublicKey, digest[:], signature) {
					t.Errorf("signature %d of worker %d: %v", i, worker, err)
				}
				made.Add(1)
			}
		})
	}
	signers.Wait()
	close(stop)
	chaos.Wait()
	for i, server := range servers {
		n := len(paths(server, http.MethodPost))
		t.Logf("instance %d had %d requests", i, n)
		if n == 0 {
			t.Errorf("instance %d was never asked", i)
		}
	}
}

// TestAllAway waits out a moment in which no instance is there, and gives up within the timeout when they stay away.
func TestAllAway(t *testing.T) {
	servers, s := start(t, 2)
	private := ecKey(t, servers[0])
	k, _ := open(t, s).Key(t.Context(), &private.PublicKey)
	for _, server := range servers {
		server.Stop()
	}
	back := time.AfterFunc(300*time.Millisecond, servers[1].Restart)
	defer back.Stop()
	if _, err := k.SignMessage(t.Context(), []byte("payload"), crypto.SHA256); err != nil {
		t.Error(err)
	}
	servers[1].Stop()
	s.Timeout = 500 * time.Millisecond
	began := time.Now()
	_, err := k.SignMessage(t.Context(), []byte("payload"), crypto.SHA256)
	if !failure.Is(err, failure.Timeout) || time.Since(began) > 3*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
}

// TestHanging signs with the second instance when the first takes the request and never answers.
func TestHanging(t *testing.T) {
	servers, s := start(t, 2)
	s.Timeout = 2 * time.Second
	private := ecKey(t, servers[0])
	k, _ := open(t, s).Key(t.Context(), &private.PublicKey)
	servers[0].Inject(http.MethodPost, "/keys/*/sign", 0, nethsmtest.Hang())
	if _, err := k.SignMessage(t.Context(), []byte("payload"), crypto.SHA256); err != nil {
		t.Error(err)
	}
}

// TestNotRepeated cuts the connection after a request had its effect: it is found to be done, and not sent again.
func TestNotRepeated(t *testing.T) {
	servers, s := start(t, 2)
	fault := servers[0].Inject(http.MethodPost, "/keys/generate", 1, nethsmtest.DropAfter())
	info, err := generate(context.Background(), s, key.Request{Spec: key.Specs[3], Usage: key.Sign, Label: "release"})
	if err != nil || fault.Hits() != 1 {
		t.Fatalf("%d hits: %v", fault.Hits(), err)
	}
	if n := len(paths(servers[0], http.MethodPost)) + len(paths(servers[1], http.MethodPost)); n != 1 ||
		info.Public == nil {
		t.Errorf("the key was asked for %d times", n)
	}

	store := open(t, s)
	k, err := store.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	chain := []*x509.Certificate{selfSigned(t, keystore.Signer(t.Context(), k))}
	fault = servers[0].Inject(http.MethodPut, "/keys/*/cert", 1, nethsmtest.DropAfter())
	if n, err := store.Import(t.Context(), k, chain); err != nil || n != 1 || fault.Hits() != 1 {
		t.Fatalf("imported %d, %d hits: %v", n, fault.Hits(), err)
	}
	if n := len(paths(servers[0], http.MethodPut)) + len(paths(servers[1], http.MethodPut)); n != 1 {
		t.Errorf("the certificate was sent %d times", n)
	}

	// Cut before it has its effect, it is sent again.
	fault = servers[0].Inject(http.MethodPost, "/keys/generate", 1, nethsmtest.Drop())
	if _, err := generate(context.Background(), s,
		key.Request{Spec: key.Specs[3], Usage: key.Sign, Label: "second"}); err != nil || fault.Hits() != 1 {
		t.Errorf("%d hits: %v", fault.Hits(), err)
	}
	// So is one that another instance took in the meantime: the second answer, that there is one already, is no failure.
	fault = servers[1].Inject(http.MethodDelete, "/keys/*", 1, nethsmtest.DropAfter())
	if err := store.Delete(t.Context(), k, nil); err != nil || fault.Hits() != 1 {
		t.Errorf("%d hits: %v", fault.Hits(), err)
	}
	if keys := servers[0].Keys(""); !slices.Equal(keys, []string{"second"}) {
		t.Errorf("keys are %v", keys)
	}
}

// TestWrongPassphrase counts how often a wrong passphrase is sent: once, whoever asks how often, and to one instance.
func TestWrongPassphrase(t *testing.T) {
	servers, s := start(t, 2)
	private := ecKey(t, servers[0])
	t.Setenv("OPERATOR_PASSPHRASE", "not this one")
	store := open(t, s)
	k, _ := store.Key(t.Context(), &private.PublicKey)
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			if _, err := k.SignMessage(t.Context(), []byte("payload"), crypto.SHA256); !failure.Is(err, failure.Denied) ||
				!strings.Contains(err.Error(), "user operator") {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if err := store.Login(t.Context()); !failure.Is(err, failure.Denied) {
		t.Error(err)
	}
	if n := len(servers[0].Requests()) + len(servers[1].Requests()); n != 1 {
		t.Errorf("the passphrase was sent %d times", n)
	}
}

// TestThrottled waits until the NetHSM takes logins again, which somebody else's wrong passphrases have slowed down.
func TestThrottled(t *testing.T) {
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	fault := servers[0].Inject(http.MethodPost, "/keys/*/sign", 2, nethsmtest.Respond(http.StatusTooManyRequests))
	k, _ := open(t, s).Key(t.Context(), &private.PublicKey)
	if _, err := k.SignMessage(t.Context(), nil, crypto.SHA256); err != nil || fault.Hits() != 2 {
		t.Errorf("%d hits: %v", fault.Hits(), err)
	}
}

// TestRequests counts requests: nothing is listed to find a key, and a certificate brings its issuers.
func TestRequests(t *testing.T) {
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	servers[0].SetKeyCertificate("release", certs.Encode([]*x509.Certificate{selfSigned(t, private)}))
	for _, c := range []struct {
		what string
		do   func(*Store) error
		want []string
	}{
		{"with a chain file", func(store *Store) error {
			k, err := store.Key(t.Context(), &private.PublicKey)
			if err != nil {
				return err
			}
			_, err = k.SignMessage(t.Context(), nil, crypto.SHA256)
			return err
		}, []string{"/keys/release/sign"}},
		{"without", func(store *Store) error {
			leaf, err := store.Leaf(t.Context())
			if err != nil {
				return err
			}
			if _, err := store.Issuers(t.Context(), leaf); err != nil {
				return err
			}
			k, err := store.Key(t.Context(), leaf.PublicKey)
			if err != nil {
				return err
			}
			_, err = k.SignMessage(t.Context(), nil, crypto.SHA256)
			return err
		}, []string{"/keys/release/cert", "/keys/release/sign"}},
		{"describing", func(store *Store) error { _, err := store.Public(t.Context()); return err }, []string{"/keys/release"}},
	} {
		servers[0].ResetRequests()
		if err := c.do(open(t, s)); err != nil {
			t.Errorf("%s: %v", c.what, err)
		}
		var got []string
		for _, r := range servers[0].Requests() {
			got = append(got, r.Path)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", c.what, got, c.want)
		}
	}
}

// TestErrors has each thing go wrong, and looks for its own words, its kind and something to do.
func TestErrors(t *testing.T) {
	sign := func(store *Store) error {
		k, err := store.Key(t.Context(), nil)
		if err != nil {
			return err
		}
		_, err = k.SignMessage(t.Context(), nil, crypto.SHA256)
		return err
	}
	state := func(to nethsmtest.State) func(*nethsmtest.Server, *config.Settings) {
		return func(server *nethsmtest.Server, _ *config.Settings) { server.SetState(to) }
	}
	inject := func(effect nethsmtest.Effect) func(*nethsmtest.Server, *config.Settings) {
		return func(server *nethsmtest.Server, _ *config.Settings) { server.Inject("", "/keys/*/sign", 0, effect) }
	}
	for name, c := range map[string]struct {
		arrange func(*nethsmtest.Server, *config.Settings)
		do      func(*Store) error
		kind    failure.Kind
		words   string
	}{
		"locked":        {state(nethsmtest.Locked), sign, failure.Denied, "is Locked"},
		"failed":        {state(nethsmtest.Failed), sign, failure.Internal, "state Failed"},
		"unprovisioned": {state(nethsmtest.Unprovisioned), sign, failure.Denied, "is Unprovisioned"},
		"bad request":   {inject(nethsmtest.Respond(400)), sign, failure.Invalid, "(400)"},
		"forbidden":     {inject(nethsmtest.Respond(403)), sign, failure.Denied, "user operator may not do that (403)"},
		"tag": {func(server *nethsmtest.Server, _ *config.Settings) { ecKey(t, server, "berlin") }, sign,
			failure.Denied, "(403)"},
		"no key": {func(_ *nethsmtest.Server, s *config.Settings) { s.Key.Object = "other" }, sign, failure.Invalid,
			"there is no such key"},
		"conflict":     {inject(nethsmtest.Respond(409)), sign, failure.Invalid, "(409)"},
		"precondition": {inject(nethsmtest.Respond(412)), sign, failure.Denied, "precondition"},
		"throttled":    {inject(nethsmtest.Respond(429)), sign, failure.Throttled, "no more logins for now (429)"},
		"server error": {inject(nethsmtest.Respond(503)), sign, failure.Internal, "503"},
		"redirect":     {inject(nethsmtest.Respond(302)), sign, failure.Internal, "302"},
		"malformed":    {inject(nethsmtest.Malformed()), sign, failure.Internal, "can't be read"},
		"empty": {inject(nethsmtest.RespondWith(200, "application/json", `{}`)), sign, failure.Internal,
			"no signature"},
		"huge": {inject(nethsmtest.Huge(64 << 20)), sign, failure.Internal, "more than"},
		"no host": {func(_ *nethsmtest.Server, s *config.Settings) {
			s.NetHSM.Instances = []string{"https://no-such..host.invalid"} // refused without asking a name server
		}, sign, failure.Invalid, "no host"},
		"no user": {func(_ *nethsmtest.Server, s *config.Settings) { s.NetHSM.User, s.NetHSM.Administrator = "", "" },
			sign, failure.Denied, "no user"},
		"no passphrase": {func(_ *nethsmtest.Server, s *config.Settings) { s.PINSource = "" }, sign, failure.Denied,
			"no passphrase"},
		"fingerprint": {func(_ *nethsmtest.Server, s *config.Settings) { s.NetHSM.Fingerprints = [][32]byte{{1}} }, sign,
			failure.Denied, "none of those in fingerprints"},
		"unknown issuer": {func(_ *nethsmtest.Server, s *config.Settings) { s.NetHSM.Fingerprints = nil }, sign,
			failure.Denied,
			"does not verify"},
		"no administrator": {func(_ *nethsmtest.Server, s *config.Settings) { s.NetHSM.Administrator = "" },
			func(store *Store) error { return store.Delete(t.Context(), &Key{store: store, id: "release"}, nil) }, failure.Denied,
			"needs an administrator"},
		"operator as administrator": {func(_ *nethsmtest.Server, s *config.Settings) {
			s.NetHSM.Administrator, s.NetHSM.AdministratorPINSource = "operator", "env:OPERATOR_PASSPHRASE"
		}, func(store *Store) error { return store.Delete(t.Context(), &Key{store: store, id: "release"}, nil) }, failure.Denied, "(403)"},
		"wrapping": {func(*nethsmtest.Server, *config.Settings) {},
			func(store *Store) error { _, err := store.Wrap(t.Context(), nil, config.URI{}); return err },
			failure.Invalid, "wraps no keys"},
	} {
		t.Run(name, func(t *testing.T) {
			servers, s := start(t, 1)
			s.Timeout = 3 * time.Second
			ecKey(t, servers[0])
			c.arrange(servers[0], s)
			err := c.do(open(t, s))
			if !failure.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
				t.Fatalf("%v, want %q", err, c.words)
			}
			if failure.From(err).Hint == "" {
				t.Errorf("%v has no hint", err)
			}
			if strings.Contains(fmt.Sprint(err, failure.From(err).Hint), operatorPassphrase) {
				t.Errorf("%v shows the passphrase", err)
			}
		})
	}
}

// TestTLS trusts the CA of a file, and with insecure anyone.
func TestTLS(t *testing.T) {
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	s.NetHSM.Fingerprints = nil
	for _, trust := range []func(){
		func() { s.NetHSM.CAFile = servers[0].CAFile() },
		func() { s.NetHSM.CAFile, s.NetHSM.Insecure = "", true },
	} {
		trust()
		k, _ := open(t, s).Key(t.Context(), &private.PublicKey)
		if _, err := k.SignMessage(t.Context(), nil, crypto.SHA256); err != nil {
			t.Error(err)
		}
	}
	s.NetHSM.Insecure, s.NetHSM.CAFile = false, filepath.Join(t.TempDir(), "none.pem")
	if _, err := Open(s); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
}

// TestDecrypt opens OAEP with each hash and PKCS #1 v1.5, and says what it can't.
func TestDecrypt(t *testing.T) {
	servers, s := start(t, 1)
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	servers[0].AddKey("release", private)
	k, err := open(t, s).Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA224, crypto.SHA256, crypto.SHA384, crypto.SHA512} {
		sealed, err := rsa.EncryptOAEP(hash.New(), rand.Reader, &private.PublicKey, []byte("layer key"), nil)
		if err != nil {
			t.Fatal(err)
		}
		if opened, err := k.Decrypt(t.Context(), sealed, &rsa.OAEPOptions{Hash: hash}); err != nil || string(opened) != "layer key" {
			t.Errorf("%v: %q, %v", hash, opened, err)
		}
	}
	sealed, err := rsa.EncryptPKCS1v15(rand.Reader, &private.PublicKey, []byte("layer key")) //nolint:staticcheck // CMS in images has it
	if err != nil {
		t.Fatal(err)
	}
	if opened, err := k.Decrypt(t.Context(), sealed, &rsa.PKCS1v15DecryptOptions{}); err != nil || string(opened) != "layer key" { //nolint:staticcheck // the same
		t.Errorf("PKCS #1 v1.5: %q, %v", opened, err)
	}
	sealed[255] ^= 1
	if opened, err := k.Decrypt(t.Context(), sealed, &rsa.PKCS1v15DecryptOptions{SessionKeyLen: 32}); err != nil || len(opened) != 32 { //nolint:staticcheck // the same
		t.Errorf("PKCS #1 v1.5, damaged: %d bytes, %v", len(opened), err)
	}
	if _, err := k.Decrypt(t.Context(), sealed, &rsa.OAEPOptions{Hash: crypto.SHA1, Label: []byte("x")}); !failure.Is(err,
		failure.Invalid) {
		t.Error(err)
	}
	if _, err := k.ECDH(t.Context(), nil); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
	_ = sha1.New // linked in
}

// TestGenerate makes keys that do one thing, and refuses what a NetHSM can't do.
func TestGenerate(t *testing.T) {
	servers, s := start(t, 1)
	ctx := context.Background()
	info, err := generate(ctx, s, key.Request{Spec: key.Specs[0], Usage: key.Decrypt, Label: "recipient"})
	if err != nil || *info.Sign || !*info.Decrypt || *info.Extractable || info.URI != "nethsm:recipient" {
		t.Errorf("%+v, %v", info, err)
	}
	for _, r := range []key.Request{
		{Spec: key.Specs[3], Usage: key.Decrypt, Label: "ec"}, {Spec: key.Specs[3], Usage: key.Sign, Label: "recipient"},
		{Spec: key.Specs[3], Usage: key.Sign, Label: "no/path"},
		{Spec: key.Specs[3], Usage: key.Sign, Label: "x", Wrappable: true}, {Spec: key.Specs[3], Usage: key.Sign},
	} {
		if _, err := generate(ctx, s, r); !failure.Is(err, failure.Invalid) {
			t.Errorf("%q: %v", r.Label, err)
		}
	}
	if keys := servers[0].Keys(""); !slices.Equal(keys, []string{"recipient"}) {
		t.Errorf("there are %v", keys)
	}
	s.Key.Object = "rec*"
	if keys, err := open(t, s).Keys(ctx); err != nil || len(keys) != 1 {
		t.Errorf("%v, %v", keys, err)
	}
}

// TestModuleConfig writes what Nitrokey's module reads.
func TestModuleConfig(t *testing.T) {
	s := &config.Settings{Timeout: 30 * time.Second, NetHSM: &config.NetHSM{
		Instances: []string{"https://a.example.com", "https://b.example.com:8443"}, User: "signing~operator",
		Fingerprints: [][32]byte{sha256.Sum256(nil)},
	}}
	conf, err := ModuleConfig(s, "signing", os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"url: https://a.example.com/api/v1", "url: https://b.example.com:8443/api/v1", "username: signing~operator",
		"label: signing",
		hex.EncodeToString(s.NetHSM.Fingerprints[0][:]), "timeout_seconds: 6", "log_file: /dev/null",
		"\ndisable_thread_pool: true\n", "\ndisable_threads: false\n",
	} {
		if !bytes.Contains(conf, []byte(want)) {
			t.Errorf("%s is missing in\n%s", want, conf)
		}
	}
}

func selfSigned(t *testing.T, signer crypto.Signer) *x509.Certificate {
	t.Helper()
	subject, err := certs.ParseSubject("CN=release,O=Example,C=CH,ST=Zurich")
	if err != nil {
		t.Fatal(err)
	}
	der, err := certs.SelfSign(signer, subject, 30)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// answerCost is what reading an answer, as each kind that there is, may allocate.
var answerCost = boundtest.Budget{Bytes: 128 << 10, BytesPerByte: 512}

// FuzzAnswers holds that no answer crashes, and that what is taken from one is whole.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{
		"", "{}", "null", `{"state":"Locked"}`, `[{"id":"release"},{"id":"../x"}]`, `{"message":"no"}`,
		`{"type":"EC_P256","public":{"data":"BA=="}}`, `{"type":"RSA","public":{"modulus":"AQAB","publicExponent":"AQAB"}}`,
		`{"type":"Generic"}`,
		"-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n", "0\x82",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		answerCost.Check(t, len(body), func() {
			_ = said(&answer{http.StatusForbidden, body})
			_, _ = parseState(body)
			_, _ = parseKeyList(body)
			_, _ = parseChain(body)
			_, _ = parseKey(body)
		})
		_ = said(&answer{http.StatusForbidden, body})
		if state, err := parseState(body); err == nil && state == "" {
			t.Error("a state without a name")
		}
		if ids, err := parseKeyList(body); err == nil {
			for _, id := range ids {
				if id == "" || strings.ContainsAny(id, "/?#%*") {
					t.Errorf("the ID %q", id)
				}
			}
		}
		if d, err := parseKey(body); err == nil {
			if public, err := d.public(); err == nil {
				if _, err := x509.MarshalPKIXPublicKey(public); err != nil {
					t.Errorf("a key that can't be written: %v", err)
				}
			}
		}
		if chain, err := parseChain(body); err == nil && slices.Contains(chain, nil) {
			t.Error(errors.New("a certificate that is none"))
		}
	})
}
