package api

import (
	"encoding/json"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// unanswered are statuses that are described and that this test does not reach: each has its reason.
var unanswered = map[string]string{
	"408": "takes 20 seconds on a connection; the handler's test in internal/httpapi has it",
	"500": "needs a defect of the broker, and is answered wherever Guard recovers from a panic",

	"POST /v1/sessions 503": "needs a broker that stops, and then nobody reaches it",

	"POST /v1/keys/{key}/block 504":             noCheckpoint,
	"POST /v1/keys/{key}/unblock 504":           noCheckpoint,
	"POST /v1/policy 504":                       noCheckpoint,
	"POST /v1/config 504":                       noCheckpoint,
	"POST /v1/epoch 504":                        noCheckpoint,
	"POST /v1/requests/{id}/approvals 504":      noCheckpoint,
	"POST /v1/credentials 504":                  noCheckpoint,
	"POST /v1/credentials/{id}/remove 504":      noCheckpoint,
	"POST /v1/approvers/{name}/invitations 504": noCheckpoint,
}

const noCheckpoint = "takes changeTime, when the log's key is away"

// TestContract has every operation answer with the statuses that the description has for it, and with no other.
func TestContract(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ci, slow, people, admin := f.token("ci"), f.token("slow"), f.token("people"), f.admin()

	for _, path := range []string{brokerapi.VersionPath, brokerapi.HealthPath, brokerapi.ReadyPath,
		brokerapi.LogPath + "/checkpoint"} {
		f.open().want(200, get(path))
	}
	ci.want(200, get(brokerapi.KeysPath))
	ci.want(200, get(brokerapi.KeyPath("release")))
	ci.want(201, sign(1))
	ci.want(201, wish(2))
	ci.want(200, get(brokerapi.RequestsPath+"?limit=1&state=signed&key=release"))
	ci.want(200, get(brokerapi.PolicyPath))
	people.want(202, sign(3))
	made := read[brokerapi.Request](t, slow.want(201, wish(4)))
	slow.want(200, get(brokerapi.RequestPath(made.ID)))
	slow.want(200, post(brokerapi.CancelPath(made.ID), nil))
	timed := f.token("timed")
	timed.want(201, post(brokerapi.KeyPath("release")+"/block", nil))
	admin.want(201, post(brokerapi.KeyPath("release")+"/block", nil))
	admin.want(409, post(brokerapi.KeyPath("release")+"/block", nil))
	timed.want(201, post(brokerapi.KeyPath("release")+"/unblock", nil))
	ci.want(403, post(brokerapi.KeyPath("release")+"/unblock", nil))
	ci.want(403, sign(5))
	admin.want(201, post(brokerapi.KeyPath("release")+"/unblock", nil))
	policy := strings.Replace(testPolicy, "1 per day", "2 per day", 1)
	timed.want(201, post(brokerapi.PolicyPath, brokerapi.NewPolicy{Policy: policy}))
	admin.want(201, post(brokerapi.PolicyPath, brokerapi.NewPolicy{Policy: policy}))
	admin.want(409, post(brokerapi.PolicyPath, brokerapi.NewPolicy{Policy: policy}))

	f.approvals()
	f.refusals()
	f.problems()
	f.changes()

	documented, served := f.description.Operations(), f.api.operations()
	for operation, statuses := range documented {
		for _, status := range statuses {
			if !f.seen[operation+" "+status] && unanswered[status] == "" && unanswered[operation+" "+status] == "" {
				t.Errorf("%s never answered with %s", operation, status)
			}
		}
	}
	if len(served) != len(documented) {
		t.Errorf("%d operations are served, %d are described", len(served), len(documented))
	}
}

// openOperations are the operations that need no credential.
var openOperations = []string{"getVersion", "getHealth", "getReadiness", "getLogFile", "createSession"}

// freeOperations are answered whatever else the server does.
var freeOperations = []string{"getVersion", "getHealth", "getReadiness"}

// all returns one request of each operation, by its name in the description.
func (f *fixture) all() map[string]request {
	key, one := brokerapi.KeyPath("release"), brokerapi.RequestPath("r-1")
	return map[string]request{
		"listKeys": get(brokerapi.KeysPath), "getKey": get(key), "createSignature": sign(100), "createRequest": wish(100),
		"blockKey": post(key+"/block", nil), "unblockKey": post(key+"/unblock", nil),
		"listRequests": get(brokerapi.RequestsPath), "getRequest": get(one), "cancelRequest": post(one+"/cancel", nil),
		"getPolicy": get(brokerapi.PolicyPath), "proposeConfig": post(brokerapi.ConfigPath, nil),
		"proposePolicy": post(brokerapi.PolicyPath, brokerapi.NewPolicy{Policy: testPolicy}),
		"proposeEpoch":  post(brokerapi.EpochPath, nil), "getVersion": get(brokerapi.VersionPath),
		"getHealth": get(brokerapi.HealthPath), "getReadiness": get(brokerapi.ReadyPath),
		"getLogFile":  get(brokerapi.LogPath + "/checkpoint"),
		"getEvidence": get(one + "/evidence"), "listApprovers": get(brokerapi.ApproversPath),
		"getBundle":         get(one + "/bundle"),
		"forgetApprover":    post(brokerapi.ForgetPath("carol"), nil),
		"exportCredentials": get(brokerapi.CredentialsPath),
		"createApproval":    post(one+"/approvals", brokerapi.SignedApproval{Envelope: []byte("{}")}),
		"createSession":     post(brokerapi.SessionsPath, f.people["alice"].login(newLogin())),
		"createInvitation":  post(brokerapi.InvitationsPath("carol"), nil),
		"proposeCredential": post(brokerapi.CredentialsPath, newPerson(f.T, approval.Key).possession("carol")),
		"removeCredential":  post(brokerapi.CredentialPath(approval.Hash(nil))+"/remove", nil),
	}
}

// approvals has people approve, and changes who can.
func (f *fixture) approvals() {
	f.Helper()
	admin, ci := f.admin(), f.token("ci")
	made := read[brokerapi.Request](f.T, f.token("people").want(201, wish(30)))
	approves := f.decision("alice", made.ID, approval.Approve)
	if got := read[brokerapi.Request](f.T, admin.want(201, approves)); len(got.Approvals) != 1 || len(got.Needs) != 1 {
		f.Errorf("%+v", got)
	}
	admin.want(409, approves)
	admin.want(403, post(brokerapi.ApprovalsPath(made.ID), brokerapi.SignedApproval{
		Envelope: f.people["alice"].sign(encode(f.T, newLogin()), f.id("alice"))}))
	admin.want(404, get(brokerapi.EvidencePath(read[brokerapi.Request](f.T, ci.want(201, wish(31))).ID)))
	ci.want(404, get(brokerapi.BundlePath(made.ID)))
	if answer := admin.covered(made.ID); answer.Status != 200 {
		f.Errorf("%d: %s", answer.Status, answer.Body)
	}
	ci.want(404, approves)
	f.signedIn("bob").want(200, get(brokerapi.RequestsPath+"?mine=true"))

	admin.want(200, get(brokerapi.ApproversPath))
	ci.want(403, get(brokerapi.ApproversPath))
	admin.want(400, get(brokerapi.ApproversPath+"?limit=0"))
	admin.want(200, get(brokerapi.CredentialsPath+"?removed=true"))
	admin.want(409, post(brokerapi.ForgetPath("alice"), nil))
	ci.want(403, post(brokerapi.ForgetPath("somebody"), nil))
	admin.want(200, post(brokerapi.ForgetPath("somebody"), nil))
	f.signedIn("bob").want(200, get(brokerapi.CredentialsPath))
	ci.want(403, get(brokerapi.CredentialsPath))
	admin.want(400, get(brokerapi.CredentialsPath+"?limit=0"))
	stranger := newPerson(f.T, approval.SSH)
	f.open().want(403, post(brokerapi.SessionsPath, stranger.login(newLogin())))
	admin.want(201, post(brokerapi.InvitationsPath("carol"), nil))
	admin.want(404, post(brokerapi.InvitationsPath("mallory"), nil))
	ci.want(403, post(brokerapi.InvitationsPath("carol"), nil))
	ci.want(403, post(brokerapi.CredentialsPath, stranger.possession("carol")))
	admin.want(404, post(brokerapi.CredentialsPath, stranger.possession("mallory")))
	admin.want(409, post(brokerapi.CredentialsPath, f.people["bob"].possession("carol")))
	enrolled := read[brokerapi.Request](f.T,
		admin.want(201, post(brokerapi.CredentialsPath, stranger.possession("carol"))))
	if enrolled.State != brokerapi.Signed || enrolled.Person != "carol" {
		f.Errorf("%+v", enrolled)
	}
	ci.want(403, post(brokerapi.CredentialPath(enrolled.Credential)+"/remove", nil))
	admin.want(201, post(brokerapi.CredentialPath(enrolled.Credential)+"/remove", nil))
	admin.want(404, post(brokerapi.CredentialPath(enrolled.Credential)+"/remove", nil))
}

// refusals has operations refuse requests that are wrong whatever the state of the broker is.
func (f *fixture) refusals() {
	f.Helper()
	ci, admin, nobody := f.token("ci"), f.admin(), f.open()
	for name, r := range f.all() {
		if !slices.Contains(openOperations, name) {
			if answer := nobody.want(401, r); answer.Header.Get("WWW-Authenticate") != "Bearer" {
				f.Errorf("%s: %v", name, answer.Header)
			}
		}
		if r.method == http.MethodPost {
			foreign := r
			foreign.header = http.Header{"Content-Type": {"application/json"}, "Sec-Fetch-Site": {"cross-site"}}
			admin.want(403, foreign)
			foreign.header = http.Header{"Content-Type": {"text/plain"}, "Origin": {"https://example.com"}}
			admin.want(403, foreign)
		}
		wrong := r
		wrong.path += "?all=1"
		admin.want(400, wrong)
		if r.body == "" {
			wrong = r
			wrong.body = "{}"
			admin.want(400, wrong)
			continue
		}
		wrong = r
		wrong.body = "{}"
		admin.want(400, wrong)
		wrong.body, wrong.chunked = strings.Repeat(" ", 4097), true
		admin.want(413, wrong)
		wrong.chunked = false
		admin.want(413, wrong)
		wrong = r
		wrong.header = http.Header{"Content-Type": {"text/plain"}}
		admin.want(415, wrong)
	}
	for name, status := range map[string]int{"createSignature": 403, "createRequest": 403, "blockKey": 403,
		"unblockKey": 409, "proposePolicy": 403, "proposeConfig": 409, "proposeEpoch": 409} {
		f.token("nobody").want(status, f.all()[name])
	}
	other := brokerapi.KeyPath("other")
	ci.want(404, get(other))
	admin.want(404, post(other+"/block", nil))
	admin.want(404, post(other+"/unblock", nil))
	ci.want(404, post(other+"/signatures", json.RawMessage(sign(1).body)))
	elsewhere := newRequest(1)
	elsewhere.Key = "other"
	ci.want(404, post(brokerapi.RequestsPath, elsewhere))
	ci.want(404, get(brokerapi.LogPath+"/tile/0/000.p/200"))
	ci.want(403, post(brokerapi.SignaturesPath("release"), brokerapi.SignatureRequest{Payload: make([]byte, 32)}))
	ci.want(400, get(brokerapi.RequestsPath+"?limit=0"))
	ci.want(400, get(brokerapi.RequestPath("r-1")+"?wait=61"))
	unknown := newRequest(1)
	unknown.Artifact.Format = payload.Format("other")
	ci.want(400, post(brokerapi.RequestsPath, unknown))

	// A request is that of its requester.
	made := read[brokerapi.Request](f.T, f.token("slow").want(201, wish(40)))
	for _, r := range []request{get(brokerapi.RequestPath(made.ID)), get(brokerapi.RequestPath(made.ID) + "?wait=60"),
		post(brokerapi.CancelPath(made.ID), nil)} {
		ci.want(404, r)
	}
	if page := read[brokerapi.Requests](f.T, ci.want(200,
		get(brokerapi.RequestsPath+"?state=pending"))); len(page.Requests) != 0 {
		f.Errorf("requests of others are listed: %+v", page)
	}
	admin.want(200, get(brokerapi.RequestPath(made.ID)))
	admin.want(200, post(brokerapi.CancelPath(made.ID), nil))
	admin.want(409, post(brokerapi.CancelPath(made.ID), nil))
}

// problems has operations answer while parts of the broker fail.
func (f *fixture) problems() {
	f.Helper()
	ci, admin := f.token("ci"), f.admin()
	ends := []func(){}
	for i := range httpapi.MaxRequests {
		end, err := f.api.limits.Begin(f.Context(), strconv.Itoa(i))
		if err != nil {
			f.Fatal(err)
		}
		ends = append(ends, end)
	}
	for name, r := range f.all() {
		if slices.Contains(freeOperations, name) {
			admin.want(200, r)
		} else if answer := admin.want(429, r); answer.Header.Get("Retry-After") != "1" {
			f.Error(answer.Header)
		}
	}
	for _, end := range ends {
		end()
	}
	f.api.signing.Store(maxSigning)
	ci.want(429, sign(429))
	ci.want(201, wish(429))
	f.api.signing.Store(0)
	for kind, status := range map[failure.Kind]int{failure.Denied: 403, failure.Conflict: 409, failure.Internal: 500,
		failure.Unsupported: 501, failure.Unavailable: 503, failure.Timeout: 504} {
		f.keys.fail(failure.New(kind, "cannot open the token").WithHint("look at the module"))
		ci.want(status, sign(status))
		ci.want(status, wish(status))
		ci.want(status, get(brokerapi.KeyPath("release")))
		f.keys.fail(nil)
	}
	late := newRequest(1)
	late.Repository = "registry.example.com/slow"
	ci.want(504, post(brokerapi.RequestsPath, late))
	refused := f.open()
	refused.auth = "Bearer " + f.down.Mint(f.T, map[string]any{"sub": "ci", "aud": audience})
	for name, r := range f.all() {
		if !slices.Contains(openOperations, name) {
			refused.want(503, r)
		}
	}
	f.store.fail(failure.New(failure.Unavailable, "cannot read the store"))
	defer f.store.fail(nil)
	for _, name := range []string{"listRequests", "getRequest", "cancelRequest", "getEvidence", "getBundle",
		"createApproval"} {
		admin.want(503, f.all()[name])
	}
	admin.want(503, get(brokerapi.LogPath+"/tile/0/000.p/1"))
}

// changes proposes a config, and an epoch of a log that has lost entries.
func (f *fixture) changes() {
	f.Helper()
	f.stop()
	old, err := os.ReadFile(f.database)
	if err != nil {
		f.Fatal(err)
	}
	f.start(`{"other":true}`)
	propose := func(path string) {
		f.Helper()
		f.token("timed").want(201, post(path, nil))
		f.token("ci").want(403, post(path, nil))
		f.admin().want(201, post(path, nil))
	}
	propose(brokerapi.ConfigPath)
	f.stop()
	if err := os.WriteFile(f.database, old, 0o600); err != nil {
		f.Fatal(err)
	}
	f.start("{}")
	f.open().want(503, get(brokerapi.ReadyPath))
	f.admin().want(503, post(brokerapi.ConfigPath, nil))
	propose(brokerapi.EpochPath)
	f.token("ci").want(201, sign(50))
}
