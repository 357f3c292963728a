package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// fakeBroker answers as a team's broker that has one request, to block a key, which alice and bob may approve.
type fakeBroker struct {
	t        *testing.T
	URL      string
	request  brokerapi.Request
	evidence brokerapi.Evidence
	answers  map[string]any // by method and path, besides
	keys     map[string]string
	token    string
	stdout   string    // of the last command
	expires  time.Time // of sessions

	mu       sync.Mutex
	calls    []string          // method, path and query
	bodies   map[string][]byte // of the last call, by method and path
	bearer   string            // of the last call
	sessions []*approval.Login
}

const fakePolicy = `version: 1
groups: {security: [alice, bob]}
keys:
  release:
    key: nethsm:release
    formats: [notation]
    block: [{name: security, approvals: [{group: security, quorum: 2}]}]
`

// newFakeBroker starts a broker, and has commands ask it with a token.
func newFakeBroker(t *testing.T) *fakeBroker {
	t.Helper()
	f := &fakeBroker{t: t, answers: map[string]any{}, bodies: map[string][]byte{}, keys: map[string]string{},
		token: "the.token"}
	server := httptest.NewUnstartedServer(http.HandlerFunc(f.serve))
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	server.StartTLS()
	t.Cleanup(server.Close)
	f.URL = server.URL
	ca := f.file("ca.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	for name, value := range map[string]string{"BROKER": server.URL, "BROKER_CA": ca,
		"BROKER_TOKEN": "gitlab:TEAM_TOKEN"} {
		t.Setenv("NOTATION_HSM_"+name, value)
	}
	t.Setenv("TEAM_TOKEN", f.token)
	t.Setenv("SSH_AUTH_SOCK", "")
	f.expires = time.Now().Add(15 * time.Minute)
	f.fill()
	return f
}

// file writes a file, and returns its path.
func (f *fakeBroker) file(name string, data []byte) string {
	f.t.Helper()
	path := filepath.Join(f.t.TempDir(), name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		f.t.Fatal(err)
	}
	return path
}

// document returns the encoding of a document and its hash.
func (f *fakeBroker) document(d interface{ Encode() ([]byte, error) }) ([]byte, string) {
	f.t.Helper()
	data, err := d.Encode()
	if err != nil {
		f.t.Fatal(err)
	}
	return data, approval.Hash(data)
}

// sshKey makes an SSH key. It returns the file of the private key, and the public key.
func (f *fakeBroker) sshKey(name string) (path string, public []byte) {
	f.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, name)
	if err != nil {
		f.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromSigner(private)
	if err != nil {
		f.t.Fatal(err)
	}
	return f.file(name, pem.EncodeToMemory(block)), signer.PublicKey().Marshal()
}

// fill makes the request and its evidence. The caller is alice, who has an SSH key.
func (f *fakeBroker) fill() {
	f.t.Helper()
	salt := strings.Repeat("00", 32)
	e := brokerapi.Evidence{Rules: map[string][]byte{}, Names: map[string][]byte{}, Credentials: map[string][]byte{},
		You: "id-alice"}
	parsed, err := policy.Parse([]byte(fakePolicy))
	if err != nil {
		f.t.Fatal(err)
	}
	names := &approval.Names{Rule: parsed.Rules(policy.Block, "release")[0].Resolved(), Salt: salt,
		People: map[string]string{}}
	credentials := map[string][]string{}
	for _, name := range []string{"alice", "bob"} {
		path, public := f.sshKey(name)
		c := &approval.Credential{Approver: "id-" + name, Kind: approval.SSH, Public: public, Salt: salt}
		data, hash := f.document(c)
		f.keys[name], e.Credentials[hash] = path, data
		names.People["id-"+name], credentials["id-"+name] = name, []string{hash}
	}
	rule, encoded, err := names.Publish(credentials)
	if err != nil {
		f.t.Fatal(err)
	}
	e.Names[rule.Names] = encoded
	data, ruleHash := f.document(rule)
	e.Rules[ruleHash] = data
	var opening string
	e.Opening, opening = f.document(&approval.Opening{Issuer: "unix", Subject: "1000", Salt: salt})
	var statement string
	e.Statement, statement = f.document(&approval.Statement{
		Subjects: []approval.Subject{{Name: "release", Digest: map[string]string{"sha256": "00"}}},
		Predicate: approval.Predicate{Action: "block", Broker: f.URL, Change: &approval.Change{What: "block"},
			Created: 1900000000, Key: &approval.KeyName{Name: "release", Formats: []string{"notation"}}, Log: "log",
			Needs: []approval.Need{{Action: "block", Key: "release",
				Rules: []approval.RuleRef{{Digest: ruleHash, Name: "security"}}}},
			Nonce: salt, NotAfter: 1900259200, Request: "r-1",
			Requester: approval.Requester{Commitment: opening, ID: "id-root"}}})
	f.evidence = e
	f.request = brokerapi.Request{ID: "r-1", State: brokerapi.Pending, Key: "release", What: "block", Statement: statement,
		Reason: "it waits for approvals: 2 of security", URL: "https://broker.example.com/requests/r-1",
		Requester: brokerapi.Requester{Issuer: "unix", Subject: "1000"}, Created: time.Unix(1900000000, 0),
		Needs: []brokerapi.Need{{Action: "block", Key: "release", Alternatives: []brokerapi.Alternative{{Rule: "security",
			Groups: []brokerapi.GroupNeed{{Group: "security", Members: []string{"alice", "bob"}, Quorum: 2, Lacking: 2}}}}}}}
}

func (f *fakeBroker) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		f.t.Error(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	call := r.Method + " " + r.URL.Path
	f.calls, f.bodies[call], f.bearer = append(f.calls, r.Method+" "+r.URL.String()), body, r.Header.Get("Authorization")
	answer, exists := f.answers[call]
	switch {
	case exists:
	case call == "POST "+brokerapi.SessionsPath:
		answer = f.signIn(body)
	case f.bearer != "Bearer "+f.token && f.bearer != "Bearer hsm-session.s1":
		f.t.Errorf("%s with the credential %q", call, f.bearer)
	case call == "GET "+brokerapi.RequestPath("r-1"), strings.HasPrefix(call, "POST /"):
		answer = f.request
	case call == "GET "+brokerapi.RequestsPath:
		answer = brokerapi.Requests{Requests: []brokerapi.Request{f.request}, Before: "r-1"}
	case call == "GET "+brokerapi.EvidencePath("r-1"):
		answer = f.evidence
	}
	if answer == nil {
		w.Header().Set("Content-Type", brokerapi.ProblemType)
		w.WriteHeader(http.StatusNotFound)
		answer = brokerapi.Problem{Status: 404, Kind: "not-found", Detail: "there is nothing"}
	} else {
		w.Header().Set("Content-Type", "application/json")
	}
	_ = json.NewEncoder(w).Encode(answer)
}

// signIn checks a login, and returns a session.
func (f *fakeBroker) signIn(body []byte) any {
	var login brokerapi.Login
	if err := json.Unmarshal(body, &login); err != nil {
		f.t.Error(err)
		return nil
	}
	envelope, err := approval.DecodeEnvelope(login.Envelope)
	if err != nil {
		f.t.Error(err)
		return nil
	}
	read, err := envelope.VerifyPossession(approval.Kind(login.Kind), login.Public)
	if err != nil {
		f.t.Error(err)
		return nil
	}
	f.sessions = append(f.sessions, read)
	return brokerapi.Session{Token: "s1", Person: "alice", Expires: f.expires}
}

// body returns what was posted to a path at last.
func (f *fakeBroker) body(path string, into any) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := json.Unmarshal(f.bodies["POST "+path], into); err != nil {
		f.t.Fatalf("%s: %q: %v", path, f.bodies["POST "+path], err)
	}
}

// run runs a command, and returns what it prints.
func (f *fakeBroker) run(args ...string) (output string, err error) {
	f.t.Helper()
	var out, errors bytes.Buffer
	c := command()
	c.SetArgs(args)
	c.SetOut(&out)
	c.SetErr(&errors)
	err = c.ExecuteContext(f.t.Context())
	f.stdout = out.String()
	return f.stdout + errors.String(), err
}
