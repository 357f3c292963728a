package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/audit"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/softhsm-test/signedlog"
)

// TestAudit audits a repository against a log at a URL and in a folder, before and after a signature that is not in it.
func TestAudit(t *testing.T) {
	a := newApproved(t)
	claims := a.sign()
	log, err := signedlog.New()
	if err != nil {
		t.Fatal(err)
	}
	repository := a.memory.Address + "/app"
	if err := log.Append(entry.Event{Type: entry.Opened, Origin: signedlog.Origin}); err != nil {
		t.Fatal(err)
	}
	logged := func(id, payload, signature string) {
		t.Helper()
		if err := log.Append(
			entry.Event{Type: entry.Intended, Request: id, Payload: payload, Digest: claims.Digest, Repository: repository},
			entry.Event{Type: entry.Signed, Request: id, Payload: payload, Signature: signature}); err != nil {
			t.Fatal(err)
		}
	}
	server := httptest.NewServer(translog.Handler(log.File, func(w http.ResponseWriter, _ *http.Request, _ error) {
		w.WriteHeader(http.StatusNotFound)
	}))
	defer server.Close()
	key, err := log.Verifier()
	if err != nil {
		t.Fatal(err)
	}
	run := func(from string, more ...string) (string, error) {
		t.Helper()
		return execute(t, append([]string{"audit", repository, "--plain-http", "--log", from, "--key", key.String()},
			more...)...)
	}
	logged("r-1", claims.Payload, claims.Signature.Signature)
	signed := a.request.Bundle().Entries
	first, err := entry.Decode(signed[len(signed)-1].Entry)
	if err != nil {
		t.Fatal(err)
	}

	out, err := run(server.URL)
	want := fmt.Sprintf("1 of 2 signatures in %s are not in the log %s", repository, signedlog.Origin)
	if !failure.Is(err, failure.Conflict) || err.Error() != want || !strings.Contains(out, "  reason ") ||
		!strings.Contains(out, "  tag          v1\n") {
		t.Errorf("%v\n%s", err, out)
	}
	logged("r-2", first.Payload, first.Signature)
	logged("r-3", "sha256:"+strings.Repeat("3", 64), "sha256:"+strings.Repeat("4", 64))
	if out, err = run(server.URL); err != nil || !strings.Contains(out, "ONLY IN THE LOG") {
		t.Errorf("%v\n%s", err, out)
	}

	folder := filepath.Join(t.TempDir(), "log")
	files, err := translog.URL(server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := translog.Export(t.Context(), files, folder, []*translog.Verifier{key}); err != nil {
		t.Fatal(err)
	}
	if _, err = execute(t, "audit", repository, "--log", folder, "--key", key.String()); err == nil ||
		!strings.Contains(failure.From(err).Hint, "--plain-http") {
		t.Errorf("audit without --plain-http: %v: %s", err, failure.From(err).Hint)
	}
	line := filepath.Join(t.TempDir(), "log.key")
	writeFile(t, line, []byte(key.String()+"\n"))
	if out, err = execute(t, "audit", repository, "--plain-http", "--log", folder, "--key", line, "--origin",
		signedlog.Origin); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
	cert := filepath.Join(t.TempDir(), "cert.pem")
	writeFile(t, cert, a.us.PEM())
	var report audit.Report
	if out, err = run(folder, "--json", "--cert", cert); err != nil || json.Unmarshal([]byte(out), &report) != nil ||
		report.Signatures != 2 || len(report.Incidents) != 0 || report.AbsentCount != 1 {
		t.Errorf("%v\n%s", err, out)
	}
	for _, more := range [][]string{{"--manifest", "missing.yaml"}, {"--cert", "missing.pem"}} {
		if _, err := run(folder, more...); !failure.Is(err, failure.NotFound) {
			t.Errorf("%q: %v", more, err)
		}
	}
}
