package worker

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// signs makes a signature and verifies it with the key of the fixture.
func (f *fixture) signs(ctx context.Context, k keystore.Key) error {
	digest := sha256.Sum256([]byte("payload"))
	signature, err := k.Sign(ctx, digest[:], crypto.SHA256)
	if err != nil {
		return err
	}
	if !ecdsa.VerifyASN1(f.private.Public().(*ecdsa.PublicKey), digest[:], signature) {
		return errors.New("the signature does not verify")
	}
	return nil
}

// until waits for a condition.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for range 60_000 {
		if condition() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("it never came: " + what)
}

// TestCrash ends the process in the middle of operations. What changes nothing is repeated in the next process.
func TestCrash(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	store, k := f.open(t)
	f.order(t, "Sign.crash")
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	if starts := f.logged("start"); starts != 2 {
		t.Errorf("%d processes, not 2", starts)
	}
	f.order(t, "Open.crash")
	again, err := f.backend.Open(t.Context(), &f.settings)
	if err != nil {
		t.Fatal(err)
	}
	again.Close()

	f.order(t, "Delete.crash")
	err = store.Delete(t.Context(), k, nil)
	if !failure.Is(err, failure.Unavailable) || !strings.Contains(err.Error(), "may still have taken effect") ||
		!strings.Contains(err.Error(), "signal: killed") {
		t.Error(err)
	}
	f.order(t, "Generate.crash")
	spec, _ := key.ParseSpec("EC-256")
	_, err = f.backend.Generate(t.Context(), &f.settings, key.Request{Spec: spec, Label: "other", Usage: key.Sign})
	if !failure.Is(err, failure.Unavailable) || !strings.Contains(err.Error(), "may still have taken effect") {
		t.Error(err)
	}
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// TestCrashTwice repeats a call once.
func TestCrashTwice(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, k := f.open(t)
	p := k.(*remoteKey).store.opened.Load().process
	f.order(t, "Sign.crash")
	failed := make(chan error, 1)
	go func() {
		<-p.gone
		f.order(t, "Sign.crash")
	}()
	// The second order may come after the repeated call; then the call succeeds, and another fails to crash the
	// process.
	f.order(t, "Open.wait")
	go func() { failed <- f.signs(t.Context(), k) }()
	until(t, "the store is opened again", func() bool { return f.obeyed("Open.wait") && !f.obeyed("Sign.crash") })
	f.order(t, "Open.return")
	if err := <-failed; !failure.Is(err, failure.Unavailable) || !strings.Contains(err.Error(), "while signing") {
		t.Errorf("a call that crashed two processes: %v", err)
	}
	if starts := f.logged("start"); starts != 2 {
		t.Errorf("%d processes, not 2", starts)
	}
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
}

// TestHang ends the process when a call does not return. That call fails with Timeout, and those beside it are
// repeated.
func TestHang(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	store, k := f.open(t)
	other, err := store.Key(t.Context(), k.Public())
	if err != nil {
		t.Fatal(err)
	}
	f.order(t, "Sign.wait")
	beside := make(chan error, 1)
	go func() { beside <- f.signs(t.Context(), other) }()
	until(t, "the call beside", func() bool { return f.obeyed("Sign.wait") })
	f.order(t, "Sign.hang")
	if err := f.signs(t.Context(), k); !failure.Is(err, failure.Timeout) {
		t.Errorf("a call that does not return: %v", err)
	}
	if err := <-beside; err != nil {
		t.Errorf("the call beside: %v", err)
	}
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	if starts := f.logged("start"); starts != 2 {
		t.Errorf("%d processes, not 2", starts)
	}
}

// TestFreeze ends a process that answers nothing at all.
func TestFreeze(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.settings.Timeout, f.backend.limits.margin = 50*time.Millisecond, time.Second
	_, k := f.open(t)
	f.order(t, "Sign.freeze")
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	if starts := f.logged("start"); starts != 2 {
		t.Errorf("%d processes, not 2", starts)
	}
}

// TestHelper ends the calls of a process that has crashed, though one that its module started has its connection open.
func TestHelper(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, k := f.open(t)
	f.order(t, "Sign.helper")
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	if f.logged("helper: <nil>") != 1 || f.logged("start") != 2 {
		t.Errorf("%d helpers, %d processes", f.logged("helper: <nil>"), f.logged("start"))
	}
	text, _ := os.ReadFile(filepath.Join(f.dir, "helper"))
	pid, err := strconv.Atoi(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Errorf("the helper does not run any more: %v", err)
	}
}

// TestLeave ends a process that has left its process group.
func TestLeave(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.settings.Timeout, f.backend.limits.margin = 50*time.Millisecond, time.Second
	_, k := f.open(t)
	f.order(t, "Sign.leave")
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
	if f.logged("left: <nil>") != 1 || f.logged("start") != 2 {
		t.Errorf("%d left, %d processes", f.logged("left: <nil>"), f.logged("start"))
	}
}

// TestProgress reports the progress of a long operation to its caller, while it goes on.
func TestProgress(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	store, _ := f.open(t)
	f.order(t, "Keys.wait")
	var reports []string
	ctx := keystore.WithProgress(t.Context(), func(activity string, done, total int) {
		reports = append(reports, fmt.Sprint(activity, " ", done, " ", total))
		f.order(t, "Keys.return")
	})
	if _, err := store.Keys(ctx); err != nil {
		t.Error(err)
	}
	if !slices.Equal(reports, []string{"listing keys 1 2"}) {
		t.Errorf("%q", reports)
	}
	for _, body := range []string{"", `{"Activity":"\u001b[2J"}`, `{"Activity":"` + strings.Repeat("a", 81) + `"}`} {
		_, p := pipeProcess(t, f.backend)
		if err := p.receive(frame{kind: msgProgress, body: []byte(body)}); !errors.Is(err, errFrame) {
			t.Errorf("progress %q: %v", body, err)
		}
	}
}

// TestSlow lets a process go on that answers pings, though a call takes longer than the timeout.
func TestSlow(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, k := f.open(t)
	f.order(t, "Sign.wait")
	done := make(chan error, 1)
	p := k.(*remoteKey).store.opened.Load().process
	go func() { done <- f.signs(t.Context(), k) }()
	until(t, "the call", func() bool { return f.obeyed("Sign.wait") })
	p.mu.Lock()
	before := p.last
	for _, c := range p.calls {
		c.due = time.Now()
	}
	p.mu.Unlock()
	p.watch()
	p.mu.Lock()
	pings := p.last - before
	p.mu.Unlock()
	until(t, "the answer to the ping", func() bool { p.mu.Lock(); defer p.mu.Unlock(); return len(p.calls) == 1 })
	f.order(t, "Sign.return")
	if err := <-done; err != nil || pings != 1 {
		t.Errorf("after %d pings: %v", pings, err)
	}
	if starts := f.logged("start"); starts != 1 {
		t.Errorf("%d processes, not 1", starts)
	}
}

// TestCancel ends the call of a caller who leaves, and that call alone.
func TestCancel(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, k := f.open(t)
	for _, c := range []struct {
		context func() (context.Context, context.CancelFunc)
		kind    failure.Kind
		cause   error
	}{
		{func() (context.Context, context.CancelFunc) { return context.WithCancel(t.Context()) },
			failure.Internal, context.Canceled},
		{func() (context.Context, context.CancelFunc) {
			return context.WithTimeout(t.Context(), 20*time.Millisecond)
		},
			failure.Timeout, context.DeadlineExceeded},
	} {
		f.order(t, "Sign.wait")
		ctx, cancel := c.context()
		left := make(chan error, 1)
		go func() { left <- f.signs(ctx, k) }()
		until(t, "the call", func() bool { return f.obeyed("Sign.wait") })
		if err := f.signs(t.Context(), k); err != nil {
			t.Errorf("beside a call that waits: %v", err)
		}
		if c.kind == failure.Internal {
			cancel()
		}
		if err := <-left; !failure.Is(err, c.kind) || !errors.Is(err, c.cause) {
			t.Errorf("a call whose caller left: %v", err)
		}
		cancel()
		f.order(t, "Sign.return")
		until(t, "the end of the call", func() bool { return f.obeyed("Sign.return") })
	}
	if err := f.signs(t.Context(), k); err != nil || f.logged("start") != 1 {
		t.Errorf("%d processes, %v", f.logged("start"), err)
	}
}

// TestCancelOpen has the process close a store that nobody waits for any more.
func TestCancelOpen(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.order(t, "Open.wait")
	ctx, cancel := context.WithCancel(t.Context())
	left := make(chan error, 1)
	go func() {
		_, err := f.backend.Open(ctx, &f.settings)
		left <- err
	}()
	until(t, "the call", func() bool { return f.obeyed("Open.wait") })
	cancel()
	if err := <-left; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	f.order(t, "Open.return")
	until(t, "the end of the call", func() bool { return f.obeyed("Open.return") })
	_ = f.backend.Close()
	if f.logged("closed with 0 stores") != 1 {
		t.Error("a store was left open")
	}
}

// TestStartFails starts a process a number of times in a row, and then not for a while.
func TestStartFails(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var err error
	f.order(t, "Start.exit")
	for range 20 {
		if _, err = f.backend.Open(t.Context(), &f.settings); !failure.Is(err, failure.Unavailable) {
			t.Fatal(err)
		}
	}
	if starts := f.logged("start"); starts != f.backend.limits.retries {
		t.Errorf("%d processes, not %d", starts, f.backend.limits.retries)
	}
	if !strings.Contains(err.Error(), "in a row") {
		t.Error(err)
	}
	for _, m := range f.backend.modules { // the while is over
		m.mu.Lock()
		m.next = time.Now()
		m.mu.Unlock()
	}
	_ = os.Remove(filepath.Join(f.dir, "Start.exit"))
	if _, k := f.open(t); f.signs(t.Context(), k) != nil {
		t.Error("the module works again, and is not used")
	}
}

// TestCrashLoop stops starting processes for a module that opens and then crashes at every use.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, k := f.open(t)
	var err error
	for range 20 {
		f.order(t, "Sign.crash")
		p := k.(*remoteKey).store.opened.Load().process
		if err = f.signs(t.Context(), k); err != nil {
			break
		}
		until(t, "the end of the process", func() bool { return !p.alive.Load() })
	}
	if !failure.Is(err, failure.Unavailable) || f.logged("start") != f.backend.limits.retries {
		t.Errorf("after %d processes: %v", f.logged("start"), err)
	}
}

// TestLeak starts a process 20 times. No goroutine, no descriptor and no memory is left.
func TestLeak(t *testing.T) {
	f := newFixture(t)
	f.backend.limits.settled = 1
	_, k := f.open(t)
	if err := f.signs(t.Context(), k); err != nil {
		t.Fatal(err)
	}
	goroutines, files, heap := runtime.NumGoroutine(), descriptors(t), heapSize()
	for range 20 {
		f.order(t, "Sign.crash")
		for range 2 {
			if err := f.signs(t.Context(), k); err != nil {
				t.Fatal(err)
			}
		}
	}
	if starts := f.logged("start"); starts != 21 {
		t.Errorf("%d processes, not 21", starts)
	}
	until(t, "the end of goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
	until(t, "the end of descriptors", func() bool { return descriptors(t) <= files })
	if after := heapSize(); after > heap+1<<20 {
		t.Errorf("%d bytes of memory became %d", heap, after)
	}
	_ = f.backend.Close()
	until(t, "the end of the last process", func() bool { return descriptors(t) < files })
}

// TestDroppedKeys has the process forget keys that nobody uses any more.
func TestDroppedKeys(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	store, k := f.open(t)
	for range 10 {
		if _, err := store.Key(t.Context(), k.Public()); err != nil {
			t.Fatal(err)
		}
	}
	p := k.(*remoteKey).store.opened.Load().process
	until(t, "the frames that drop keys", func() bool {
		runtime.GC()
		return p.drops.Load() >= 10
	})
	if err := f.signs(t.Context(), k); err != nil {
		t.Error(err)
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// heapSize returns the bytes of memory in use.
func heapSize() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// TestMany uses keys of many stores at once.
func TestMany(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	f.backend.limits.settled = 1
	var group sync.WaitGroup
	for range 16 {
		group.Go(func() {
			store, err := f.backend.Open(t.Context(), &f.settings)
			if err != nil {
				t.Error(err)
				return
			}
			defer store.Close()
			k, err := store.Key(t.Context(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			for range 50 {
				if err := f.signs(t.Context(), k); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	_ = f.backend.Close()
	if f.logged("closed with 0 stores") != 1 {
		t.Error("a store was left open")
	}
}

// TestClose closes stores that were left open, and lets nobody open another.
func TestClose(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	_, k := f.open(t)
	if err := f.backend.Close(); err != nil {
		t.Error(err)
	}
	if f.logged("closed with 0 stores") != 1 {
		t.Error("the process did not close its stores")
	}
	if err := f.signs(t.Context(), k); !failure.Is(err, failure.Unavailable) {
		t.Error(err)
	}
	if _, err := f.backend.Open(t.Context(), &f.settings); !failure.Is(err, failure.Unavailable) {
		t.Error(err)
	}
}

// parent is a program that opens a key and is killed.
func parent() {
	b := New(newFaulty())
	s := &config.Settings{
		Key: config.URI{Token: "signing", Object: "release"}, ModulePath: "/memory", PIN: "4321", Timeout: time.Minute,
		Env: map[string]string{dirVariable: os.Getenv(dirVariable), keyVariable: os.Getenv(keyVariable)},
	}
	store, err := b.Open(context.Background(), s)
	if err == nil {
		_, err = store.Key(context.Background(), nil)
	}
	fmt.Println(err)
	select {}
}

// TestParentKilled ends the process when its parent is killed, in order.
func TestParentKilled(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	cmd := f.parent(t)
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the end of the process", func() bool { return f.logged("closed with 0 stores") == 1 })
}

// TestByHand refuses to serve somebody who is not a parent with a keystore.
func TestByHand(t *testing.T) {
	t.Parallel()
	out, err := byHand().CombinedOutput()
	if err == nil || !strings.Contains(string(out), "is not a command") {
		t.Errorf("%v: %s", err, out)
	}
}
