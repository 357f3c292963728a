package main

import (
	"crypto/elliptic"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// approved is a signed image in a registry, and the broker that made its signature.
type approved struct {
	t       *testing.T
	memory  *oci.Memory
	us      *oci.Forger
	image   ocispec.Descriptor
	log     *prooftest.Log
	people  []*prooftest.Person
	request *prooftest.Request
	bundle  []byte
	early   atomic.Int32 // answers before the log covers the request
}

// newApproved signs an image with the approvals of alice and bob.
func newApproved(t *testing.T) *approved {
	t.Helper()
	us, err := oci.NewForger("us", "")
	if err != nil {
		t.Fatal(err)
	}
	a := &approved{t: t, memory: oci.StartMemory(), us: us, log: prooftest.NewLog(t)}
	t.Cleanup(a.memory.Close)
	a.image = a.memory.Put(ocispec.MediaTypeImageManifest, []byte(`{"schemaVersion":2,"layers":[]}`), "v1")
	for i, name := range []string{"alice", "bob"} {
		a.people = append(a.people, prooftest.KeyPerson(t, name, prooftest.Key(elliptic.P256(), byte(i+1))))
	}
	claims := a.sign()
	a.request = a.log.NewRequest("release", claims.Leaf, []string{claims.Digest},
		func(s *approval.Statement, _ *entry.Event) { s.Predicate.Targets[0].Size = a.image.Size })
	for i, p := range a.people {
		a.request.Decide(p, approval.Approve, byte(i))
	}
	a.request.Sign(claims.Signature, nil)
	a.bundle = prooftest.Encode(t, a.request.Bundle())
	return a
}

func (a *approved) name() string { return a.memory.Address + "/app:v1" }

// sign makes a signature of the image, without approvals.
func (a *approved) sign() *attach.Claims {
	a.t.Helper()
	envelope, err := a.us.Sign(jws.MediaTypeEnvelope, a.image, nil)
	if err != nil {
		a.t.Fatal(err)
	}
	manifest, err := oci.SignatureManifest(a.memory.Put(jws.MediaTypeEnvelope, envelope, ""), a.image, time.Now())
	if err != nil {
		a.t.Fatal(err)
	}
	a.memory.Put(ocispec.MediaTypeImageManifest, manifest, "")
	claims, err := attach.Verify(jws.MediaTypeEnvelope, envelope)
	if err != nil {
		a.t.Fatal(err)
	}
	return claims
}

// serve starts a broker with the request, and one that nobody has to agree to.
func (a *approved) serve() {
	a.t.Helper()
	problem := func(w http.ResponseWriter, status int, kind string) {
		w.Header().Set("Content-Type", brokerapi.ProblemType)
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(brokerapi.Problem{Status: status, Kind: kind, Detail: kind})
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		answer := any(nil)
		target := &brokerapi.Target{Format: "notation", Digest: a.image.Digest.String()}
		switch r.URL.Path {
		case brokerapi.RequestsPath:
			answer = brokerapi.Requests{Requests: []brokerapi.Request{
				{ID: "r-2", State: brokerapi.Signed, Key: "other", Artifact: target},
				{ID: a.request.ID, State: brokerapi.Signed, Key: "release", Artifact: target}}}
		case brokerapi.BundlePath(a.request.ID):
			if a.early.Add(-1) >= 0 {
				problem(w, http.StatusServiceUnavailable, failure.Unavailable.String())
				return
			}
			answer = brokerapi.Bundle{Bundle: a.bundle}
		default:
			problem(w, http.StatusNotFound, failure.NotFound.String())
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(answer)
	}))
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	server.StartTLS()
	a.t.Cleanup(server.Close)
	ca := filepath.Join(a.t.TempDir(), "ca.pem")
	writeFile(a.t, ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	for name, value := range map[string]string{"NOTATION_HSM_BROKER": server.URL, "NOTATION_HSM_BROKER_CA": ca,
		"NOTATION_HSM_BROKER_TOKEN": "gitlab:TEAM_TOKEN", "TEAM_TOKEN": "the.token"} {
		a.t.Setenv(name, value)
	}
}

func writeFile(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// trust writes a trust directory that demands a quorum of alice and bob, and returns it.
func (a *approved) trust(quorum int) string {
	a.t.Helper()
	var approvers []map[string]any
	for _, p := range a.people {
		public := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: p.Credential.Public})
		approvers = append(approvers, map[string]any{"name": p.Name, "id": p.ID, "credentials": []map[string]any{
			{"kind": "key", "public": string(public), "salt": p.Credential.Salt}}})
	}
	data, err := json.Marshal(map[string]any{"version": 1, "exports": []map[string]any{{"approvers": approvers,
		"approvals": []map[string]any{{"scope": a.memory.Address + "/app", "log": []string{a.log.Verifier().String()},
			"groups": []map[string]any{{"name": "managers", "members": []string{"alice", "bob"}, "quorum": quorum,
				"kinds": []string{"key"}}}}}}}})
	if err != nil {
		a.t.Fatal(err)
	}
	folder := a.t.TempDir()
	writeFile(a.t, filepath.Join(folder, "approvals.json"), data)
	return folder
}

// run runs hsm-image approvals, and fails unless it prints a text or ends with a failure of a kind.
func (a *approved) run(want string, kind failure.Kind, args ...string) string {
	a.t.Helper()
	out, err := execute(a.t, append([]string{"approvals"}, args...)...)
	if kind == 0 && err != nil || kind != 0 && !failure.Is(err, kind) || !strings.Contains(out, want) {
		a.t.Errorf("%q: %v\n%s", args, err, out)
	}
	return out
}

// TestApprovals attaches the approvals of an image from the broker, shows them and verifies them.
func TestApprovals(t *testing.T) {
	a := newApproved(t)
	a.serve()
	a.early.Store(1)
	a.run("attached: the approvals", 0, "attach", "--plain-http", a.name())
	a.run("has already: the approvals", 0, "attach", "--plain-http", "--request", a.request.ID, a.name())
	a.run("", failure.NotFound, "attach", "--plain-http", "--request", "r-2", a.name())

	shown := a.run("not verified", 0, "show", "--plain-http", a.name())
	for _, part := range []string{"request " + a.request.ID, "release 1.0", a.people[0].ID, `"looks good to bob"`,
		"broker.example.com/log", "signer      "} {
		if !strings.Contains(shown, part) {
			t.Errorf("show has no %q:\n%s", part, shown)
		}
	}
	text := a.run("", 0, "show", "--plain-http", "--json", a.name())
	var report approvalsReport
	if err := json.Unmarshal([]byte(text), &report); err != nil || report.Verified || len(report.Approvals) != 1 ||
		len(report.Approvals[0].Approvers) != 2 || report.Approvals[0].Approvers[0].Kind != "key" {
		t.Errorf("%v: %s", err, text)
	}

	verified := a.run(": approved\n", 0, "verify", "--plain-http", "--trust-dir", a.trust(2), a.name())
	if !strings.Contains(verified, "alice, ") || !strings.Contains(verified, "bob, ") {
		t.Errorf("verify names nobody:\n%s", verified)
	}
	a.people[1] = prooftest.KeyPerson(t, "bob", prooftest.Key(elliptic.P256(), 9)) // with another key
	a.run(": not approved\n", failure.Denied, "verify", "--plain-http", "--trust-dir", a.trust(2), a.name())
	a.run(": approved\n", 0, "verify", "--plain-http", "--trust-dir", a.trust(1), a.name())
	text = a.run("", failure.Denied, "verify", "--plain-http", "--json", "--trust-dir", a.trust(2), a.name())
	report = approvalsReport{}
	if err := json.Unmarshal([]byte(text), &report); err != nil || report.Verified || len(report.Refused) != 1 ||
		!strings.Contains(report.Refused[0].Reason, "bob") {
		t.Errorf("%v: %s", err, text)
	}
	a.run("", failure.Invalid, "verify", "--plain-http", "--trust-dir", t.TempDir(), a.name()) // demands nothing
	a.run("", failure.NotFound, "verify", "--plain-http", "--trust-dir", filepath.Join(t.TempDir(), "none"), a.name())
}

// TestApprovalsFile takes a bundle to a file, and attaches it from there to the signature that it is of.
func TestApprovalsFile(t *testing.T) {
	a := newApproved(t)
	a.serve()
	file := filepath.Join(t.TempDir(), "approvals.json")
	a.run("", 0, "get", a.request.ID, "--to", file)
	if data, err := os.ReadFile(file); err != nil || string(data) != string(a.bundle) {
		t.Errorf("%v: %d bytes", err, len(data))
	}
	a.sign() // the PIN alone
	a.run("", failure.NotFound, "show", "--plain-http", a.name())
	out := a.run("attached: the approvals", 0, "attach", "--plain-http", "--file", file, a.name())
	if strings.Count(out, "\n") != 1 {
		t.Errorf("attached to other signatures:\n%s", out)
	}
	other := newApproved(t)
	a.run("", failure.NotFound, "attach", "--plain-http", "--file", file, other.name())
	a.run("", failure.NotFound, "show", "--plain-http", other.name())
	writeFile(t, file, []byte("{}"))
	a.run("", failure.Invalid, "attach", "--plain-http", "--file", file, a.name())
	_, err := execute(t, "approvals", "attach", "--plain-http", "--file", file, a.name())
	if err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(failure.From(err).Hint, "approvals get") {
		t.Errorf("attach of a file that is no bundle: %v", err)
	}
	if _, err = execute(t, "approvals", "show", a.name()); !strings.Contains(failure.From(err).Hint, "--plain-http") {
		t.Errorf("show without --plain-http: %v: %s", err, failure.From(err).Hint)
	}
	a.run("", failure.NotFound, "attach", "--plain-http", "--file", file, a.memory.Address+"/app:v2")
	a.run("", failure.Invalid, "attach", "--plain-http", "--file", file, a.memory.Address+"/app")
}

// TestApprovalsUnsigned verifies that the bundle of a request without a signature is not taken.
func TestApprovalsUnsigned(t *testing.T) {
	a := newApproved(t)
	b, err := proof.Decode(a.bundle)
	if err != nil {
		t.Fatal(err)
	}
	b.Entries = b.Entries[:len(b.Entries)-1]
	a.bundle = prooftest.Encode(t, b)
	a.serve()
	file := filepath.Join(t.TempDir(), "approvals.json")
	a.run("", failure.NotFound, "get", a.request.ID, "--to", file)
	if _, err := os.Stat(file); err == nil {
		t.Error("the file is written")
	}
}

// TestApprovalsOfAnother verifies that a bundle that names the payload of the image's signature, and not its value, is
// not attached and does not verify.
func TestApprovalsOfAnother(t *testing.T) {
	a := newApproved(t)
	b, err := proof.Decode(a.bundle)
	if err != nil {
		t.Fatal(err)
	}
	last := &b.Entries[len(b.Entries)-1]
	at := strings.Index(string(last.Entry), `"signature":"sha256:`) + len(`"signature":"sha256:`)
	last.Entry = []byte(string(last.Entry[:at]) + strings.Repeat("0", 64) + string(last.Entry[at+64:]))
	file := filepath.Join(t.TempDir(), "approvals.json")
	writeFile(t, file, prooftest.Encode(t, b))
	a.run("", failure.NotFound, "attach", "--plain-http", "--file", file, a.name())
}
