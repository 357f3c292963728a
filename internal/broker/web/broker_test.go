package web

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/session"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/repository"
	"github.com/notation-hsm/notation-hsm/internal/store/sqlite"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const realPolicy = `
version: 1
groups: {managers: [alice, bob, carol, dave]}
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use: [{name: two, approvals: [{group: managers, quorum: 2}]}]
    block: [{name: another, approvals: [{group: managers, quorum: 1}]}]
    unblock: [{name: two, approvals: [{group: managers, quorum: 2}]}]
    modify: [{name: another, approvals: [{group: managers, quorum: 1}]}]
modify: [{name: another, approvals: [{group: managers, quorum: 1}]}]
`

// TestBroker has people enrol, sign in and decide on the page of a real broker.
func TestBroker(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	kept, err := sqlite.Open(t.Context(), filepath.Join(dir, "broker.db"))
	if err != nil {
		t.Fatal(err)
	}
	log, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	var first []broker.FirstApprover
	for _, name := range []string{"alice", "bob", "carol"} {
		first = append(first, broker.FirstApprover{Name: name, Invitation: approval.Hash([]byte("first " + name))})
	}
	b, err := broker.Open(t.Context(), broker.Options{Store: kept, Policy: []byte(realPolicy), Config: []byte("{}"),
		Keys: testKeys{}, First: first, PublicURL: base,
		Limits: identity.Limits{Open: 100, Requests: identity.Rate{Count: 100, Per: time.Minute}},
		Check: func(_ context.Context, _, _, mediaType string, size int64) (*repository.Claims, error) {
			return &repository.Claims{MediaType: mediaType, ManifestSize: size, Version: "1.4.0"}, nil
		},
		Log: broker.Log{Origin: "broker.example.com/log", Public: log.Public(), File: filepath.Join(dir, "checkpoint"),
			MaxUnpublished: time.Hour, MaxUnpublishedEntries: 1000,
			Sign: func(_ context.Context, c translog.Checkpoint) ([]byte, error) { return c.Sign(log) }}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(); kept.Close() })
	f := &fixture{T: t}
	f.serve(Options{Broker: b, Keys: testKeys{}, RPID: "broker.example.com", PublicURL: base, Version: "1.2.3",
		Sessions: session.New(session.NewKey(), nil, time.Now), Checkpoint: b.Log().Checkpoint})

	people := map[string]*person{}
	for _, name := range []string{"alice", "bob", "carol"} {
		people[name] = newcomer(f, name)
		if to := people[name].enrolBy("first " + name); !strings.Contains(to, "state=signed") {
			t.Fatalf("%s is enrolled: %s", name, to)
		}
		people[name].signIn()
	}
	alice, bob, carol := people["alice"], people["bob"], people["carol"]

	made, err := b.Create(t.Context(), identity.Caller{Issuer: "https://ci.example.com", Subject: "pipeline",
		Claims: map[string]any{"project_path": "team/app", "job_id": "77", "secret": "not shown"}},
		brokerapi.NewRequest{Key: "release", Repository: "registry.example.com/team/app", Artifact: brokerapi.Target{
			Format: "notation", MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 525,
			Digest: fmt.Sprintf("sha256:%064x", 7)}})
	if err != nil {
		t.Fatal(err)
	}
	page := "/requests/" + made.ID
	if body := alice.get("/"); !strings.Contains(body, page) {
		t.Error("the request does not wait for alice")
	}
	alice.decide(made.ID, approval.Approve, "")
	bob.decide(made.ID, approval.Approve, "good")
	bob.decide(made.ID, approval.Withdraw, "too early")
	contains(t, carol.get(page), "Pending", `<strong>managers</strong>: 1 of 2 still needed`, "The image claims", "1.4.0",
		"withdrew the approval", `href="https://ci.example.com/team/app/-/jobs/77"`, `id="approve"`, `href="`+page+`/proof"`)
	lacks(t, carol.get(page), "not shown")
	carol.decide(made.ID, approval.Approve, "")
	contains(t, bob.get(page), "Approved", "Enough people have agreed")
	if strings.Contains(bob.get("/"), page) {
		t.Error("the request waits for bob")
	}
	contains(t, alice.get("/requests?q=registry.example.com/team/app&state=approved"), page)

	to := alice.post("/keys/release/block", http.StatusSeeOther)
	contains(t, alice.get(to), "Block the key release", "others have to agree", `id="cancel"`)
	bob.decide(idOf(to), approval.Approve, "")
	contains(t, alice.get(to), "Done")
	contains(t, alice.get("/keys"), "Blocked", "/keys/release/unblock")

	invited := bob.post("/approvers/dave/invite", http.StatusOK)
	_, token, _ := strings.Cut(invited, base+"/enrol#")
	token, _, _ = strings.Cut(token, `"`)
	dave := newcomer(f, "dave")
	if to := dave.enrolBy(token); !strings.Contains(to, "state=pending") {
		t.Errorf("dave is enrolled: %s", to)
	}
	row := regexp.MustCompile(`href="(/requests/[0-9a-f]+)">Enrol a credential of dave`).FindStringSubmatch(carol.get("/"))
	if row == nil {
		t.Fatal("the enrolment does not wait for carol")
	}
	enrolment := idOf(row[1])
	contains(t, carol.get("/requests/"+enrolment), "Enrol a credential of dave", "not attested",
		uuid(dave.authenticator.Aaguid[:]))
	carol.decide(enrolment, approval.Approve, "")
	dave.signIn()
	contains(t, dave.get("/approvers"), `id="person-dave"`, "(you)")

	removal := "/credentials/" + credentialOf(t, b, "alice") + "/remove"
	contains(t, bob.get(removal), "Remove a credential of alice")
	to = bob.post(removal, http.StatusSeeOther)
	dave.decide(idOf(to), approval.Approve, "")
	if answer, _ := alice.do(alice.request(http.MethodGet, "/", "", nil)); answer.StatusCode != http.StatusSeeOther {
		t.Errorf("alice still has a session: %d", answer.StatusCode)
	}
	contains(t, bob.get("/log"), `id="log-size"`, "broker.example.com/log")
	contains(t, bob.get("/policy"), "managers: [alice")
	for _, path := range []string{"/", "/requests", "/keys", "/approvers", "/log", page, to} {
		checkPage(t, path, bob.get(path))
	}
}

// enrolBy enrols the passkey of a person by an invitation, and returns where the page goes on.
func (p *person) enrolBy(token string) string {
	p.Helper()
	asked := read[question](p.fixture, p.script("/enrol/begin", invited{token}, http.StatusOK))
	return read[going](p.fixture, p.script("/enrol/finish", p.make(token, asked), http.StatusOK)).Location
}

// decide decides about the request that the page shows.
func (p *person) decide(id string, d approval.Decision, reason string) {
	p.Helper()
	_, rest, _ := strings.Cut(p.get("/requests/"+id), `data-statement="`)
	statement, _, found := strings.Cut(rest, `"`)
	if !found {
		p.Fatalf("%s is not asked about %s", p.name, id)
	}
	asked := read[question](p.fixture, p.script("/requests/"+id+"/begin", deciding{d, reason, statement}, http.StatusOK))
	p.script("/requests/"+id+"/finish", p.answer(asked), http.StatusOK)
}

// contains fails for a page that lacks a text.
func contains(t *testing.T, body string, all ...string) {
	t.Helper()
	for _, text := range all {
		if !strings.Contains(body, text) {
			t.Errorf("the page lacks %s", text)
		}
	}
}

// idOf returns the ID in the path of a request.
func idOf(path string) string {
	id, _, _ := strings.Cut(strings.TrimPrefix(path, "/requests/"), "?")
	return id
}

// credentialOf returns the name of the only credential of a person.
func credentialOf(t *testing.T, b *broker.Broker, name string) string {
	t.Helper()
	all, err := b.CredentialsOf(t.Context(), name)
	if err != nil || len(all) != 1 {
		t.Fatalf("%d credentials, %v", len(all), err)
	}
	for id := range all {
		return id
	}
	return ""
}
