package nethsm

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// TestFailover stops and restarts instances during 500 signatures of many goroutines: none is lost, none is wrong, and
// each instance has made some.
func TestFailover(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 3)
	private := ecKey(t, servers[0])
	k, err := open(t, s).Key(t.Context(), &private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	const workers, each = 10, 50
	var made atomic.Int32
	stop := make(chan struct{})
	var outages, signers sync.WaitGroup
	outages.Go(func() { // of one instance at a time
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
	outages.Wait()
	for i, server := range servers {
		if len(paths(http.MethodPost, server)) == 0 {
			t.Errorf("instance %d got no request", i)
		}
	}
}

// TestOutage succeeds once an instance is back, and fails with Unavailable after a number of rounds when none comes
// back.
func TestOutage(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 2)
	private := ecKey(t, servers[0])
	store := open(t, s)
	for _, server := range servers {
		server.Stop()
	}
	if err := sign(t.Context(), store, &private.PublicKey); !failure.Is(err, failure.Unavailable) ||
		!strings.Contains(err.Error(), "failed on all 2 instances") {
		t.Error(err)
	}
	busy := servers[1].Inject("", "", 2, nethsmtest.Respond(http.StatusServiceUnavailable))
	servers[1].Restart()
	if err := sign(t.Context(), store, &private.PublicKey); err != nil || busy.Hits() != 2 {
		t.Errorf("%d hits: %v", busy.Hits(), err)
	}
}

// TestHanging uses the second instance when the first accepts the request and does not respond: to sign, and to
// generate a key.
func TestHanging(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 2)
	private := ecKey(t, servers[0])
	hang := servers[0].Inject(http.MethodPost, "", 0, nethsmtest.Hang())
	b := expireAt(hang)
	if err := sign(t.Context(), openWith(t, b, s), &private.PublicKey); err != nil {
		t.Error(err)
	}
	if _, err := b.Generate(t.Context(), s, key.Request{Spec: signSpec, Usage: key.Sign, Label: "other"}); err != nil {
		t.Error(err)
	}
	if posted := paths(http.MethodPost, servers[1]); hang.Hits() != 2 ||
		!slices.Equal(posted, []string{"/keys/release/sign", "/keys/generate"}) {
		t.Errorf("the first instance got %d requests, the second %v", hang.Hits(), posted)
	}
}

// TestShare gives each instance its part of the timeout, so that one that hangs leaves time for the others.
func TestShare(t *testing.T) {
	t.Parallel()
	_, s := start(t, 3)
	s.Timeout = 30 * time.Minute
	b := warnTo(io.Discard)
	var limits []time.Duration
	b.withTimeout = func(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
		limits = append(limits, limit)
		return context.WithTimeout(ctx, limit)
	}
	err := openWith(t, b, s).Login(t.Context())
	if err != nil || !slices.Equal(limits, []time.Duration{10 * time.Minute}) {
		t.Errorf("%v, %v", limits, err)
	}
}

// TestTimeout fails with Timeout when no instance responds in time, or when the deadline of the caller has passed. An
// interrupt is reported as such. When the request was sent, the failure says that the key may exist.
func TestTimeout(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	hang := servers[0].Inject(http.MethodPost, "", 0, nethsmtest.Hang())
	request := key.Request{Spec: signSpec, Usage: key.Sign, Label: "release"}
	const uncertain = "; the key may exist: see 'notation-hsm key list --token nethsm:'"
	_, err := expireAt(hang).Generate(t.Context(), s, request)
	if !failure.Is(err, failure.Timeout) || !strings.Contains(err.Error(), "did not respond in time"+uncertain) ||
		hang.Hits() != rounds {
		t.Errorf("%d hits: %v", hang.Hits(), err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	before := hang.Hits()
	go func() {
		waitFor(t, func() bool { return hang.Hits() > before })
		cancel()
	}()
	_, err = generate(ctx, s, request)
	if err == nil || err.Error() != "interrupted while generating key nethsm:release"+uncertain {
		t.Error(err)
	}

	servers[0].ResetRequests()
	expired, cancelExpired := context.WithTimeout(t.Context(), 0)
	defer cancelExpired()
	_, err = generate(expired, s, request)
	if !failure.Is(err, failure.Timeout) || !strings.HasSuffix(err.Error(), "deadline of the caller has passed") ||
		len(servers[0].Requests()) > 0 {
		t.Error(err)
	}
}

// TestLostResponses cuts the connection after a request took effect: this is found out, and the request is not
// repeated.
func TestLostResponses(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 2)
	fault := servers[0].Inject(http.MethodPost, "/keys/generate", 1, nethsmtest.DropAfter())
	info, err := generate(t.Context(), s, key.Request{Spec: signSpec, Usage: key.Sign, Label: "release"})
	if err != nil || fault.Hits() != 1 {
		t.Fatalf("%d hits: %v", fault.Hits(), err)
	}
	if n := len(paths(http.MethodPost, servers...)); n != 1 || info.Public == nil {
		t.Errorf("the key was requested %d times", n)
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
	if n := len(paths(http.MethodPut, servers...)); n != 1 {
		t.Errorf("the certificate was sent %d times", n)
	}

	// A request that was cut before it took effect is repeated.
	fault = servers[0].Inject(http.MethodPost, "/keys/generate", 1, nethsmtest.Drop())
	if _, err := generate(t.Context(), s, key.Request{Spec: signSpec, Usage: key.Sign, Label: "second"}); err != nil ||
		fault.Hits() != 1 {
		t.Errorf("%d hits: %v", fault.Hits(), err)
	}
	// Deleting is repeated; that the key does not exist any more is no failure.
	fault = servers[1].Inject(http.MethodDelete, "/keys/*", 1, nethsmtest.DropAfter())
	if err := store.Delete(t.Context(), k, nil); err != nil || fault.Hits() != 1 {
		t.Errorf("%d hits: %v", fault.Hits(), err)
	}
	if keys := servers[0].Keys(""); !slices.Equal(keys, []string{"second"}) {
		t.Errorf("keys are %v", keys)
	}
}

// TestLateEffect takes the error of a repeated request for success when an earlier try took effect after all.
func TestLateEffect(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].Inject(http.MethodPost, "/keys/generate", 1, nethsmtest.DropAfter())
	// Before the request the key does not exist, and right after the lost response it does not yet.
	late := servers[0].Inject(http.MethodGet, "/keys/*", 2, nethsmtest.Respond(http.StatusNotFound))
	if _, err := generate(t.Context(), s, key.Request{Spec: signSpec, Usage: key.Sign, Label: "release"}); err != nil ||
		late.Hits() != 2 {
		t.Errorf("%d hits: %v", late.Hits(), err)
	}
	if n := len(paths(http.MethodPost, servers...)); n != 2 {
		t.Errorf("%d requests", n)
	}
}

// TestUncertain says that a key may exist when it cannot be found out whether it was generated.
func TestUncertain(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	servers[0].Inject(http.MethodPost, "/keys/generate", 0, nethsmtest.DropAfter())
	before := servers[0].Inject(http.MethodGet, "/keys/*", 1, nethsmtest.Respond(http.StatusNotFound))
	servers[0].Inject(http.MethodGet, "/keys/*", 0, nethsmtest.Drop())
	_, err := generate(t.Context(), s, key.Request{Spec: signSpec, Usage: key.Sign, Label: "release"})
	if !failure.Is(err, failure.Unavailable) || before.Hits() != 1 ||
		!strings.Contains(err.Error(), "the key may exist: see 'notation-hsm key list --token nethsm:'") {
		t.Error(err)
	}
}

// TestThrottled repeats a request while the NetHSM accepts no logins. Such a request had no effect, so no request asks
// for one.
func TestThrottled(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	busy := servers[0].Inject(http.MethodPost, "/keys/generate", 0, nethsmtest.Respond(http.StatusTooManyRequests))
	_, err := generate(t.Context(), s, key.Request{Spec: signSpec, Usage: key.Sign, Label: "other"})
	if !failure.Is(err, failure.Throttled) || busy.Hits() != rounds || strings.Contains(err.Error(), "may exist") ||
		len(paths(http.MethodGet, servers...)) != 1 {
		t.Errorf("%d hits: %v", busy.Hits(), err)
	}
	fault := servers[0].Inject(http.MethodPost, "/keys/*/sign", 2, nethsmtest.Respond(http.StatusTooManyRequests))
	if err := sign(t.Context(), open(t, s), &private.PublicKey); err != nil || fault.Hits() != 2 {
		t.Errorf("%d hits: %v", fault.Hits(), err)
	}
}

// TestRedirect does not follow a redirect: the credentials go to the configured instances alone.
func TestRedirect(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	elsewhere := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { requests.Add(1) }))
	defer elsewhere.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		instance := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL+r.URL.Path, status)
		}))
		_, s := start(t, 1)
		s.NetHSM.Instances = []string{instance.URL}
		s.NetHSM.Fingerprints = [][32]byte{sha256.Sum256(instance.Certificate().Raw),
			sha256.Sum256(elsewhere.Certificate().Raw)}
		store := open(t, s)
		for what, err := range map[string]error{"read": store.Login(t.Context()), "sign": sign(t.Context(), store,
			&newECKey(t).PublicKey)} {
			if !failure.Is(err, failure.Internal) || !strings.Contains(err.Error(), fmt.Sprint(status)) {
				t.Errorf("%s: %v", what, err)
			}
		}
		instance.Close()
	}
	if requests.Load() > 0 {
		t.Errorf("redirects were followed %d times", requests.Load())
	}
}

// TestNoProxy sends nothing through a proxy of the environment.
func TestNoProxy(t *testing.T) {
	t.Parallel()
	_, s := start(t, 1)
	if proxy := open(t, s).http.Transport.(*http.Transport).Proxy; proxy != nil {
		t.Error("the client has a proxy")
	}
}

// TestResponseLimit fails on a longer response, and does not read it to its end.
func TestResponseLimit(t *testing.T) {
	t.Parallel()
	read := make(chan int, 1)
	instance := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		sent, chunk := 0, make([]byte, 64<<10)
		for sent < 128<<20 {
			n, err := w.Write(chunk)
			if sent += n; err != nil {
				break
			}
		}
		read <- sent
	}))
	defer instance.Close()
	_, s := start(t, 1)
	s.NetHSM.Instances = []string{instance.URL}
	s.NetHSM.Fingerprints = [][32]byte{sha256.Sum256(instance.Certificate().Raw)}
	err := open(t, s).Login(t.Context())
	if !failure.Is(err, failure.Internal) || !strings.Contains(err.Error(), "exceeds 4194304 bytes") {
		t.Error(err)
	}
	if n := <-read; n > 64<<20 {
		t.Errorf("%d bytes were read", n)
	}
}

// TestErrors checks the message, the kind and the hint of what can go wrong.
func TestErrors(t *testing.T) {
	t.Parallel()
	signing := func(t *testing.T, store *Store) error { return sign(t.Context(), store, nil) }
	deleting := func(t *testing.T, store *Store) error { return store.Delete(t.Context(), store.key("release"), nil) }
	state := func(to nethsmtest.State) func(*nethsmtest.Server, *config.Settings) {
		return func(server *nethsmtest.Server, _ *config.Settings) { server.SetState(to) }
	}
	inject := func(effect nethsmtest.Effect) func(*nethsmtest.Server, *config.Settings) {
		return func(server *nethsmtest.Server, _ *config.Settings) { server.Inject("", "/keys/*/sign", 0, effect) }
	}
	settings := func(change func(*config.Settings)) func(*nethsmtest.Server, *config.Settings) {
		return func(_ *nethsmtest.Server, s *config.Settings) { change(s) }
	}
	for name, c := range map[string]struct {
		arrange func(*nethsmtest.Server, *config.Settings)
		do      func(*testing.T, *Store) error
		kind    failure.Kind
		words   string
	}{
		"locked":        {state(nethsmtest.Locked), signing, failure.Unavailable, "its state is Locked"},
		"failed":        {state(nethsmtest.Failed), signing, failure.Unavailable, "its state is Failed"},
		"unprovisioned": {state(nethsmtest.Unprovisioned), signing, failure.Unavailable, "its state is Unprovisioned"},
		"unknown state": {func(server *nethsmtest.Server, _ *config.Settings) {
			server.SetState(nethsmtest.Locked)
			server.Inject("", "/health/state", 0, nethsmtest.RespondWith(200, typeJSON, `{"state":"Asleep"}`))
		}, signing, failure.Unavailable, "its state is unknown"},
		"bad request": {inject(nethsmtest.Respond(400)), signing, failure.Invalid, "(400)"},
		"forbidden": {inject(nethsmtest.Respond(403)), signing, failure.Denied,
			"user operator is not allowed to do this (403)"},
		"no key": {settings(func(s *config.Settings) { s.Key.Object = "other" }), signing, failure.NotFound,
			"not found for user operator (404)"},
		"conflict":     {inject(nethsmtest.Respond(409)), signing, failure.Conflict, "(409)"},
		"precondition": {inject(nethsmtest.Respond(412)), signing, failure.Denied, "precondition"},
		"throttled":    {inject(nethsmtest.Respond(429)), signing, failure.Throttled, "accepts no logins for now (429)"},
		"server error": {inject(nethsmtest.Respond(503)), signing, failure.Unavailable, "responded with 503"},
		"unexpected":   {inject(nethsmtest.Respond(206)), signing, failure.Internal, "responded with 206"},
		"malformed":    {inject(nethsmtest.Malformed()), signing, failure.Internal, "cannot read the response"},
		"empty":        {inject(nethsmtest.RespondWith(200, typeJSON, `{}`)), signing, failure.Internal, "no signature"},
		"no host": {settings(func(s *config.Settings) {
			s.NetHSM.Instances = []string{"https://no-such..host.invalid"} // refused without asking a name server
		}), signing, failure.Unavailable, "no host"},
		"no user": {settings(func(s *config.Settings) { s.NetHSM.User, s.NetHSM.Administrator = "", "" }), signing,
			failure.Invalid, "no user"},
		"no login": {settings(func(s *config.Settings) { s.NetHSM.User, s.NetHSM.Administrator = "", "" }),
			func(t *testing.T, store *Store) error { return store.Login(t.Context()) }, failure.Invalid, "no user"},
		"fingerprint": {settings(func(s *config.Settings) { s.NetHSM.Fingerprints = [][32]byte{{1}} }), signing,
			failure.Denied, "is not in fingerprints"},
		"unknown issuer": {settings(func(s *config.Settings) { s.NetHSM.Fingerprints = nil }), signing, failure.Denied,
			"cannot verify the TLS certificate"},
		"no administrator": {settings(func(s *config.Settings) { s.NetHSM.Administrator = "" }), deleting, failure.Invalid,
			"no administrator"},
		"operator as administrator": {settings(func(s *config.Settings) {
			s.NetHSM.Administrator, s.NetHSM.AdministratorPINSource = "operator", "env:TEST_OPERATOR"
		}), deleting, failure.Denied, "(403)"},
		"no name": {settings(func(s *config.Settings) { s.Key.Object = "rel*" }), signing, failure.Invalid, "names no key"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers, s := start(t, 1)
			ecKey(t, servers[0])
			c.arrange(servers[0], s)
			err := c.do(t, open(t, s))
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

// TestMixedFailures has the kind of an instance that may recover.
func TestMixedFailures(t *testing.T) {
	t.Parallel()
	err := allFailed("signing", []*instanceError{
		{err: failure.New(failure.Denied, "first").WithHint("never")},
		{err: failure.New(failure.Timeout, "second").WithHint("later"), mayRecover: true},
	})
	if f := failure.From(err); f.Kind != failure.Timeout || f.Hint != "later" ||
		f.What != "signing failed on all 2 instances of the NetHSM:\n  first\n  second" {
		t.Errorf("%+v", f)
	}
	if err := errors.Unwrap(interrupted(t.Context(), "signing")); err != nil {
		t.Error(err)
	}
}
