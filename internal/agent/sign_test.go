package agent

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// TestSignChecks refuses what a key does not sign, and says why.
func TestSignChecks(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	s.key("recipient", newKey(t, "EC-256"), key.Decrypt)
	s.key("rsa", newKey(t, "RSA-2048"), key.Sign)
	s.key("p384", newKey(t, "EC-384"), key.Sign)
	now := time.Now()
	for name, c := range map[string]struct {
		label, alg, algorithm string
		at                    time.Time
		status                int
		detail                string
	}{
		"now":           {"release", "ES256", "ECDSA-SHA-256", now, 201, ""},
		"RSA":           {"rsa", "PS256", "RSASSA-PSS-SHA-256", now, 201, ""},
		"slow clock":    {"release", "ES256", "ECDSA-SHA-256", now.Add(-4 * time.Minute), 201, ""},
		"fast clock":    {"release", "ES256", "ECDSA-SHA-256", now.Add(4 * time.Minute), 201, ""},
		"long ago":      {"release", "ES256", "ECDSA-SHA-256", now.Add(-6 * time.Minute), 403, "the signing time"},
		"next week":     {"release", "ES256", "ECDSA-SHA-256", now.Add(168 * time.Hour), 403, "the signing time"},
		"usage":         {"recipient", "ES256", "ECDSA-SHA-256", now, 403, ""},
		"other header":  {"release", "ES384", "ECDSA-SHA-256", now, 400, "the payload is for the algorithm ECDSA-SHA-384"},
		"other hash":    {"release", "ES384", "ECDSA-SHA-384", now, 400, "Notation signs with ECDSA-SHA-256 by this key"},
		"other curve":   {"p384", "ES256", "ECDSA-SHA-256", now, 400, "Notation signs with ECDSA-SHA-384 by this key"},
		"other key":     {"rsa", "ES256", "ECDSA-SHA-256", now, 400, "the key does not sign with the algorithm"},
		"PKCS #1":       {"rsa", "PS256", "RSASSA-PKCS1-v1_5-SHA-256", now, 400, "the payload is for the algorithm"},
		"longer hash":   {"rsa", "PS512", "RSASSA-PSS-SHA-512", now, 400, "Notation signs with RSASSA-PSS-SHA-256 by"},
		"no algorithm":  {"release", "ES256", "", now, 400, "the payload is for the algorithm"},
		"another token": {"pkcs11:token=other;object=release", "ES256", "ECDSA-SHA-256", now, 404, "does not hold the key"},
		"its URI":       {"pkcs11:token=signing;object=release", "ES256", "ECDSA-SHA-256", now, 201, ""},
		"a query": {"pkcs11:token=signing;object=release?pin-value=1234", "ES256", "ECDSA-SHA-256", now, 404,
			"does not hold the key"},
	} {
		p := s.want(c.status, post(brokerapi.SignaturesPath(c.label), brokerapi.SignatureRequest{
			Payload: notation(c.alg, c.at), Algorithm: c.algorithm}))
		if !strings.Contains(p.Detail, c.detail) || strings.Contains(p.Detail, "1234") {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// lockable is a backend whose Close does not end while the keys that it has can still be used.
type lockable struct {
	*keystoretest.Module
	closing chan struct{} // gets a value when Close begins
	end     chan struct{} // closed at the end of the test
}

func (l *lockable) Close() error {
	l.closing <- struct{}{}
	<-l.end
	return nil
}

// TestLockInFlight uses no key once the agent was locked, such as while a person is asked, and says why.
func TestLockInFlight(t *testing.T) {
	t.Parallel()
	var s *server
	backend := &lockable{closing: make(chan struct{}), end: make(chan struct{})}
	var locking sync.WaitGroup
	lock := func() { // begins to lock, while the backend still has the key
		locking.Go(func() {
			if err := s.agent.Lock(); err != nil {
				t.Error(err)
			}
		})
		<-backend.closing
	}
	defer locking.Wait()
	defer close(backend.end)
	open := func(o *Options) {
		o.Open = func() (*keystore.Keystore, *keystore.Reference, error) {
			backend.Module = s.module
			ks := keystore.New(nil, backend)
			token := s.module.Reference("signing", "")
			return ks, ks.Reference(&token.Settings), nil
		}
	}
	s = newServer(t, func(o *Options) {
		open(o)
		o.Confirm = func(context.Context, string, *payload.Artifact) error {
			lock()
			return nil
		}
	})
	if p := s.want(503, sign("release")); !strings.Contains(p.Detail, "the agent was locked") {
		t.Errorf("%+v", p)
	}
	for _, path := range []string{brokerapi.KeysPath, brokerapi.KeyPath("release")} {
		s = newServer(t, open)
		s.want(201, sign("release"))
		fail := func() error {
			lock()
			return errors.New("interrupted")
		}
		s.module.Before("Keys", fail)
		s.module.Before("Info", fail)
		p := s.want(503, httptest.NewRequest(http.MethodGet, path, http.NoBody))
		if !strings.Contains(p.Detail, "the agent was locked") {
			t.Errorf("%+v", p)
		}
	}
}

// logged returns what the process logs until the end of the test.
func logged(t *testing.T) *bytes.Buffer {
	t.Helper()
	lines, before := &bytes.Buffer{}, slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(lines, nil)))
	t.Cleanup(func() { slog.SetDefault(before) })
	return lines
}

// TestLog logs each use of a key once, with what it is for, and nothing else of what was sent.
func TestLog(t *testing.T) { // not beside other tests: it changes the logger of the process
	lines := logged(t)
	s := newServer(t, func(o *Options) { o.Formats = []payload.Format{payload.Notation, payload.LayerKey} })
	recipient := newKey(t, "EC-256")
	s.key("nodes", recipient, key.Decrypt)
	data := notation("ES256", time.Now())
	s.want(201, post(brokerapi.SignaturesPath("release"), brokerapi.SignatureRequest{Payload: data,
		Algorithm: "ECDSA-SHA-256"}))
	s.want(200, layerKey(t, "nodes", recipient.Public())())
	want := []string{
		fmt.Sprintf("msg=signed key=release format=notation name=\"\" digest=sha256:%s payload=sha256:%x caller=",
			strings.Repeat("a", 64), sha256.Sum256(data)),
		"msg=unwrapped key=nodes format=layer-key name=\"\" digest=\"\" payload=sha256:"}
	got := strings.Split(lines.String(), "\n")
	if len(got) != len(want)+1 || strings.Contains(lines.String(), "io.example.build") {
		t.Fatalf("logged is %s", got)
	}
	for i := range want {
		if !strings.Contains(got[i], want[i]) {
			t.Errorf("%s does not say %s", got[i], want[i])
		}
	}
}

// TestLogCaller logs which process used a key.
func TestLogCaller(t *testing.T) { // not beside other tests, as TestLog
	lines := logged(t)
	s := newServer(t, nil)
	dial := s.serve(t)
	if got := status(dial(), text("release")); got != 201 {
		t.Fatal(got)
	}
	if want := fmt.Sprintf(" caller=%d user=%d program=", os.Getpid(), os.Getuid()); !strings.Contains(lines.String(),
		want) {
		t.Errorf("%s does not say %s", lines.String(), want)
	}
}

// TestFormats names the flag that would allow a format.
func TestFormats(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(o *Options) { o.Formats = []payload.Format{payload.TUF} })
	p := s.want(403, sign("release"))
	if !strings.Contains(p.Detail, "notation") || !strings.Contains(p.Hint, "--formats notation") {
		t.Errorf("%+v", p)
	}
	calls := s.module.Calls("Open")
	if calls > 0 {
		t.Errorf("the token was opened %d times for what no key signs", calls)
	}
}
