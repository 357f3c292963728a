package nethsm

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/nethsm/nethsmtest"
)

// TestWrongPassphrase sends a wrong passphrase once: for all goroutines and stores of a backend, to one instance.
// Another user is not affected.
func TestWrongPassphrase(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 2)
	private := ecKey(t, servers[0])
	wrong := *s
	wrong.PINSource = "env:TEST_WRONG"
	subset, n := wrong, *s.NetHSM
	n.Instances = n.Instances[1:]
	subset.NetHSM = &n
	b := warnTo(io.Discard)
	var all sync.WaitGroup
	for range 4 {
		store := openWith(t, b, &wrong)
		for range 5 {
			all.Go(func() {
				if err := sign(t.Context(), store, &private.PublicKey); !failure.Is(err, failure.Denied) ||
					!strings.Contains(err.Error(), "rejected the credentials of user operator") {
					t.Error(err)
				}
			})
		}
	}
	all.Wait()
	for name, settings := range map[string]*config.Settings{"another store": &wrong, "part of the instances": &subset,
		"another passphrase": s} {
		if err := openWith(t, b, settings).Login(t.Context()); !failure.Is(err, failure.Denied) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if all := paths("", servers...); len(all) != 1 {
		t.Errorf("the passphrase was sent %d times: %v", len(all), all)
	}
	if _, err := openWith(t, b, s).change(t.Context(), request{what: "reading", method: http.MethodGet, path: "/keys"},
		http.StatusOK); err != nil {
		t.Errorf("the administrator: %v", err)
	}
}

// TestWrongPassphraseOfPart sends a wrong passphrase once, although one of two stores names a part of the instances.
func TestWrongPassphraseOfPart(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 2)
	s.PINSource = "env:TEST_WRONG"
	part, n := *s, *s.NetHSM
	n.Instances = n.Instances[:1]
	part.NetHSM = &n
	hang := servers[0].Inject("", "/users/*", 1, nethsmtest.Hang())
	b := warnTo(io.Discard)
	var all sync.WaitGroup
	login := func(s *config.Settings) {
		store := openWith(t, b, s)
		all.Go(func() {
			if err := store.Login(t.Context()); !failure.Is(err, failure.Denied) {
				t.Error(err)
			}
		})
	}
	login(s)
	waitFor(t, func() bool { return hang.Hits() == 1 })
	login(&part)
	time.Sleep(20 * time.Millisecond) // for a request that must not be sent
	hang.Release()
	all.Wait()
	if all := paths("", servers...); len(all) != 1 {
		t.Errorf("the passphrase was sent %d times: %v", len(all), all)
	}
}

// TestUseAfterClose reads no passphrase for a store that is closed.
func TestUseAfterClose(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	store := open(t, s)
	if err := store.Close(); err != nil {
		t.Fatal(err)
	}
	if err := store.Login(t.Context()); !failure.Is(err, failure.Internal) || !strings.Contains(err.Error(), "is closed") {
		t.Errorf("a login of a closed store: %v", err)
	}
	if store.reader.secret != nil {
		t.Error("the passphrase stays in memory")
	}
	if all := paths("", servers...); len(all) != 0 {
		t.Errorf("requests: %v", all)
	}
}

// TestChangedPassphrase stops sending a passphrase that was right until it was changed on the NetHSM, in all stores.
// One that was accepted is still sent after a wrong one of another store was rejected.
func TestChangedPassphrase(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	b := warnTo(io.Discard)
	first, second := openWith(t, b, s), openWith(t, b, s)
	for _, store := range []*Store{first, second} {
		if err := sign(t.Context(), store, &private.PublicKey); err != nil {
			t.Fatal(err)
		}
	}
	wrong := *s
	wrong.PINSource = "env:TEST_WRONG"
	if err := openWith(t, b, &wrong).Login(t.Context()); !failure.Is(err, failure.Denied) {
		t.Errorf("the wrong one: %v", err)
	}
	if err := sign(t.Context(), first, &private.PublicKey); err != nil {
		t.Errorf("the right one: %v", err)
	}

	servers[0].Inject("", "/keys/*/sign", 0, nethsmtest.Respond(http.StatusUnauthorized))
	servers[0].ResetRequests()
	for _, store := range []*Store{first, first, second, openWith(t, b, s)} {
		if err := sign(t.Context(), store, &private.PublicKey); !errors.Is(err, errRejected) {
			t.Error(err)
		}
	}
	if all := paths("", servers...); len(all) != 1 {
		t.Errorf("%d requests: %v", len(all), all)
	}
}

// TestFirstUse sends an unknown passphrase in one request at a time. A caller that waits leaves when its context ends.
func TestFirstUse(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	hang := servers[0].Inject("", "/keys/*/sign", 1, nethsmtest.Hang())
	b := warnTo(io.Discard)
	stores := []*Store{openWith(t, b, s), openWith(t, b, s)}
	var all sync.WaitGroup
	all.Go(func() {
		if err := sign(t.Context(), stores[0], &private.PublicKey); err != nil {
			t.Error(err)
		}
	})
	waitFor(t, func() bool { return hang.Hits() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 6 {
		all.Go(func() {
			if err := sign(ctx, stores[i%2], &private.PublicKey); err == nil ||
				!strings.Contains(err.Error(), "interrupted while") {
				t.Error(err)
			}
		})
	}
	if n := len(paths("", servers...)); n != 1 {
		t.Errorf("%d requests before the first response", n)
	}
	cancel()
	waitFor(t, func() bool { return hang.Hits() == 1 })
	hang.Release()
	all.Wait()
	if n := len(paths("", servers...)); n != 1 {
		t.Errorf("%d requests", n)
	}
	for range 10 {
		all.Go(func() {
			if err := sign(t.Context(), stores[0], &private.PublicKey); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestAccepted takes a passphrase for right only by the response to a request in which it was checked.
func TestAccepted(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{200: true, 403: true, 404: true, 412: false, 429: false, 500: false} {
		servers, s := start(t, 1)
		servers[0].Inject("", "/users/*", 0, nethsmtest.Respond(status))
		store := open(t, s)
		if err := store.Login(t.Context()); (err == nil) != (status == 200) || store.reader.accepted != want {
			t.Errorf("%d: accepted is %v, %v", status, store.reader.accepted, err)
		}
	}
}

// TestClose waits for the requests in progress, clears the passphrase, and lets no later request use it.
func TestClose(t *testing.T) {
	t.Parallel()
	servers, s := start(t, 1)
	private := ecKey(t, servers[0])
	store, err := warnTo(io.Discard).open(s)
	if err != nil {
		t.Fatal(err)
	}
	hang := servers[0].Inject("", "/keys/*/sign", 1, nethsmtest.Hang())
	var both sync.WaitGroup
	both.Go(func() {
		if err := sign(t.Context(), store, &private.PublicKey); err != nil {
			t.Errorf("a request in progress: %v", err)
		}
	})
	waitFor(t, func() bool { return hang.Hits() == 1 })
	both.Go(func() { store.Close() })
	waitFor(t, func() bool {
		store.reader.mu.Lock()
		defer store.reader.mu.Unlock()
		return store.reader.err != nil
	})
	if n := len(store.reader.secret.Bytes()); n != len(operatorPassphrase) {
		t.Errorf("%d bytes of the passphrase are left during the request", n)
	}
	hang.Release()
	both.Wait()
	if n := len(store.reader.secret.Bytes()); n > 0 {
		t.Errorf("%d bytes of the passphrase are left", n)
	}
	if err := sign(t.Context(), store, &private.PublicKey); err == nil || !strings.Contains(err.Error(), "is closed") {
		t.Error(err)
	}
	if n := len(paths("", servers...)); n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestPassphraseSources reads the passphrase from the settings or its source, and sends nothing without one.
func TestPassphraseSources(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*config.Settings)
		words  string // of the failure; "" for success
	}{
		"in the settings": {func(s *config.Settings) { s.PINSource, s.PIN = "", operatorPassphrase }, ""},
		"none":            {func(s *config.Settings) { s.PINSource = "none" }, "pin-source is none"},
		"not set":         {func(s *config.Settings) { s.PINSource = "" }, "no pin-source is set"},
		"withheld": {func(s *config.Settings) { s.PINSource, s.NetHSM.Withheld = "", true },
			"a PIN that is set for tokens in general is not sent"},
		"missing": {func(s *config.Settings) { s.PINSource = "env:TEST_NOT_SET" }, "TEST_NOT_SET is not set"},
	} {
		servers, s := start(t, 1)
		ecKey(t, servers[0])
		c.change(s)
		err := sign(t.Context(), open(t, s), nil)
		if c.words == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if c.words != "" && (!failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), c.words) ||
			len(servers[0].Requests()) > 0) {
			t.Errorf("%s: %v, %d requests", name, err, len(servers[0].Requests()))
		}
	}
}
