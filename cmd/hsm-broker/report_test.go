package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// runReport runs 'hsm-broker report', and returns its standard output.
func runReport(t *testing.T, args ...string) (string, error) {
	t.Helper()
	c := command()
	var out bytes.Buffer
	c.SetArgs(append([]string{"report"}, args...))
	c.SetOut(&out)
	c.SetErr(&bytes.Buffer{})
	err := c.ExecuteContext(t.Context())
	return out.String(), err
}

// TestReport makes reports of a log, and verifies one with the log and without.
func TestReport(t *testing.T) {
	t.Parallel()
	dir, public, v := writeLog(t)
	file := filepath.Join(t.TempDir(), "report.json")
	of := []string{"--log", dir, "--key", v.String(), "--from", "2026-01-01", "--to", "2026-02-01T00:00:00+01:00"}
	for format, want := range map[string]string{"html": "Signature lost",
		"csv":  "lost,lost,2026-01-02T03:04:05.000Z,release",
		"json": `"exception":"no-approvals"`} {
		out, err := runReport(t, append(of, "--format", format)...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: %v\n%s", format, err, out)
		}
	}
	if _, err := runReport(t, append(of, "--format", "json", "--output", file)...); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	for want, args := range map[string][]string{"not verified: give --log": nil,
		"yes: the log makes these lines": {"--log", dir},
		`"complete": true`:               {"--log", dir, "--json"}} {
		out, err := runReport(t, append([]string{"verify", file, "--key", public, "--origin", logOrigin}, args...)...)
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("%v: %v\n%s", args, err, out)
		}
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, bytes.Replace(data, []byte(`"key":"release"`), []byte(`"key":"nightly"`), 1),
		0o600); err != nil {
		t.Fatal(err)
	}
	_, err = runReport(t, "verify", file, "--key", v.String())
	if err == nil || failure.From(err).Kind != failure.Conflict || !strings.Contains(err.Error(), "line 2 of the report") {
		t.Errorf("a changed report: %v", err)
	}
	for want, args := range map[string][]string{
		"--log is required":              {"--from", "2026-01-01", "--to", "2026-02-01"},
		"--from is required":             {"--log", dir},
		"--to is required":               {"--log", dir, "--from", "2026-01-01"},
		"--key is required":              {"--log", dir, "--from", "2026-01-01", "--to", "2026-02-01"},
		"is no day or time":              append([]string{"--from", "January"}, of[:4]...),
		"is not html, csv or json":       append([]string{"--format", "pdf"}, of...),
		"before it begins":               {"--log", dir, "--key", v.String(), "--from", "2026-02-01", "--to", "2026-01-01"},
		"cannot read missing.json":       {"verify", "missing.json", "--key", v.String()},
		"is not the beginning of a repo": {"verify", public, "--key", v.String()},
	} {
		if _, err := runReport(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
}

// TestReportNames asks the broker for names.
func TestReportNames(t *testing.T) {
	f := newFakeBroker(t)
	dir, _, v := writeLog(t)
	f.answers["GET "+brokerapi.ApproversPath] = brokerapi.Approvers{Approvers: []brokerapi.Approver{{Name: "alice",
		ID: "id-alice"}}}
	f.answers["GET "+brokerapi.RequestsPath] = brokerapi.Requests{Requests: []brokerapi.Request{{ID: "request-1",
		State: brokerapi.Signed, Key: "release", Created: time.Unix(1900000000, 0),
		Requester: brokerapi.Requester{Issuer: "https://ci.example.com", Subject: "app"},
		Artifact: &brokerapi.Target{Format: "notation", MediaType: "application/vnd.oci.image.index.v1+json",
			Digest: "sha256:" + strings.Repeat("0", 64)}}}}
	out, err := f.run("report", "--names", "--log", dir, "--key", v.String(), "--from", "2026-01-01", "--to", "2026-02-01")
	if err != nil || !strings.Contains(out, "app (https://ci.example.com)") ||
		!strings.Contains(out, "application/vnd.oci.image.index.v1&#43;json") || !strings.Contains(out, "alice") {
		t.Errorf("%v\n%s", err, out)
	}
}
