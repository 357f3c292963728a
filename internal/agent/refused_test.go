package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

var (
	signing = pin.Login{Module: "/lib/module.so", Token: "pkcs11:token=signing;serial=1", Name: "signing",
		Source: "env:PIN"}
	wrong = func() *failure.Error {
		f := failure.New(failure.Denied, "cannot log in to token %q", "signing")
		f.CKR = "CKR_PIN_INCORRECT"
		return f
	}()
)

func newRefusals(t *testing.T) *Refusals { return &Refusals{dir: filepath.Join(t.TempDir(), "agent")} }

// TestRefusals keeps a refused PIN until it is cleared, also for another process, module path and source.
func TestRefusals(t *testing.T) {
	t.Parallel()
	r := newRefusals(t)
	ended, err := r.Guard(t.Context(), signing)
	if err != nil {
		t.Fatal(err)
	}
	ended(nil)
	if all, err := r.List(); err != nil || len(all) != 0 || r.Last() != nil {
		t.Errorf("after a login: %v, %v", all, err)
	}
	if ended, err = r.Guard(t.Context(), signing); err != nil {
		t.Fatal(err)
	}
	ended(wrong)
	for _, again := range []*Refusals{r, {dir: r.dir}} {
		other := signing
		other.Source, other.Name, other.Module = "file:/pin", "renamed", "/lib/link.so"
		for range 2 {
			if _, err := again.Guard(t.Context(), other); !failure.Is(err, failure.Denied) ||
				failure.From(err).CKR != "CKR_PIN_INCORRECT" || !strings.Contains(failure.From(err).Hint, "agent clear") {
				t.Error(err)
			}
		}
		if last := again.Last(); last == nil || last.CKR != "CKR_PIN_INCORRECT" || last.Time.IsZero() {
			t.Errorf("the last refusal is %+v", last)
		}
	}
	other := signing
	other.Token = "pkcs11:token=signing;serial=2"
	if ended, err := r.Guard(t.Context(), other); err != nil {
		t.Errorf("another token: %v", err)
	} else {
		ended(nil)
	}
	if nameless := (pin.Login{Module: "/a", Token: "pkcs11:token=x"}); r.path(nameless) ==
		r.path(pin.Login{Module: "/b", Token: nameless.Token}) {
		t.Error("tokens without a serial number are one, in any module")
	}
	all, err := r.List()
	if err != nil || len(all) != 1 || all[0].Name != "signing" || all[0].Token != signing.Token {
		t.Fatalf("%+v, %v", all, err)
	}
	alias := all[0]
	alias.Module = "/lib/link.so"
	if !r.Same(all[0], alias) {
		t.Error("a token is another by the path of its module")
	}
	for range 2 {
		if err := r.Clear(alias); err != nil {
			t.Error(err)
		}
	}
	if ended, err := r.Guard(t.Context(), signing); err != nil {
		t.Errorf("after it was cleared: %v", err)
	} else {
		ended(nil)
	}
}

// TestNextStep has the failures that a refused PIN causes say how it can be tried again, and leaves others alone.
func TestNextStep(t *testing.T) {
	t.Parallel()
	prompted := signing
	prompted.Source = pin.Prompt
	for command, login := range map[string]pin.Login{"agent clear": signing, "agent lock": prompted} {
		r := newRefusals(t)
		ended, err := r.Guard(t.Context(), login)
		if err != nil {
			t.Fatal(err)
		}
		if f := failure.From(r.nextStep(wrong)); f != wrong || r.nextStep(nil) != nil {
			t.Error("a failure changes though no PIN was refused")
		}
		ended(wrong)
		if f := failure.From(r.nextStep(wrong)); f.What != wrong.What || f.CKR != wrong.CKR || !strings.Contains(f.Hint,
			command) {
			t.Errorf("%s: %v (%s)", login.Source, f, f.Hint)
		}
		if other := failure.New(failure.Denied, "no known format"); failure.From(r.nextStep(other)) != other {
			t.Error("another failure changes")
		}
	}
}

// TestUnfinished takes a login that has not ended for one whose PIN was refused, since nobody knows.
func TestUnfinished(t *testing.T) {
	t.Parallel()
	killed := newRefusals(t)
	if _, err := killed.Guard(t.Context(), signing); err != nil {
		t.Fatal(err)
	}
	again := &Refusals{dir: killed.dir}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := again.Guard(ctx, signing); !failure.Is(err, failure.Timeout) {
		t.Errorf("while the login is in flight: %v", err)
	}
	all, err := again.List()
	if err != nil || len(all) != 1 {
		t.Fatalf("%v, %v", all, err)
	}
	if err := again.Clear(all[0]); !failure.Is(err, failure.Conflict) {
		t.Errorf("cleared while the login is in flight: %v", err)
	}
	lock := strings.TrimSuffix(killed.path(signing), ".json") + ".lock"
	if err := os.Remove(lock); err != nil { // as the end of the process drops it
		t.Fatal(err)
	}
	if _, err := again.Guard(t.Context(), signing); !failure.Is(err, failure.Denied) ||
		!strings.Contains(err.Error(), unfinished) {
		t.Errorf("after the agent was killed: %v", err)
	}
}

// TestWaitForOther leaves no thread behind for a call that gives up while another process keeps the lock.
func TestWaitForOther(t *testing.T) {
	t.Parallel()
	holder := newRefusals(t)
	ended, err := holder.Guard(t.Context(), signing)
	if err != nil {
		t.Fatal(err)
	}
	waiting := &Refusals{dir: holder.dir}
	for range 50 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		if _, err := waiting.Guard(ctx, signing); !failure.Is(err, failure.Timeout) {
			t.Error(err)
		}
		cancel()
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for _, fd := range open {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && strings.HasPrefix(name, holder.dir+"/") {
			kept++
		}
	}
	if kept != 1 {
		t.Errorf("%d descriptors are open, want that of the holder", kept)
	}
	granted := make(chan error, 1)
	go func() {
		again, err := waiting.Guard(t.Context(), signing)
		if err == nil {
			again(nil)
		}
		granted <- err
	}()
	ended(nil)
	if err := <-granted; err != nil {
		t.Error(err)
	}
}

// TestPrompt asks a person, whatever has been refused, and keeps nothing in files.
func TestPrompt(t *testing.T) {
	t.Parallel()
	r := newRefusals(t)
	asked := signing
	asked.Source = pin.Prompt
	for range 2 {
		ended, err := r.Guard(t.Context(), asked)
		if err != nil {
			t.Fatal(err)
		}
		ended(wrong)
		if r.Last() == nil {
			t.Error("the refusal is not shown")
		}
	}
	r.locked()
	if r.Last() != nil {
		t.Error("the refusal is shown, and the next login asks again")
	}
	if _, err := os.Stat(r.dir); err == nil {
		t.Error("there are files")
	}
}

// TestState fails closed where nothing can be kept, and for what others can change.
func TestState(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(dir string) error{
		"a file in the way": func(dir string) error { return os.WriteFile(dir, nil, 0o600) },
		"others can write":  func(dir string) error { return folder(dir, 0o777) },
		"half a file": func(dir string) error {
			if err := folder(dir, 0o700); err != nil {
				return err
			}
			return os.WriteFile((&Refusals{dir: dir}).path(signing), []byte(`{"modu`), 0o600)
		},
		"a link": func(dir string) error {
			if err := folder(dir, 0o700); err != nil {
				return err
			}
			return os.Symlink("/dev/null", (&Refusals{dir: dir}).path(signing))
		},
	} {
		r := newRefusals(t)
		if err := spoil(r.dir); err != nil {
			t.Fatal(err)
		}
		if _, err := r.Guard(t.Context(), signing); err == nil || failure.From(err).Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
}
