package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// TestLogMonitor has an exit code for no alert, for alerts, and for a log that does not answer.
func TestLogMonitor(t *testing.T) {
	dir, public, _ := writeLog(t)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	state, config := t.TempDir(), filepath.Join(t.TempDir(), "monitor.yaml")
	run := func(log string, want int, args ...string) string {
		t.Helper()
		all := append([]string{"monitor", log, "--once", "--key", public, "--origin", logOrigin}, args...)
		out, err := runLog(t, all...)
		code := 0
		if err != nil {
			code = cli.ExitCode(err)
		}
		if code != want {
			t.Errorf("exit code %d instead of %d: %v", code, want, err)
		}
		return out
	}
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(config, []byte("version: 1\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	run(server.URL, 2)
	run(server.URL, 1, "--state", state) // no policy is listed
	if out := run(server.URL, 0, "--state", state); !strings.Contains(out, "7 entries, no alerts") {
		t.Error(out)
	}
	write("state: " + t.TempDir() + "\nkeys: {release: {approvals: 2}}\noff: [policy, unlogged]\n")
	run(server.URL, 1, "--config", config)
	run(dir, 0, "--config", config)
	write("state: " + t.TempDir() + "\nkeys: {release: {}}\noff: [policy, unlogged]\n")
	run(dir, 4, "--config", config, "--compare", filepath.Join(dir, "missing"))
	run(dir, 0, "--config", config, "--compare", filepath.Join(dir, "checkpoint"), "--compare", server.URL)
	checkpoint, err := os.ReadFile(filepath.Join(dir, "checkpoint"))
	if err != nil {
		t.Fatal(err)
	}
	bundle, err := (&proof.Bundle{Checkpoint: string(checkpoint)}).Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "bundle.json")
	for text, want := range map[string]int{string(bundle): 0, string(bundle[1:]): 3, "{}": 1} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		run(dir, want, "--config", config, "--compare", file)
	}
	write("stat: " + t.TempDir() + "\n")
	run(dir, 1, "--config", config)
	run(server.URL+"/none", 5, "--state", state)
}
