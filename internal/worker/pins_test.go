package worker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// pinFile has the fixture read the PIN from a file.
func (f *fixture) pinFile(t testing.TB, pin string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pin")
	if err := os.WriteFile(file, []byte(pin+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.settings.PIN, f.settings.PINSource = "", "file:"+file
	return file
}

// logsIn opens a store and logs in.
func (f *fixture) logsIn(ctx context.Context) error {
	store, err := f.backend.Open(ctx, &f.settings)
	if err != nil {
		return err
	}
	defer store.Close()
	return store.Login(ctx)
}

// TestRefusedPIN tries a PIN that was refused never again: no store, no process and no key, until it is forgotten.
func TestRefusedPIN(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"a file", "the settings"} {
		f := newFixture(t)
		file := f.pinFile(t, "1234")
		if where == "the settings" {
			f.settings.PIN, f.settings.PINSource = "1234", ""
		}
		for i := range 5 {
			if err := f.logsIn(t.Context()); failure.From(err).CKR != "CKR_PIN_INCORRECT" || !failure.Is(err, failure.Denied) {
				t.Errorf("login %d: %v", i, err)
			}
			spec, _ := key.ParseSpec("EC-256")
			_, err := f.backend.Generate(t.Context(), &f.settings, key.Request{Spec: spec, Label: "new", Usage: key.Sign})
			if !failure.Is(err, failure.Denied) {
				t.Errorf("generate %d: %v", i, err)
			}
			f.order(t, "Open.crash") // the next process knows nothing of the refusal
		}
		if tries := f.logged("PIN"); tries != 1 {
			t.Errorf("PIN from %s: tried %d times", where, tries)
		}
		_ = os.Remove(filepath.Join(f.dir, "Open.crash"))
		if err := os.WriteFile(file, []byte(keystoretest.PIN+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		f.settings.PINSource, f.settings.PIN = "file:"+file, ""
		if err := f.logsIn(t.Context()); !failure.Is(err, failure.Denied) {
			t.Errorf("a right PIN is tried before the refused one is forgotten: %v", err)
		}
		f.backend.Forget()
		if err := f.logsIn(t.Context()); err != nil {
			t.Errorf("after the refused PIN was forgotten: %v", err)
		}
	}
}

// TestKeptPIN reads the PIN once, and logs in by it after each restart.
func TestKeptPIN(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.backend.limits.settled = 1
	file := f.pinFile(t, keystoretest.PIN)
	_, k := f.open(t)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := f.signs(t.Context(), k); err != nil {
			t.Error(err)
		}
		f.order(t, "Sign.crash")
	}
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	if logins := f.logged("PIN"); logins != f.logged("start") {
		t.Errorf("%d logins of %d processes", logins, f.logged("start"))
	}
	f.backend.Forget()
	if err := f.logsIn(t.Context()); err == nil || !strings.Contains(err.Error(), "no such file") {
		t.Errorf("a PIN that was forgotten: %v", err)
	}
}

// TestLostLogin tries a PIN that no login has proved right once, if the process ends in the login; and twice one that
// was right before.
func TestLostLogin(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.order(t, "Login.crash")
	if err := f.logsIn(t.Context()); !failure.Is(err, failure.Denied) {
		t.Error(err)
	}
	if tries := f.logged("PIN"); tries != 1 {
		t.Errorf("tried %d times", tries)
	}
	f.backend.Forget()
	_, k := f.open(t)
	f.order(t, "Sign.crash", "Login.crash")
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// TestNoPIN does not ask for a PIN that no source gives.
func TestNoPIN(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.settings.PIN, f.settings.PINSource = "", ""
	if err := f.logsIn(t.Context()); !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "no pin-source") {
		t.Error(err)
	}
	f.settings.PINSource = "env:WORKER_TEST_UNSET"
	err := f.logsIn(t.Context())
	if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "WORKER_TEST_UNSET") {
		t.Error(err)
	}
	if f.logged("PIN") != 0 {
		t.Error("a PIN was tried")
	}
}

// TestPINStaysInMemory has the PIN neither in the environment nor in the arguments of the process, nor in the settings
// that it gets.
func TestPINStaysInMemory(t *testing.T) {
	t.Setenv("NOTATION_HSM_PIN", keystoretest.PIN)
	t.Setenv("OTHER_PIN", keystoretest.PIN)
	t.Setenv("NOTATION_HSM_LOG", filepath.Join(t.TempDir(), "log"))
	f := newFixture(t)
	f.settings.PIN, f.settings.PINSource = "", "env:OTHER_PIN"
	f.settings.Key.Query = map[string]string{"pin-value": keystoretest.PIN}
	if err := f.logsIn(t.Context()); err != nil {
		t.Fatal(err)
	}
	environment, err := os.ReadFile(filepath.Join(f.dir, "environment"))
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"_PIN=", "=" + keystoretest.PIN} {
		if strings.Contains(string(environment), text) {
			t.Errorf("the process has %s in its environment or arguments: %s", text, environment)
		}
	}
	for _, text := range []string{"NOTATION_HSM_LOG=", dirVariable, argument, keystoretest.Path} {
		if !strings.Contains(string(environment), text) {
			t.Errorf("the process lacks %s in its environment and arguments: %s", text, environment)
		}
	}
	f.settings.PIN = keystoretest.PIN
	if sent := string(encode(arguments{Settings: forProcess(&f.settings)})); strings.Contains(sent, keystoretest.PIN) {
		t.Errorf("the settings are sent with the PIN: %s", sent)
	}
}

// TestRefusals tells refused logins from other failures.
func TestRefusals(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		kind         failure.Kind
		ckr          string
		alone, inUse bool
	}{
		{failure.Denied, "CKR_PIN_INCORRECT", true, true},
		{failure.Denied, "CKR_USER_TYPE_INVALID", true, true},
		{failure.Denied, "CKR_KEY_FUNCTION_NOT_PERMITTED", true, false},
		{failure.Denied, "", true, false},
		{failure.Internal, "CKR_GENERAL_ERROR", true, false},
		{failure.Internal, "CKR_SESSION_HANDLE_INVALID", false, false},
		{failure.Unavailable, "CKR_DEVICE_REMOVED", false, false},
		{failure.Timeout, "", false, false},
		{failure.Internal, "", false, false},
		{failure.NotFound, "", false, false},
	} {
		err := failure.New(c.kind, "cannot log in")
		err.CKR = c.ckr
		if refusesLoginAlone(err) != c.alone || refusesLogin(err) != c.inUse {
			t.Errorf("%v %s: %v, %v", c.kind, c.ckr, refusesLoginAlone(err), refusesLogin(err))
		}
	}
	if refusesLoginAlone(nil) || refusesLogin(nil) || refusesLogin(errors.New("other")) {
		t.Error("no failure is a refusal")
	}
}

// TestSOPIN reads the security officer's PIN for the one call that needs it.
func TestSOPIN(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	w := key.WrappingKey{Label: "backup", ID: []byte{1}}
	if err := f.backend.ImportWrapping(t.Context(), &f.settings, "env:UNUSED", w, []byte("value")); err != nil {
		t.Fatal(err)
	}
	store, _ := f.open(t)
	found, err := store.WrappingKey(t.Context(), config.URI{})
	if err != nil || found.Label != "backup" {
		t.Errorf("%v, %v", found, err)
	}
}

// guard notes how logins end, and forbids them when it is told to.
type guard struct {
	logins []pin.Login
	ended  []*failure.Error
	deny   error
}

func (g *guard) ask(_ context.Context, l pin.Login) (func(*failure.Error), error) {
	if g.deny != nil {
		return nil, g.deny
	}
	g.logins = append(g.logins, l)
	return func(refusal *failure.Error) { g.ended = append(g.ended, refusal) }, nil
}

// TestGuard is asked before each login, and told once how it ended.
func TestGuard(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		pin     string
		order   string
		deny    bool
		tries   int
		refusal string // in what the guard is told
	}{
		"right":     {pin: keystoretest.PIN, tries: 1},
		"wrong":     {pin: "1234", tries: 1, refusal: "CKR_PIN_INCORRECT"},
		"lost":      {pin: keystoretest.PIN, order: "Login.crash", tries: 1, refusal: unanswered},
		"denied":    {pin: keystoretest.PIN, deny: true},
		"no PIN":    {pin: ""},
		"elsewhere": {pin: keystoretest.PIN, order: "Open.crash", tries: 1},
	} {
		f := newFixture(t)
		f.pinFile(t, c.pin)
		g := &guard{}
		if c.deny {
			g.deny = failure.New(failure.Denied, "not again")
		}
		f.backend.Guard(g.ask)
		if c.order != "" {
			f.order(t, c.order)
		}
		err := f.logsIn(t.Context())
		if failed := c.tries == 0 || c.refusal != ""; failed != failure.Is(err, failure.Denied) || !failed && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := f.backend.Close(); err != nil {
			t.Error(err)
		}
		if tries := f.logged("PIN"); tries != c.tries {
			t.Errorf("%s: tried %d times", name, tries)
		}
		if len(g.ended) != len(g.logins) || c.tries > 0 && len(g.logins) == 0 {
			t.Errorf("%s: %d logins, %d ended", name, len(g.logins), len(g.ended))
		}
		for i, refusal := range g.ended {
			text := ""
			if refusal != nil {
				text = refusal.What + refusal.CKR
			}
			if !strings.Contains(text, c.refusal) || (c.refusal == "") != (refusal == nil) {
				t.Errorf("%s: the guard was told %q", name, text)
			}
			if l := g.logins[i]; l.Module != keystoretest.Path || !strings.HasPrefix(l.Token, "pkcs11:") ||
				l.Name != "signing" ||
				l.Source != f.settings.PINSource {
				t.Errorf("%s: the guard was asked for %+v", name, l)
			}
		}
	}
}
