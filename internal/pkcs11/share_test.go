package pkcs11

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// roundsVariable makes TestManyStores run longer.
const roundsVariable = "PKCS11_TEST_ROUNDS"

// TestManyStores has ten goroutines open keys on three tokens of two modules, sign and close, at random. One module is
// a copy of SoftHSM's library, which the dynamic linker loads beside it; the other counts its calls. Every signature is
// right, and nothing is left open.
func TestManyStores(t *testing.T) {
	rounds := 20
	if text := os.Getenv(roundsVariable); text != "" {
		var err error
		if rounds, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	s, log := settings(t)
	const variable = "SOFTHSM2_CONX"
	copied, folder := copyModule(t, variable), t.TempDir()
	if err := softhsmtest.WriteSoftHSMConfig(folder); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(folder, "softhsm2.conf")
	t.Setenv(variable, conf)
	backend := New()
	all := []*config.Settings{s}
	for i, module := range []string{copied, s.ModulePath} {
		label := fmt.Sprintf("token-%d", i)
		softhsmtest.Run(t, "env", "SOFTHSM2_CONF="+[]string{conf, os.Getenv("SOFTHSM2_CONF")}[i],
			softhsmtest.Program(t, "softhsm2-util"), "--init-token", "--free", "--label", label, "--pin", softhsmtest.PIN,
			"--so-pin", softhsmtest.SOPIN)
		other := *s
		other.ModulePath, other.Key = module, config.URI{Token: label, Object: "release"}
		spec, err := key.ParseSpec("EC-256")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := New().Generate(t.Context(), &other, key.Request{Spec: spec, Label: "release"}); err != nil {
			t.Fatal(err)
		}
		all = append(all, &other)
	}
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			for range rounds {
				if err := signSome(t, backend, all[rand.N(len(all))]); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	group.Wait()
	for path, m := range backend.modules {
		for idle := false; !idle; { // a call whose caller has left goes on, and its end finalises the module
			m.starting <- struct{}{}
			idle = m.inFlight.Load() == 0 && !m.running
			<-m.starting
			runtime.Gosched()
		}
		if m.users != 0 || len(m.connections) != 0 {
			t.Errorf("%s has %d users and %d tokens open", path, m.users, len(m.connections))
		}
	}
	calls := softhsmtest.Calls(t, log)
	for _, pair := range [][2]string{{"C_OpenSession", "C_CloseSession"}, {"C_Initialize", "C_Finalize"}} {
		if a, b := softhsmtest.Count(calls, pair[0]), softhsmtest.Count(calls, pair[1]); a != b || a == 0 {
			t.Errorf("%d calls of %s, %d of %s", a, pair[0], b, pair[1])
		}
	}
}

// TestCloseTwice counts a store once that is closed twice, and opens nothing again for one that is closed.
func TestCloseTwice(t *testing.T) {
	s, log := settings(t)
	backend := New()
	first, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	second, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := first.Close(); err != nil {
			t.Error(err)
		}
	}
	k, err := second.Key(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Close(); err != nil {
		t.Error(err)
	}
	fails(t, sign(t, k, "a"), failure.Internal, "is closed")
	calls := softhsmtest.Calls(t, log)
	for _, name := range []string{"C_Initialize", "C_Login", "C_OpenSession", "C_CloseSession", "C_Finalize"} {
		if n := softhsmtest.Count(calls, name); n != 1 {
			t.Errorf("%d calls of %s", n, name)
		}
	}
}

// TestCloseInRecovery closes the last store of a token while a call whose caller has left opens the token again: no
// session is left, though another store keeps the module open.
func TestCloseInRecovery(t *testing.T) {
	s, log := settings(t)
	softhsmtest.Run(t, softhsmtest.Program(t, "softhsm2-util"), "--init-token", "--free", "--label", "second",
		"--pin", softhsmtest.PIN, "--so-pin", softhsmtest.SOPIN)
	backend := New()
	elsewhere := *s
	elsewhere.Key = config.URI{Token: "second"}
	other, err := backend.open(t.Context(), &elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	token, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := token.Key(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	before := softhsmtest.Count(softhsmtest.Calls(t, log), "C_OpenSession")
	t.Setenv("SHIM_DELAY_MS", "200")
	token.conn.pool.Load().lose()
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error)
	go func() { left <- token.ready(ctx) }()
	for softhsmtest.Count(softhsmtest.Calls(t, log), "C_OpenSession") == before {
		continue // until it is in the module
	}
	cancel()
	if err := <-left; err == nil {
		t.Error("a call whose context has ended succeeded")
	}
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	t.Setenv("SHIM_DELAY_MS", "")
	for token.module.inFlight.Load() > 0 {
		time.Sleep(time.Millisecond)
	}
	if err := other.Close(); err != nil {
		t.Error(err)
	}
	calls := softhsmtest.Calls(t, log)
	if o, c := softhsmtest.Count(calls, "C_OpenSession"), softhsmtest.Count(calls, "C_CloseSession"); o != c {
		t.Errorf("%d sessions opened, %d closed", o, c)
	}
}

// TestCloseWhileStarting does not take a module for stuck that somebody else starts, or keeps closed, for long.
func TestCloseWhileStarting(t *testing.T) {
	s := newToken(t)
	backend := New()
	token, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	token.module.starting <- struct{}{}
	if err := token.Close(); err != nil {
		t.Error(err)
	}
	<-token.module.starting
	again, err := backend.open(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil || again.module.running {
		t.Errorf("the module runs without a user: %v", err)
	}
}

// copyModule returns a copy of SoftHSM's library, which the dynamic linker loads as another one. variable, as long as
// SOFTHSM2_CONF, names its configuration: two libraries with tokens in one folder would read files that the other
// writes, as they do not have the lock of one library.
func copyModule(t *testing.T, variable string) string {
	t.Helper()
	library, err := os.ReadFile(softhsmtest.Module(t))
	if err != nil {
		t.Fatal(err)
	}
	library = bytes.ReplaceAll(library, []byte("SOFTHSM2_CONF"), []byte(variable))
	path := filepath.Join(t.TempDir(), "libsofthsm2-copy.so")
	if err := os.WriteFile(path, library, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// signSome opens a key, makes some signatures and closes it; now and then with a context that ends.
func signSome(t *testing.T, backend *Backend, s *config.Settings) error {
	t.Helper()
	store, err := backend.Open(t.Context(), s)
	if err != nil {
		return err
	}
	defer store.Close()
	k, err := store.Key(t.Context(), nil)
	if err != nil {
		return err
	}
	for range rand.N(5) {
		if err := sign(t, k, strconv.Itoa(rand.Int())); err != nil {
			return err
		}
	}
	if rand.N(4) == 0 {
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		_, _ = k.Info(ctx) // whether it ends before is left to chance
		cancel()
	}
	return nil
}
