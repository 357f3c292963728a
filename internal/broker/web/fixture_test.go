package web

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/broker/session"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

const testPolicy = `
version: 1
groups:
  release-managers: [alice, bob, carol]
  security: [dave, erin]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: release
      approvals: [{group: release-managers, quorum: 2}, {group: security, quorum: 1, kinds: [key, ssh]}]
    - name: emergency
      break-glass: true
      approvals: [{group: release-managers, quorum: 2}, {group: security, quorum: 1}]
    block: [{name: security, approvals: [{group: security, quorum: 1}]}]
    unblock: [{name: security, approvals: [{group: security, quorum: 2}]}]
    modify: [{name: all, approvals: [{group: release-managers, quorum: 2}]}]
modify: [{name: all, approvals: [{group: release-managers, quorum: 2}]}]
`

// base is the URL of the page in tests.
const base = "https://broker.example.com"

// fakeBroker has what tests put into it, and counts what it is asked.
type fakeBroker struct {
	mu          sync.Mutex
	calls       int // of what reads or writes the store
	policy      string
	requests    []brokerapi.Request // oldest first
	evidence    map[string]*brokerapi.Evidence
	credentials map[string]*approval.Credential
	owners      map[string]string // of credentials
	rule        int               // of the policy, which evidence has
	late        map[string]bool   // credentials that were enrolled after all requests
	invitations map[string]string
	blocked     map[string]bool
	approved    []*approval.Envelope
	changes     []broker.Change
	people      int                                 // approvers besides
	known       func(issuer, subject string) string // nil knows no identities
}

func (b *fakeBroker) count() func() {
	b.mu.Lock()
	b.calls++
	return b.mu.Unlock
}

func (b *fakeBroker) Person(c identity.Caller) string {
	if c.Issuer == identity.IssuerApprover && strings.Contains(b.policy, c.Subject) {
		return c.Subject
	}
	if b.known != nil {
		return b.known(c.Issuer, c.Subject)
	}
	return ""
}

func (b *fakeBroker) Derive(purpose string) []byte {
	key := sha256.Sum256([]byte(purpose))
	return key[:]
}

func (b *fakeBroker) find(id string) *brokerapi.Request {
	for i := range b.requests {
		if b.requests[i].ID == id {
			return &b.requests[i]
		}
	}
	return nil
}

func (b *fakeBroker) Request(_ context.Context, _ identity.Caller, id string) (*brokerapi.Request, error) {
	defer b.count()()
	if found := b.find(id); found != nil {
		copied := *found
		return &copied, nil
	}
	return nil, failure.New(failure.NotFound, "the caller has no request %.60q", id).WithHint("use another ID")
}

func (b *fakeBroker) Requests(_ context.Context, _ identity.Caller, q broker.Query) (*brokerapi.Requests, error) {
	defer b.count()()
	page := &brokerapi.Requests{}
	for _, r := range slices.Backward(b.requests) {
		if q.Before != "" && r.ID >= q.Before || q.State != "" && q.State != string(r.State) || q.Mine && !r.Waiting ||
			q.Key != "" && q.Key != r.Key || q.Repository != "" && q.Repository != r.Repository ||
			q.Digest != "" && (r.Artifact == nil || q.Digest != r.Artifact.Digest) {
			continue
		}
		if page.Requests = append(page.Requests, r); len(page.Requests) == q.Limit {
			page.Before = r.ID
			break
		}
	}
	return page, nil
}

func (b *fakeBroker) Evidence(_ context.Context, c identity.Caller, id string) (*brokerapi.Evidence, error) {
	defer b.count()()
	found := b.evidence[id]
	if found == nil {
		return nil, failure.New(failure.NotFound, "nobody has to agree to %q", id)
	}
	copied := *found
	copied.You = "id-of-" + c.Subject
	read, err := policy.Parse([]byte(testPolicy))
	if err != nil {
		return nil, err
	}
	demanded := read.Rules(policy.Use, "release")[b.rule]
	names := approval.Names{Rule: demanded.Resolved(), Salt: strings.Repeat("0", 64), People: map[string]string{}}
	credentials := map[string][]string{}
	for _, a := range demanded.Approvals {
		for _, m := range a.Members {
			names.People["id-of-"+m.Name] = m.Name
		}
	}
	for id, owner := range b.owners {
		if !b.late[id] {
			credentials["id-of-"+owner] = append(credentials["id-of-"+owner], id)
		}
	}
	for _, all := range credentials {
		slices.Sort(all)
	}
	rule, encoded, err := names.Publish(credentials)
	if err != nil {
		return nil, err
	}
	document, err := rule.Encode()
	if err != nil {
		return nil, err
	}
	copied.Rules = map[string][]byte{approval.Hash(document): document}
	copied.Names = map[string][]byte{rule.Names: encoded}
	return &copied, nil
}

func (b *fakeBroker) Approve(_ context.Context, _ identity.Caller, id string, data []byte) (*brokerapi.Request, error) {
	defer b.count()()
	e, err := approval.DecodeEnvelope(data)
	if err != nil {
		return nil, err
	}
	b.approved = append(b.approved, e)
	return b.find(id), nil
}

func (b *fakeBroker) Cancel(_ context.Context, _ identity.Caller, id string) (*brokerapi.Request, error) {
	defer b.count()()
	b.find(id).State = brokerapi.Cancelled
	return b.find(id), nil
}

func (b *fakeBroker) Propose(_ context.Context, c identity.Caller, change broker.Change) (*brokerapi.Request, error) {
	defer b.count()()
	b.changes = append(b.changes, change)
	r := brokerapi.Request{ID: fmt.Sprintf("%032x", 1<<40+len(b.changes)), What: change.What, Key: change.Key,
		Requester: brokerapi.Requester{Issuer: c.Issuer, Subject: c.Subject}, State: brokerapi.Pending}
	b.requests = append(b.requests, r)
	return &r, nil
}

func (b *fakeBroker) Approvers(_ context.Context, after string, limit int) (*brokerapi.Approvers, error) {
	defer b.count()()
	page := &brokerapi.Approvers{}
	names := []string{"alice", "bob", "carol", "dave", "erin"}
	for i := range b.people {
		names = append(names, fmt.Sprintf("person-%06d", i))
	}
	for _, name := range names {
		if name <= after {
			continue
		}
		if len(page.Approvers) == limit {
			page.After = page.Approvers[limit-1].Name
			break
		}
		a := brokerapi.Approver{Name: name, Groups: []string{"release-managers"}}
		for id, owner := range b.owners {
			if owner == name {
				c := b.credentials[id]
				a.Credentials = append(a.Credentials, brokerapi.Credential{ID: id, Kind: string(c.Kind), Enrolled: testTime})
			}
		}
		page.Approvers = append(page.Approvers, a)
	}
	return page, nil
}

func (b *fakeBroker) Credential(_ context.Context, id string) (*approval.Credential, string, error) {
	defer b.count()()
	if c := b.credentials[id]; c != nil {
		return c, b.owners[id], nil
	}
	return nil, "", failure.New(failure.NotFound, "there is no credential %.80q", id)
}

func (b *fakeBroker) CredentialsOf(_ context.Context, person string) (map[string]*approval.Credential, error) {
	defer b.count()()
	all := map[string]*approval.Credential{}
	for id, owner := range b.owners {
		if owner == person && b.credentials[id] != nil {
			all[id] = b.credentials[id]
		}
	}
	return all, nil
}

func (b *fakeBroker) Enrol(_ context.Context, _ identity.Caller, person string, c approval.Credential, token string) (
	*brokerapi.Request, error) {
	defer b.count()()
	if b.invitations[token] != person {
		return nil, failure.New(failure.NotFound, "the invitation was used")
	}
	delete(b.invitations, token)
	b.add(person, &c)
	return &brokerapi.Request{ID: fmt.Sprintf("%032x", 7), State: brokerapi.Pending}, nil
}

// add enrols a credential.
func (b *fakeBroker) add(person string, c *approval.Credential) string {
	c.Approver, c.Salt = "id-of-"+person, strings.Repeat("0", 64)
	data, err := c.Encode()
	if err != nil {
		panic(err)
	}
	id := approval.Hash(data)
	b.credentials[id], b.owners[id] = c, person
	return id
}

func (b *fakeBroker) Invite(_ context.Context, _ identity.Caller, person string) (string, time.Time, error) {
	defer b.count()()
	b.invitations["token-of-"+person] = person
	return "token-of-" + person, testTime.Add(24 * time.Hour), nil
}

func (b *fakeBroker) Invitation(_ context.Context, token string) (string, error) {
	defer b.count()()
	if person := b.invitations[token]; person != "" {
		return person, nil
	}
	return "", failure.New(failure.NotFound, "the invitation was used, or it is too old").WithHint("ask for another")
}

func (b *fakeBroker) Policy() *brokerapi.Policy {
	return &brokerapi.Policy{Policy: b.policy, SHA256: approval.Hash([]byte(b.policy)), Since: testTime}
}

func (b *fakeBroker) Keys() []*policy.Key {
	p, err := policy.Parse([]byte(b.policy))
	if err != nil {
		panic(err)
	}
	return p.Keys()
}

func (b *fakeBroker) Blocked(key string) bool { return b.blocked[key] }

// testKeys describe keys without certificates.
type testKeys struct{}

func (testKeys) Describe(context.Context, string) (crypto.PublicKey, []*x509.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	return key.Public(), nil, nil
}

func (testKeys) Sign(context.Context, string, []byte, string) ([]byte, error) {
	panic("the page signs nothing")
}

// testTime is when tests begin.
var testTime = time.Now().UTC().Truncate(time.Second)

// fixture is a page over TLS, of a broker with what tests put into it.
type fixture struct {
	*testing.T
	broker *fakeBroker
	web    *Web
	server *httptest.Server
	rp     virtualwebauthn.RelyingParty

	mu  sync.Mutex
	now time.Time
}

func newFixture(t *testing.T, change ...func(*Options)) *fixture {
	t.Helper()
	f := &fixture{T: t, now: testTime, broker: &fakeBroker{policy: testPolicy, evidence: map[string]*brokerapi.Evidence{},
		credentials: map[string]*approval.Credential{}, owners: map[string]string{}, invitations: map[string]string{},
		blocked: map[string]bool{}}}
	o := Options{Broker: f.broker, Keys: testKeys{}, RPID: "broker.example.com", PublicURL: base, Version: "1.2.3",
		Now: f.clock, Sessions: session.New(f.broker.Derive("session"), nil, f.clock),
		Checkpoint: func(context.Context) ([]byte, error) {
			return []byte("broker.example.com/log\n42\nAAAA\n\n— broker.example.com/log signature\n"), nil
		}}
	for _, c := range change {
		c(&o)
	}
	f.serve(o)
	return f
}

// serve serves a page until the test ends.
func (f *fixture) serve(o Options) {
	f.rp = virtualwebauthn.RelyingParty{Name: "broker", ID: o.RPID, Origin: base}
	f.web = New(o)
	f.server = httptest.NewTLSServer(f.web.Handler())
	f.Cleanup(f.server.Close)
}

func (f *fixture) clock() time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.now
}

func (f *fixture) pass(d time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.now = f.now.Add(d)
}

// add adds an open request for an image, with its statement.
func (f *fixture) add(n int, change ...func(*brokerapi.Request)) *brokerapi.Request {
	f.Helper()
	until := testTime.Add(72 * time.Hour)
	r := brokerapi.Request{ID: fmt.Sprintf("%032x", n), State: brokerapi.Pending, Key: "release",
		Artifact: &brokerapi.Target{Format: "notation", MediaType: "application/vnd.oci.image.manifest.v1+json",
			Digest: fmt.Sprintf("sha256:%064x", n), Size: 1234},
		Repository: "registry.example.com/team/app", Created: testTime, Changed: testTime, NotAfter: &until,
		Requester: brokerapi.Requester{Issuer: "https://token.actions.githubusercontent.com",
			Subject: "repo:example/app:ref:refs/tags/v1.4.0", Claims: map[string]string{"run_id": "123456"}},
		Needs: []brokerapi.Need{{Action: "use", Key: "release", Alternatives: []brokerapi.Alternative{{Rule: "release",
			NotAfter: &until, Groups: []brokerapi.GroupNeed{
				{Group: "release-managers", Members: []string{"alice", "bob", "carol"}, Quorum: 2, Lacking: 2,
					Kinds: []string{"key", "ssh", "passkey"}},
				{Group: "security", Members: []string{"dave", "erin"}, Quorum: 1, Lacking: 1, Kinds: []string{"key", "ssh"}},
			}}}}},
		Waiting: true,
	}
	statement := approval.Statement{
		Subjects: []approval.Subject{{Name: r.Repository, Digest: map[string]string{"sha256": "00"}}},
		Predicate: approval.Predicate{Action: "use", Broker: base, Request: r.ID,
			Needs: []approval.Need{{Action: "use", Rules: []approval.RuleRef{}}}}}
	document, err := statement.Encode()
	if err != nil {
		f.Fatal(err)
	}
	opening := approval.Opening{Issuer: r.Requester.Issuer, Subject: r.Requester.Subject,
		Claims: map[string]string{"repository": `"example/app"`, "ref": `"refs/tags/v1.4.0"`}}
	opened, err := opening.Encode()
	if err != nil {
		f.Fatal(err)
	}
	r.Statement = approval.Hash(document)
	for _, c := range change {
		c(&r)
	}
	f.broker.evidence[r.ID] = &brokerapi.Evidence{Statement: document, Opening: opened}
	f.broker.requests = append(f.broker.requests, r)
	return &r
}

// person is a person with a passkey and a browser.
type person struct {
	*fixture
	name          string
	authenticator virtualwebauthn.Authenticator
	passkey       virtualwebauthn.Credential
	cookie        *http.Cookie
	id            string // of the credential
}

// enrol returns a person whose passkey is enrolled.
func (f *fixture) enrol(name string) *person {
	f.Helper()
	p := &person{fixture: f, name: name, passkey: newPasskey()}
	p.authenticator = virtualwebauthn.NewAuthenticatorWithOptions(virtualwebauthn.AuthenticatorOptions{
		UserHandle: f.web.handleOf(name)})
	p.id = f.broker.add(name, &approval.Credential{Kind: approval.Passkey, Public: p.passkey.Key.AttestationData(),
		Passkey: &approval.WebAuthn{AAGUID: uuid(p.authenticator.Aaguid[:]), ID: p.passkey.ID, Origins: []string{base},
			RPID: "broker.example.com"}})
	return p
}

// newPasskey returns a new passkey. virtualwebauthn leaves out zeros before coordinates, which are then too short.
func newPasskey() virtualwebauthn.Credential {
	const size = 77 // of a COSE key for P-256
	for {
		if c := virtualwebauthn.NewCredential(virtualwebauthn.KeyTypeEC2); len(c.Key.AttestationData()) == size {
			return c
		}
	}
}

// signIn returns a person who has signed in.
func (f *fixture) signIn(name string) *person {
	f.Helper()
	p := f.enrol(name)
	p.signIn()
	return p
}

// signIn begins a session.
func (p *person) signIn() {
	p.Helper()
	asked := read[question](p.fixture, p.script("/signin/begin", struct{}{}, http.StatusOK))
	p.script("/signin/finish", p.answer(asked), http.StatusOK)
	if p.cookie == nil {
		p.Fatal("there is no session")
	}
}

// read decodes JSON.
func read[T any](f *fixture, data []byte) (into T) {
	f.Helper()
	if err := json.Unmarshal(data, &into); err != nil {
		f.Fatalf("%v: %s", err, data)
	}
	return into
}

// answer returns what the person's authenticator answers.
func (p *person) answer(q question) answered {
	p.Helper()
	options := read[getOptions](p.fixture, mustJSON(q.Options))
	made := virtualwebauthn.CreateAssertionResponse(p.rp, p.authenticator, p.passkey, virtualwebauthn.AssertionOptions{
		Challenge: options.Challenge, RelyingPartyID: options.RPID})
	response := read[struct {
		RawID    string
		Response struct{ AuthenticatorData, ClientDataJSON, Signature, UserHandle string }
	}](p.fixture, []byte(made))
	decode := func(text string) []byte {
		data, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			p.Fatal(err)
		}
		return data
	}
	return answered{Document: q.Document, Seal: q.Seal, Assertion: assertion{ID: decode(response.RawID),
		UserHandle:        decode(response.Response.UserHandle),
		AuthenticatorData: decode(response.Response.AuthenticatorData),
		ClientData:        decode(response.Response.ClientDataJSON), Signature: decode(response.Response.Signature)}}
}

func mustJSON(value any) []byte {
	data, err := json.Marshal(value)
	if err != nil {
		panic(err)
	}
	return data
}

// do sends a request, and returns the answer with its body.
func (p *person) do(r *http.Request) (*http.Response, string) {
	p.Helper()
	if p.cookie != nil {
		r.AddCookie(p.cookie)
	}
	client := p.server.Client()
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	answer, err := client.Do(r)
	if err != nil {
		p.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err != nil {
		p.Fatal(err)
	}
	for _, c := range answer.Cookies() {
		if c.Name == cookie {
			if p.cookie = c; c.MaxAge < 0 {
				p.cookie = nil
			}
		}
	}
	return answer, string(body)
}

func (p *person) request(method, path, kind string, body []byte) *http.Request {
	p.Helper()
	r, err := http.NewRequestWithContext(p.Context(), method, p.server.URL+path, bytes.NewReader(body))
	if err != nil {
		p.Fatal(err)
	}
	if kind != "" {
		r.Header.Set("Content-Type", kind)
	}
	return r
}

// get fetches a page.
func (p *person) get(path string) string {
	p.Helper()
	answer, body := p.do(p.request(http.MethodGet, path, "", nil))
	if answer.StatusCode != http.StatusOK {
		p.Fatalf("GET %s: status %d: %s", path, answer.StatusCode, body)
	}
	return body
}

// script posts JSON as the script of the page does, to which the answer has this status.
func (p *person) script(path string, body any, status int) []byte {
	p.Helper()
	r := p.request(http.MethodPost, path, "application/json", mustJSON(body))
	if p.cookie != nil {
		if s, err := p.web.options.Sessions.Read(context.Background(), p.cookie.Value); err == nil {
			r.Header.Set(csrfHeader, s.CSRF)
		}
	}
	answer, text := p.do(r)
	if answer.StatusCode != status {
		p.Fatalf("POST %s: status %d, want %d: %s", path, answer.StatusCode, status, text)
	}
	return []byte(text)
}

// post posts a form with the token of the session, to which the answer has this status. It returns where it goes on.
func (p *person) post(path string, status int) string {
	p.Helper()
	s, err := p.web.options.Sessions.Read(context.Background(), p.cookie.Value)
	if err != nil {
		p.Fatal(err)
	}
	form := url.Values{csrfField: {s.CSRF}}.Encode()
	answer, body := p.do(p.request(http.MethodPost, path, "application/x-www-form-urlencoded", []byte(form)))
	if answer.StatusCode != status {
		p.Fatalf("POST %s: status %d, want %d: %s", path, answer.StatusCode, status, body)
	}
	if location := answer.Header.Get("Location"); location != "" {
		return location
	}
	return body
}
