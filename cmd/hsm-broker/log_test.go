package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const logOrigin = "broker.example.com/log"

// writeLog writes a log with two signatures of the key "release", and an intent without one. It returns its folder, its
// public key in a PEM file, and its verifier.
func writeLog(t *testing.T) (dir, public string, v *translog.Verifier) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var entries [][]byte
	for i, kind := range []string{"open/v1", "intent/v1", "signed/v1", "intent/v1", "signed/v1", "intent/v1", "lost/v1"} {
		event := map[string]any{"type": kind, "time": "2026-01-02T03:04:05.000Z", "key": "release", "policy": "sha256:1"}
		if i > 0 {
			event["request"] = fmt.Sprint("request-", (i+1)/2)
			event["payload"] = fmt.Sprint("sha256:", (i+1)/2)
		}
		entry, err := translog.Canonical(event)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, entry)
	}
	tree, tiles := (&translog.Tree{}).Append(entries)
	signed, err := translog.Checkpoint{Origin: logOrigin, Size: tree.Size(), Root: tree.Root()}.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	source := translog.Source{
		Tile:       func(context.Context, int, int64) ([]byte, error) { return tiles[0].Hashes, nil },
		Checkpoint: func(context.Context) ([]byte, error) { return signed, nil },
		Entries: func(_ context.Context, first, end int64, each func(int64, []byte) error) error {
			for i := first; i < end; i++ {
				if err := each(i, entries[i]); err != nil {
					return err
				}
			}
			return nil
		},
	}
	if v, err = translog.NewVerifier(logOrigin, key.Public()); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(t.TempDir(), "log")
	if _, err := translog.Export(t.Context(), source.File, dir, []*translog.Verifier{v}); err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	public = filepath.Join(t.TempDir(), "log.pem")
	if err := os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir, public, v
}

// runLog runs a subcommand of 'hsm-broker log'.
func runLog(t *testing.T, args ...string) (string, error) {
	t.Helper()
	c := command()
	var out bytes.Buffer
	c.SetArgs(append([]string{"log"}, args...))
	c.SetOut(&out)
	c.SetErr(&out)
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

// TestLogVerify verifies and exports a log from a folder and from a web server, and finds a changed byte.
func TestLogVerify(t *testing.T) {
	t.Parallel()
	dir, public, v := writeLog(t)
	server := httptest.NewServer(http.FileServer(http.Dir(dir)))
	defer server.Close()
	vkey := filepath.Join(t.TempDir(), "log.vkey")
	if err := os.WriteFile(vkey, []byte(v.String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	since := filepath.Join(dir, "checkpoint")
	for _, args := range [][]string{
		{dir, "--key", v.String()}, {server.URL, "--key", vkey},
		{dir, "--key", public, "--origin", logOrigin, "--since", since},
	} {
		out, err := runLog(t, append([]string{"verify"}, args...)...)
		if err != nil || !strings.Contains(out, "type signed/v1") {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	copied := filepath.Join(t.TempDir(), "copy")
	for range 2 {
		out, err := runLog(t, "export", server.URL, copied, "--key", vkey)
		if err != nil || !strings.Contains(out, logOrigin) {
			t.Errorf("export: %v\n%s", err, out)
		}
	}
	out, err := runLog(t, "verify", copied, "--key", vkey, "--json")
	var report translog.Report
	if err == nil {
		err = json.Unmarshal([]byte(out), &report)
	}
	if err != nil || report.Size != 7 || report.Types["intent/v1"] != 3 {
		t.Errorf("the copy: %+v: %v\n%s", report, err, out)
	}
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS() // for its certificate, of an RSA key
	defer web.Close()
	certificate := filepath.Join(t.TempDir(), "rsa.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw})
	if err := os.WriteFile(certificate, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, args := range map[string][]string{
		"a key of type *rsa.PublicKey": {"verify", dir, "--key", certificate, "--origin", logOrigin},
		"--key is required":            {"verify", dir},
		"--origin is required":         {"verify", dir, "--key", public},
		"cannot verify":                {"verify", dir, "--key", public, "--origin", "another.example.com"},
		"cannot read missing.pem":      {"verify", dir, "--key", "missing.pem"},
		"the key is of the log":        {"verify", dir, "--key", vkey, "--origin", "another.example.com"},
		"is not a folder":              {"export", dir, "https://example.com", "--key", vkey},
		"cannot read the verifier key": {"verify", dir, "--key", "a+b+c"},
		"is not the URL of a log":      {"verify", "ftp://example.com", "--key", vkey},
		"has no certificate":           {"verify", server.URL, "--key", vkey, "--ca", vkey},
		"accepts 1 arg(s), received 0": {"verify"},
		"malformed note":               {"verify", dir, "--key", vkey, "--since", public},
	} {
		if _, err := runLog(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	if _, err := runLog(t, "verify", web.URL, "--key", vkey); !strings.Contains(failure.From(err).Hint, "--ca") {
		t.Errorf("a server of an unknown CA: %v", err)
	}
	bundle := filepath.Join(copied, "tile", "entries", "000.p", "7")
	data, err = os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bundle, bytes.Replace(data, []byte(`"request-2"`), []byte(`"request-9"`), 1), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runLog(t, "verify", copied, "--key", vkey); err == nil || !strings.Contains(err.Error(), "entry 3 ") {
		t.Errorf("a changed byte: %v", err)
	}
}

// TestLogReconcile compares counters of a module with a log of two signatures and a lost use.
func TestLogReconcile(t *testing.T) {
	t.Parallel()
	dir, _, v := writeLog(t)
	for _, c := range []struct {
		args []string
		want string
		fits bool
	}{
		{[]string{"--count", "release=2"}, "as in the log", true},
		{[]string{"--count", "release=3"}, "as in the log", true},
		{[]string{"--count", "release=103", "--baseline", "release=100"}, "as in the log", true},
		{[]string{"--count", "release=4"}, "1 uses are not in the log", false},
		{[]string{"--count", "release=1"}, "did not count 1 signatures", false},
		{[]string{"--count", "release=2", "--count", "other=1"}, "1 uses are not in the log", false},
		{[]string{"--count", "release=4", "--json"}, `"unlogged": 1`, false},
	} {
		out, err := runLog(t, append([]string{"reconcile", dir, "--key", v.String()}, c.args...)...)
		if (err == nil) != c.fits || !strings.Contains(out, c.want) {
			t.Errorf("%v: %v\n%s", c.args, err, out)
		}
	}
	for _, args := range [][]string{{}, {"--count", "release"}, {"--count", "=1"}, {"--count", "release=-1"},
		{"--count", "release=1", "--count", "release=2"}, {"--count", "release=1", "--baseline", "release=2"},
		{"--count", "release=1", "--baseline", "other=2"}} {
		if _, err := runLog(t, append([]string{"reconcile", dir, "--key", v.String()}, args...)...); err == nil {
			t.Errorf("%v: no error", args)
		}
	}
}
