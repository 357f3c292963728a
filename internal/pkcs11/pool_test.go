package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// settings makes a token with a key "release" and returns how to reach it through a shim, and where that logs its
// calls.
func settings(t *testing.T) (s *config.Settings, log string) {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	s = &config.Settings{
		Key: config.URI{Token: "signing", Object: "release"}, ModulePath: token.Module, PIN: softhsmtest.PIN,
		Timeout: 20 * time.Second,
	}
	spec, err := key.ParseSpec("EC-256")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New().Generate(context.Background(), s,
		key.Request{Spec: spec, Label: "release", ID: []byte("release")}); err != nil {
		t.Fatal(err)
	}
	s.ModulePath, log = softhsmtest.Shim(t, token.Module), filepath.Join(t.TempDir(), "calls")
	t.Setenv("SHIM_LOG", log)
	return s, log
}

// TestManySignatures makes N signatures from many goroutines at the price of N SignInit and N Sign, one login, and a
// bounded number of sessions, all of which are closed.
func TestManySignatures(t *testing.T) {
	for _, c := range []struct {
		name, variable, value string
		allowed               int // sessions that the token has for us
	}{
		{"one session", "SHIM_MAX_SESSIONS", "1", 1},
		{"three sessions", "SHIM_MAX_SESSIONS", "3", 3},
		{"many sessions", "SHIM_MAX_SESSIONS", "1000", poolLimit},
		{"one session knows of the login", "SHIM_NETHSM", "1", 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, log := settings(t)
			t.Setenv(c.variable, c.value)
			token, err := New().Open(context.Background(), s)
			if err != nil {
				t.Fatal(err)
			}
			k, err := token.Key(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			const goroutines, each = 20, 15
			digest := sha256.Sum256([]byte("payload"))
			var done sync.WaitGroup
			for range goroutines {
				done.Go(func() {
					for range each {
						signature, err := k.Sign(t.Context(), digest[:], crypto.SHA256)
						if err != nil || !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], signature) {
							t.Error(err)
							return
						}
					}
				})
			}
			done.Wait()
			if err := token.Close(); err != nil {
				t.Error(err)
			}
			calls := softhsmtest.Calls(t, log)
			count := func(name string) int { return softhsmtest.Count(calls, name) }
			if count("C_SignInit") != goroutines*each || count("C_Sign") != goroutines*each {
				t.Errorf("%d C_SignInit and %d C_Sign for %d signatures", count("C_SignInit"), count("C_Sign"), goroutines*each)
			}
			// A refused C_OpenSession, which is how the end of the sessions is found, has no C_CloseSession.
			if opened, closed := count("C_OpenSession"), count("C_CloseSession"); closed > c.allowed || opened-closed > 1 ||
				closed == 0 {
				t.Errorf("%d sessions opened, %d closed", opened, closed)
			}
			if count("C_Login") != 1 || count("C_Finalize") != 1 {
				t.Errorf("%d logins, finalised %d times", count("C_Login"), count("C_Finalize"))
			}
		})
	}
}

// TestBrokenSession repeats a signature whose session broke: it succeeds, in another session.
func TestBrokenSession(t *testing.T) {
	s, log := settings(t)
	token, err := New().Open(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	defer token.Close()
	k, err := token.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("payload"))
	t.Setenv("SHIM_FAULT", "C_Sign:B3") // CKR_SESSION_HANDLE_INVALID, once
	signature, err := k.Sign(t.Context(), digest[:], crypto.SHA256)
	if err != nil || !ecdsa.VerifyASN1(k.Public().(*ecdsa.PublicKey), digest[:], signature) {
		t.Error(err)
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_Login"); n != 1 {
		t.Errorf("%d logins, though the login was not lost", n)
	}
}

// TestStuck touches a module no more once a call in it has not come back.
func TestStuck(t *testing.T) {
	s, log := settings(t)
	s.ModulePath = softhsmtest.Shim(t, copyModule(t, "SOFTHSM2_CONF")) // it stays initialised
	token, err := New().Open(context.Background(), s)
	if err != nil {
		t.Fatal(err)
	}
	k, err := token.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256([]byte("payload"))
	t.Setenv("SHIM_FAULT", "C_Sign:hang")
	s.Timeout = 300 * time.Millisecond // for the call that hangs alone, however slow the others are
	for range 2 {
		if _, err := k.Sign(t.Context(), digest[:], crypto.SHA256); !failure.Is(err, failure.Timeout) {
			t.Errorf("%v is not a timeout", err)
		}
	}
	before := len(softhsmtest.Calls(t, log))
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	if after := len(softhsmtest.Calls(t, log)); after != before {
		t.Errorf("%d calls were made into a module that hangs", after-before)
	}
}

// TestSlowClose closes more sessions than a slow module closes in the time of one, and does not take it for stuck.
func TestSlowClose(t *testing.T) {
	s, log := settings(t)
	backend := New()
	token, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	p := token.conn.pool.Load()
	for range poolLimit - 1 {
		session, err := p.open(token.module)
		if err != nil {
			t.Fatal(err)
		}
		p.add(session)
	}
	t.Setenv("SHIM_DELAY_MS", "200")
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	t.Setenv("SHIM_DELAY_MS", "")
	if token.module.stuck.Load() {
		t.Error("the module counts as stuck")
	}
	if n := softhsmtest.Count(softhsmtest.Calls(t, log), "C_CloseSession"); n != poolLimit {
		t.Errorf("%d sessions closed", n)
	}
}
