package identity

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// waitFor returns when condition is true. It has no deadline of its own: the test's ends it.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for !condition() {
		select {
		case <-t.Context().Done():
			t.Fatal("condition never became true")
		case <-time.After(time.Millisecond):
		}
	}
}

// idle waits until no fetch is running.
func (b *bench) idle(t *testing.T) {
	t.Helper()
	c := b.issuers[b.issuer.URL].keys
	waitFor(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.running == nil
	})
}

func (b *bench) fetched(t *testing.T, want int) {
	t.Helper()
	b.idle(t)
	if got := b.issuer.Fetches(); got != want {
		t.Errorf("keys were fetched %d times, want %d", got, want)
	}
}

func TestKeysAreCached(t *testing.T) {
	b := newBench(t, nil)
	b.fetched(t, 0)
	for range 20 {
		b.accepted(t, b.mint(t, nil))
	}
	b.fetched(t, 1)
	b.clock.add(refreshAge - time.Second)
	b.accepted(t, b.mint(t, nil))
	b.fetched(t, 1)
	b.clock.add(time.Second)
	b.accepted(t, b.mint(t, nil)) // uses the old keys, and has them fetched in the background
	b.fetched(t, 2)
	b.accepted(t, b.mint(t, nil))
	b.fetched(t, 2)
}

func TestRotatedKeysAreFetched(t *testing.T) {
	b := newBench(t, nil)
	b.accepted(t, b.mint(t, nil))
	b.issuer.Rotate(t)
	b.clock.add(fetchInterval)
	b.accepted(t, b.mint(t, nil))
	b.fetched(t, 2)
}

func TestUnknownKeysAreFetchedOncePerInterval(t *testing.T) {
	b := newBench(t, nil)
	b.accepted(t, b.mint(t, nil))
	unknown := func(n int) string {
		header := fmt.Sprintf(`{"alg":"ES256","kid":"unknown-%d"}`, n)
		return encode(header, b.payload(t, nil), signES256(t, b.issuer.Key()))
	}
	b.issuer.Rotate(t)
	for n := range 50 {
		b.refused(t, unknown(n), failure.Denied, "no key of its key id (kid)")
	}
	b.refused(t, b.mint(t, nil), failure.Denied, "no key of its key id (kid)")
	b.clock.add(fetchInterval - time.Second)
	b.refused(t, unknown(51), failure.Denied, "no key of its key id (kid)")
	b.fetched(t, 1)
	b.clock.add(time.Second)
	for n := range 50 {
		b.refused(t, unknown(n), failure.Denied, "no key of its key id (kid)")
	}
	b.fetched(t, 2)
	b.accepted(t, b.mint(t, nil))
	b.fetched(t, 2)
}

func TestClockThatWasSetBackDoesNotStopFetches(t *testing.T) {
	b := newBench(t, nil)
	b.accepted(t, b.mint(t, nil))
	b.issuer.Rotate(t)
	b.clock.add(-time.Minute)
	b.accepted(t, b.mint(t, nil))
	b.fetched(t, 2)
}

func TestTokensThatNoKeyCouldVerifyAskNoIssuer(t *testing.T) {
	b := newBench(t, nil)
	for _, changes := range []map[string]any{{"aud": "other"}, {"exp": 1}, {"sub": nil}, {"iss": "https://example.com"}} {
		b.refused(t, b.mint(t, changes), failure.Denied, "cannot accept")
	}
	b.fetched(t, 0)
}

func TestIssuerDown(t *testing.T) {
	b := newBench(t, nil)
	b.issuer.Down(true)
	for range 10 {
		b.refused(t, b.mint(t, nil), failure.Unavailable, "cannot fetch the keys of issuer "+b.issuer.URL)
	}
	b.issuer.Down(false)
	b.clock.add(fetchInterval)
	b.accepted(t, b.mint(t, nil))
	b.issuer.Down(true)
	b.clock.add(maxAge - time.Second)
	b.accepted(t, b.mint(t, nil)) // fetches in the background, and fails
	b.idle(t)
	b.accepted(t, b.mint(t, nil))
	if state := b.Ready(t.Context())[0]; !state.Usable || state.Err == nil || state.Keys != 1 {
		t.Errorf("state with old keys: %+v", state)
	}
	b.clock.add(time.Second)
	b.refused(t, b.mint(t, nil), failure.Unavailable, "status 503")
	if state := b.Ready(t.Context())[0]; state.Usable || state.Err == nil || state.Issuer != b.issuer.URL {
		t.Errorf("state with keys that are too old: %+v", state)
	}
	b.issuer.Down(false)
	b.clock.add(fetchInterval)
	b.accepted(t, b.mint(t, nil))
	if state := b.Ready(t.Context())[0]; !state.Usable || state.Err != nil || !state.Fetched.Equal(b.clock.time()) {
		t.Errorf("state after recovery: %+v", state)
	}
}

func TestSlowIssuer(t *testing.T) {
	b := newBench(t, nil)
	release := b.issuer.Slow()
	ctx, cancel := context.WithCancelCause(t.Context())
	failed := make(chan error, 10)
	for range cap(failed) {
		token := b.mint(t, nil)
		go func() {
			_, err := b.Caller(bearerRequest(ctx, token))
			failed <- err
		}()
	}
	cancel(errors.New("client hung up"))
	for range cap(failed) {
		checkFailure(t, <-failed, failure.Unavailable, "context canceled")
	}
	waiting := make(chan error, 10)
	for range cap(waiting) {
		token := b.mint(t, nil)
		go func() {
			_, err := b.Caller(bearerRequest(t.Context(), token))
			waiting <- err
		}()
	}
	release()
	for range cap(waiting) {
		if err := <-waiting; err != nil {
			t.Errorf("token was refused once the issuer answered: %v", err)
		}
	}
	b.fetched(t, 1)
}

func TestCloseEndsFetches(t *testing.T) {
	b := newBench(t, nil)
	defer b.issuer.Slow()()
	failed := make(chan error, 1)
	token := b.mint(t, nil)
	go func() {
		_, err := b.Caller(bearerRequest(t.Context(), token))
		failed <- err
	}()
	keys := b.issuers[b.issuer.URL].keys
	waitFor(t, func() bool { keys.mu.Lock(); defer keys.mu.Unlock(); return keys.running != nil })
	b.Close()
	checkFailure(t, <-failed, failure.Unavailable, "context canceled")
}

func TestHostileAnswers(t *testing.T) {
	const discovery, keys = "/.well-known/openid-configuration", "/keys"
	text := func(text string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }
	}
	endless := func(w http.ResponseWriter, _ *http.Request) {
		for range 1024 { // 64 MiB: far more than the buffers of a connection
			if _, err := io.WriteString(w, strings.Repeat(" ", 64<<10)); err != nil {
				return
			}
		}
		t.Error("the whole answer was read")
	}
	var many, twins jose.JSONWebKeySet
	for n := range maxKeys + 1 {
		many.Keys = append(many.Keys, jose.JSONWebKey{Key: []byte("secret"), KeyID: fmt.Sprint(n)})
	}
	p256 := newBench(t, nil).issuer.Key()
	twins.Keys = []jose.JSONWebKey{p256.Public(), p256.Public()}
	marshal := func(set jose.JSONWebKeySet) string {
		data, err := json.Marshal(set)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	for name, test := range map[string]struct {
		path   string
		answer http.HandlerFunc
		want   string
	}{
		"huge keys":         {keys, text(strings.Repeat(" ", maxKeySet+1)), "more than 262144 bytes"},
		"endless keys":      {keys, endless, "more than 262144 bytes"},
		"endless discovery": {discovery, endless, "more than 65536 bytes"},
		"many keys":         {keys, text(marshal(many)), "it has 101 keys, more than 100"},
		"two keys of an id": {keys, text(marshal(twins)), `two of its keys have the id "key-1"`},
		"no key":            {keys, text(`{"keys":[]}`), "no key for signatures"},
		"deep keys":         {keys, text(strings.Repeat("[", 100) + strings.Repeat("]", 100)), "nested deeper than 6"},
		"duplicate names":   {keys, text(`{"keys":[],"keys":[]}`), "twice"},
		"page of HTML":      {discovery, text("<html>"), "it is not JSON"},
		"no jwks_uri":       {discovery, text(`{"issuer":"x"}`), "lacks issuer or jwks_uri"},
		"another issuer": {discovery, text(`{"issuer":"https://a.example","jwks_uri":"https://a.example"}`),
			"is of issuer"},
		"redirect":             {keys, http.RedirectHandler("/other", http.StatusFound).ServeHTTP, "status 302"},
		"redirected discovery": {discovery, http.RedirectHandler("/other", http.StatusFound).ServeHTTP, "status 302"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, nil)
			b.issuer.Answer(test.path, test.answer)
			b.refused(t, b.mint(t, map[string]any{"secret": secretClaim}), failure.Unavailable, test.want)
			b.issuer.Answer(test.path, nil)
			b.clock.add(fetchInterval)
			b.accepted(t, b.mint(t, nil))
		})
	}
}

// TestPlainJWKSURI verifies that a discovery document cannot name keys that come without TLS.
func TestPlainJWKSURI(t *testing.T) {
	b := newBench(t, nil)
	b.issuer.Answer("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": b.issuer.URL, "jwks_uri": "http://127.0.0.1:1/keys"})
	})
	b.refused(t, b.mint(t, nil), failure.Unavailable, "is not an https URL")
}

func TestIssuerWithAnotherCA(t *testing.T) {
	b := newBench(t, func(i *Issuer) { i.CA = "" })
	b.refused(t, b.mint(t, nil), failure.Unavailable, "certificate")
	b.fetched(t, 0)
}

func TestKeysFromURLAndFile(t *testing.T) {
	t.Run("jwks-url", func(t *testing.T) {
		b := newBench(t, func(i *Issuer) { i.JWKSURL = i.Issuer + "/keys" })
		b.issuer.Answer("/.well-known/openid-configuration", http.NotFound)
		b.accepted(t, b.mint(t, nil))
	})
	t.Run("jwks-file", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "keys.json")
		write := func(key jose.JSONWebKey) {
			data, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{key.Public()}})
			if err == nil {
				err = os.WriteFile(path, data, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		write(newBench(t, nil).issuer.Key())
		b := newBench(t, func(i *Issuer) { i.JWKSFile = path })
		b.refused(t, b.mint(t, nil), failure.Denied, "signature does not verify")
		write(b.issuer.Key())
		b.clock.add(refreshAge)
		_, _ = b.present(t, b.mint(t, nil)) // has the file read again
		b.idle(t)
		b.accepted(t, b.mint(t, nil))
		b.fetched(t, 0)
	})
}

func TestUnreadableFilesOfAnIssuer(t *testing.T) {
	dir := t.TempDir()
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func(*Issuer)
		kind   failure.Kind
		want   string
	}{
		"missing ca": {func(i *Issuer) { i.CA = filepath.Join(dir, "none") }, failure.NotFound, "cannot read ca"},
		"broken ca":  {func(i *Issuer) { i.CA = broken }, failure.Invalid, "it has no certificate"},
		"missing keys": {func(i *Issuer) { i.JWKSFile = filepath.Join(dir, "none") }, failure.NotFound,
			"cannot read jwks-file"},
		"broken keys": {func(i *Issuer) { i.JWKSFile = broken }, failure.Invalid, "no key for signatures"},
	} {
		t.Run(name, func(t *testing.T) {
			settings := Issuer{Issuer: "https://issuer.example.com", Audience: Strings{audience}, Type: "other"}
			test.change(&settings)
			_, err := New(Config{OIDC: []Issuer{settings}}, nil)
			checkFailure(t, err, test.kind, test.want)
		})
	}
}
