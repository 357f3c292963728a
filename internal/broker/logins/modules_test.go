//go:build cgo

package logins

import (
	"context"
	"crypto"
	"crypto/sha256"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/backends"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// machine is a replica with its own path of the module and its own PIN.
type machine struct {
	refusals *Refusals
	keys     *keystore.Keystore
	settings config.Settings
	pin      string // file
	log      string // of the calls of its module
}

// newMachine returns a machine that reaches a token of SoftHSM.
func newMachine(t *testing.T, url, name, pin string, token *softhsmtest.Token) *machine {
	t.Helper()
	dir := t.TempDir()
	m := &machine{refusals: replica(t, url, name), pin: filepath.Join(dir, "pin"), log: filepath.Join(dir, "calls")}
	m.settings = config.Settings{ModulePath: softhsmtest.Shim(t, token.Module), PINSource: "file:" + m.pin,
		Timeout: time.Minute, Key: config.URI{Token: "signing", Object: "release"},
		Env: map[string]string{"SOFTHSM2_CONF": filepath.Join(token.Dir, "softhsm2.conf"), "SHIM_MODULE": token.Module,
			"SHIM_LOG": m.log}}
	m.setPIN(t, pin)
	m.keys = backends.GuardedService(m.refusals.Guard)
	t.Cleanup(func() { m.keys.Close() })
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.refusals.Follow(ctx, m.keys.Forget)
	}()
	t.Cleanup(func() { stop(); <-ended })
	return m
}

func (m *machine) setPIN(t *testing.T, pin string) {
	t.Helper()
	if err := os.WriteFile(m.pin, []byte(pin+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) sign(ctx context.Context) error {
	return m.keys.Reference(&m.settings).WithKey(ctx, func(_ keystore.Store, k keystore.Key) error {
		return signWith(ctx, k)
	})
}

func signWith(ctx context.Context, k keystore.Key) error {
	digest := sha256.Sum256(nil)
	_, err := k.Sign(ctx, digest[:], crypto.SHA256)
	return err
}

func (m *machine) logins(t *testing.T) int {
	t.Helper()
	return softhsmtest.Count(softhsmtest.Calls(t, m.log), "C_Login")
}

// TestModules has one of two machines try a wrong PIN on a token, once, and the other one not at all, until it is
// cleared: then both sign, without a restart.
func TestModules(t *testing.T) {
	token := softhsmtest.NewToken(t, "signing")
	url := softhsmtest.Postgres(t).Database(t)
	maker := newMachine(t, url, "maker", softhsmtest.PIN, token)
	spec, err := key.ParseSpec("EC-256")
	if err != nil {
		t.Fatal(err)
	}
	request := key.Request{Spec: spec, Label: "release", Usage: key.Sign}
	if _, err := maker.keys.Reference(&maker.settings).Generate(t.Context(), request); err != nil {
		t.Fatal(err)
	}
	opened, err := maker.keys.Reference(&maker.settings).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer opened.Close()
	held, err := opened.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	first := newMachine(t, url, "broker-1", "0000", token)
	second := newMachine(t, url, "broker-2", softhsmtest.PIN, token)
	for range 3 {
		for _, m := range []*machine{first, second} {
			if err := m.sign(t.Context()); !failure.Is(err, failure.Denied) || failure.From(err).CKR != "CKR_PIN_INCORRECT" {
				t.Errorf("%s: %v", m.refusals.replica, err)
			}
		}
	}
	if one, other := first.logins(t), second.logins(t); one != 1 || other != 0 {
		t.Errorf("%d and %d logins", one, other)
	}
	if err := signWith(t.Context(), held); err != nil {
		t.Errorf("a replica that has logged in before: %v", err)
	}
	first.setPIN(t, softhsmtest.PIN)
	all, err := second.refusals.List(t.Context())
	if err != nil || len(all) != 1 {
		t.Fatalf("%+v, %v", all, err)
	}
	if err := second.refusals.Clear(t.Context(), all[0]); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*machine{second, first} {
		until(t, "signatures of "+m.refusals.replica, func() bool { return m.sign(t.Context()) == nil })
	}
	if one, other := first.logins(t), second.logins(t); one != 2 || other < 1 {
		t.Errorf("%d and %d logins", one, other)
	}
}

// TestModuleHangs keeps the PIN of a login that the module does not answer from being tried by others.
func TestModuleHangs(t *testing.T) {
	token := softhsmtest.NewToken(t, "signing")
	url := softhsmtest.Postgres(t).Database(t)
	first := newMachine(t, url, "broker-1", softhsmtest.PIN, token)
	second := newMachine(t, url, "broker-2", softhsmtest.PIN, token)
	first.settings.Env["SHIM_FAULT"], first.settings.Timeout = "C_Login:hang", 2*time.Second
	if err := first.sign(t.Context()); err == nil {
		t.Fatal("the module has answered")
	}
	until(t, "a refusal", func() bool { return failure.Is(second.sign(t.Context()), failure.Denied) })
	if n := second.logins(t); n != 0 {
		t.Errorf("%d logins", n)
	}
}
