package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/cli"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestRequestCommands lists, shows and cancels.
func TestRequestCommands(t *testing.T) {
	f := newFakeBroker(t)
	for _, c := range []struct{ args, call, want string }{
		{"request list --state pending --of-key release --mine --digest sha256:00 --repository a.example.com/b --limit 3",
			"GET /v1/requests?digest=sha256%3A00&key=release&limit=3&mine=true&repository=a.example.com%2Fb&state=pending",
			"r-1  pending  release  block"},
		{"request list --before r-2 --json", "GET /v1/requests?before=r-2", `"before": "r-1"`},
		{"request list", "GET /v1/requests", `older ones: --before "r-1"`},
		{"request show r-1 --json", "GET /v1/requests/r-1", `"state": "pending"`},
		{"request show r-1", "GET /v1/requests/r-1/evidence", "block of release  security  2 of security (alice, bob)  2"},
		{"request cancel r-1", "POST /v1/requests/r-1/cancel", "request r-1 is pending: it waits for approvals"},
	} {
		out, err := f.run(strings.Fields(c.args)...)
		if err != nil || !strings.Contains(out, c.want) || !slices.Contains(f.calls, c.call) {
			t.Errorf("%s: %v\n%s\n%q", c.args, err, out, f.calls)
		}
	}
	if _, err := f.run("request", "show", "r-2"); !failure.Is(err, failure.NotFound) {
		t.Error(err)
	}
	f.request.State, f.request.Needs = brokerapi.Rejected, nil // an ended request lacks nobody
	f.request.Approvals = []brokerapi.Approval{{Person: "alice", Kind: "ssh", Decision: "reject"}}
	out, err := f.run("request", "show", "r-1")
	if err != nil || !strings.Contains(out, "2 of security (alice, bob)") {
		t.Errorf("the evidence of an ended request is not shown: %v\n%s", err, out)
	}
}

// TestDecide signs a decision after a look at the evidence, in a session of its own.
func TestDecide(t *testing.T) {
	f := newFakeBroker(t)
	f.token = "" // the settings name one, and a certificate, and neither is used
	t.Setenv("NOTATION_HSM_BROKER_CERTIFICATE", "/none.pem")
	t.Setenv("NOTATION_HSM_BROKER_KEY", "/none.key")
	for _, c := range []struct {
		args     []string
		decision approval.Decision
		reason   string
	}{
		{[]string{"approve", "r-1"}, approval.Approve, ""},
		{[]string{"request", "approve", "r-1", "--json"}, approval.Approve, ""},
		{[]string{"reject", "r-1", "--reason", "not tested"}, approval.Reject, "not tested"},
		{[]string{"request", "withdraw", "r-1"}, approval.Withdraw, ""},
	} {
		out, err := f.run(append(c.args, "--ssh", f.keys["alice"], "--yes")...)
		if err != nil || !strings.Contains(out, `blocking the key "release"`) {
			t.Fatalf("%q: %v\n%s", c.args, err, out)
		}
		if slices.Contains(c.args, "--json") != json.Valid([]byte(f.stdout)) {
			t.Errorf("%q prints %s", c.args, f.stdout)
		}
		var posted brokerapi.SignedApproval
		f.body(brokerapi.ApprovalsPath("r-1"), &posted)
		envelope, err := approval.DecodeEnvelope(posted.Envelope)
		if err != nil {
			t.Fatal(err)
		}
		credential, err := approval.DecodeCredential(f.evidence.Credentials[envelope.Credential])
		if err != nil {
			t.Fatal(err)
		}
		a, err := envelope.Verify(credential)
		if err != nil || a.Approver != "id-alice" || a.Decision != c.decision || a.Reason != c.reason ||
			a.Statement != f.request.Statement {
			t.Errorf("%q: %+v, %v", c.args, a, err)
		}
	}
	if len(f.sessions) != 4 || f.sessions[0].Broker != f.URL || f.bearer != "Bearer hsm-session.s1" {
		t.Errorf("the sessions are %+v, the last call was with %q", f.sessions, f.bearer)
	}
	f.expires = time.Now() // as if the answer had taken long
	if _, err := f.run("approve", "r-1", "--ssh", f.keys["alice"], "--yes"); err != nil || len(f.sessions) != 6 {
		t.Errorf("%v; there are %d sessions", err, len(f.sessions))
	}
}

// TestDecideRefuses signs nothing for a person who is not asked, or whom the evidence does not convince.
func TestDecideRefuses(t *testing.T) {
	f := newFakeBroker(t)
	other, _ := f.sshKey("other")
	good := f.evidence
	for _, c := range []struct {
		args   string
		change func()
		want   string
	}{
		{"approve r-1 --yes", nil, "--ssh is required"},
		{"reject r-1 --yes --ssh " + f.keys["alice"], nil, "--reason is required"},
		{"approve r-1 --yes --ssh a --key b", nil, "both given"},
		{"approve r-1 --yes --ssh " + f.keys["bob"], nil, "this key is not enrolled for the caller"},
		{"approve r-1 --yes --ssh " + other, nil, "this key is not enrolled for the caller"},
		{"approve r-1 --yes --ssh " + f.keys["alice"], func() { f.evidence.Opening = []byte("{}") }, "the requester that it"},
		{"approve r-1 --yes --ssh " + f.keys["alice"], func() { f.evidence.You = "id-bob" }, "not enrolled"},
		{"approve r-1 --yes --ssh " + f.keys["alice"], func() { f.request.ID = "r-2" }, "it is another request"},
	} {
		f.evidence, f.request.ID = good, "r-1"
		if c.change != nil {
			c.change()
		}
		if _, err := f.run(strings.Fields(c.args)...); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.args, err)
		}
	}
	t.Setenv("NOTATION_HSM_BROKER_TOKEN", "")
	if _, err := f.run("request", "list"); !failure.Is(err, failure.Denied) ||
		!strings.Contains(err.Error(), "nothing says who you are") {
		t.Error(err)
	}
	if _, posted := f.bodies["POST "+brokerapi.ApprovalsPath("r-1")]; posted {
		t.Error("something was signed")
	}
	if _, err := f.run("approve", "r-1", "--ssh", f.keys["alice"], "--broker-ca", f.URL); cli.ExitCode(err) == 0 {
		t.Error(err)
	}
}

// TestAdminJSON prints for programs, and says where a change that waits is found.
func TestAdminJSON(t *testing.T) {
	f := newFakeBroker(t)
	f.answers["GET "+brokerapi.KeysPath] = brokerapi.Keys{Keys: []brokerapi.Key{{Name: "release", State: "ready"}}}
	file := f.file("policy.yaml", []byte(fakePolicy))
	for _, args := range []string{"key list", "key block release", "key unblock release", "policy apply " + file,
		"config apply", "log new-epoch"} {
		out, err := f.run(append(strings.Fields(args), "--json")...)
		if err != nil || !json.Valid([]byte(out)) {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
		if args == "key list" {
			continue
		}
		if out, err = f.run(strings.Fields(args)...); err != nil || !strings.Contains(out, f.request.URL) ||
			!strings.Contains(out, "request r-1 is pending: it waits for approvals") {
			t.Errorf("%s: %v\n%s", args, err, out)
		}
	}
	f.request.State, f.request.Rule = brokerapi.Signed, "security"
	if out, err := f.run("key", "block", "release"); err != nil ||
		out != "the key \"release\" is blocked (rule security, request r-1)\n" {
		t.Errorf("%v\n%s", err, out)
	}
}
