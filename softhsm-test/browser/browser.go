// Package browser is a person at a web browser: Debian's Chromium, headless, with passkeys of a virtual authenticator.
package browser

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// Browser is a Chromium that runs until the test ends. It is one process, which the people of a test share.
type Browser struct {
	ctx context.Context
}

// flags keep Chromium from the hosts that it asks of its own accord, which a machine without the Internet refuses.
var flags = []string{"disable-background-networking", "disable-component-update", "disable-sync", "disable-quic",
	"disable-gpu", "disable-default-apps", "disable-extensions", "disable-breakpad", "disable-dev-shm-usage",
	"disable-background-timer-throttling", "disable-renderer-backgrounding", "disable-backgrounding-occluded-windows",
	"metrics-recording-only", "no-pings"}

// Start starts Chromium for a new user, who trusts CAs in PEM files beside those that every user trusts.
func Start(t testing.TB, cas ...string) *Browser {
	t.Helper()
	program := softhsmtest.Program(t, "chromium")
	home := trusting(t, cas)
	options := []chromedp.ExecAllocatorOption{chromedp.ExecPath(program), chromedp.Headless, chromedp.NoFirstRun,
		chromedp.NoDefaultBrowserCheck, chromedp.UserDataDir(filepath.Join(home, "chromium")),
		chromedp.Env("HOME=" + home), chromedp.CombinedOutput(io.Discard)}
	for _, flag := range flags {
		options = append(options, chromedp.Flag(flag, true))
	}
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	// Not t.Context(), which ends before the cleanup.
	allocator, stop := chromedp.NewExecAllocator(context.Background(), options...)
	ctx, end := chromedp.NewContext(allocator, chromedp.WithErrorf(func(string, ...any) {}))
	t.Cleanup(func() {
		_ = chromedp.Cancel(ctx) // which waits until it has ended
		end()
		stop()
	})
	if err := chromedp.Do(ctx); err != nil {
		t.Fatalf("cannot start %s: %v", program, err)
	}
	return &Browser{ctx: ctx}
}

// trusting makes the home of a user who trusts CAs, as Chromium reads it: a database of NSS.
func trusting(t testing.TB, cas []string) (home string) {
	t.Helper()
	// Not t.TempDir(), which has the test fail when a process of Chromium outlives the one that was started, and still
	// writes.
	home, err := os.MkdirTemp("", "browser")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for range 100 {
			if os.RemoveAll(home) == nil {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
	database := filepath.Join(home, ".pki", "nssdb")
	if err := os.MkdirAll(database, 0o700); err != nil {
		t.Fatal(err)
	}
	certutil := softhsmtest.Program(t, "certutil")
	softhsmtest.Run(t, certutil, "-N", "-d", "sql:"+database, "--empty-password")
	for _, ca := range cas {
		softhsmtest.Run(t, certutil, "-A", "-d", "sql:"+database, "-n", ca, "-t", "C,,", "-i", ca)
	}
	return home
}
