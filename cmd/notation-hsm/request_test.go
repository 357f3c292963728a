package main

import (
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

const (
	digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	image  = "registry.example.com/team/app@" + digest
)

// team answers as a team's broker that has one request.
func team(t *testing.T, request *brokerapi.Request) (created *brokerapi.NewRequest) {
	t.Helper()
	created = &brokerapi.NewRequest{}
	write := func(w http.ResponseWriter, body any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(body)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") != "Bearer the.token":
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodPost && r.URL.Path == brokerapi.RequestsPath:
			body, err := io.ReadAll(r.Body)
			if err == nil {
				err = brokerapi.ReadRequest(body, created)
			}
			if err != nil {
				t.Errorf("%s: %v", body, err)
			}
			answer := *request
			answer.State = brokerapi.Pending
			write(w, answer)
		case r.Method == http.MethodPost && r.URL.Path == brokerapi.CancelPath("r-1"), r.URL.Path ==
			brokerapi.RequestPath("r-1"):
			write(w, request)
		case r.Method == http.MethodGet && r.URL.Path == brokerapi.RequestsPath:
			write(w, brokerapi.Requests{Requests: []brokerapi.Request{*request}})
		default:
			w.Header().Set("Content-Type", brokerapi.ProblemType)
			w.WriteHeader(http.StatusNotFound)
			_ = json.NewEncoder(w).Encode(brokerapi.Problem{Status: 404, Kind: "not-found", Detail: "no such request"})
		}
	}))
	server.TLS = &tls.Config{MinVersion: tls.VersionTLS13}
	server.StartTLS()
	t.Cleanup(server.Close)
	ca := filepath.Join(t.TempDir(), "ca.pem")
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(ca, text, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{"NOTATION_HSM_BROKER": server.URL, "NOTATION_HSM_BROKER_CA": ca,
		"NOTATION_HSM_BROKER_TOKEN": "gitlab:TEAM_TOKEN", "TEAM_TOKEN": "the.token"} {
		t.Setenv(name, value)
	}
	return created
}

// TestRequestCreate leaves media type and size to the broker, and ends with the code of the request's state.
func TestRequestCreate(t *testing.T) {
	c := newCommandLine(t)
	summary := filepath.Join(t.TempDir(), "summary")
	t.Setenv("GITHUB_STEP_SUMMARY", summary)
	request := &brokerapi.Request{ID: "r-1", Key: "release", URL: "https://broker.example.com/r/r-1",
		Reason: "<b>[2](javascript:x)|\x1b[2J of managers"}
	created := team(t, request)
	for state, want := range map[brokerapi.State]int{brokerapi.Approved: 0, brokerapi.Signed: 0, brokerapi.Rejected: 3,
		brokerapi.Cancelled: 3, brokerapi.Expired: 5, brokerapi.Failed: 5, brokerapi.Pending: 5} {
		request.State = state
		code, out, errors := c.run("request", "create", "--key", "broker:release", "--image", image, "--wait", "--for", "0s",
			"--user-metadata", "build=7", "--expiry", "24h")
		if code != want || !strings.Contains(out, request.URL) || strings.Contains(out+errors, "\x1b") {
			t.Errorf("%s: %d\n%s%s", state, code, out, errors)
		}
		if !strings.Contains(errors, "waiting for "+request.URL) {
			t.Errorf("it does not say where to look: %s", errors)
		}
	}
	if created.Key != "release" || created.Repository != "registry.example.com/team/app" || created.Expiry != 86400 ||
		created.Artifact.Digest != digest || created.Artifact.Size != 0 || created.Artifact.MediaType != "" ||
		created.Artifact.Annotations["build"] != "7" {
		t.Errorf("%+v", created)
	}
	text, err := os.ReadFile(summary)
	if err != nil {
		t.Fatal(err)
	}
	if strings.ContainsAny(string(text), "<[(\x1b") || !strings.Contains(string(text), "| "+request.URL+" |") {
		t.Errorf("the summary is %s", text)
	}
	// Without --wait, a pending request is no failure.
	if code, out, errors := c.run("request", "create", "--key", "broker:release", "--image", image, "--json"); code != 0 ||
		!json.Valid([]byte(out)) {
		t.Errorf("%d\n%s%s", code, out, errors)
	}
}

// TestRequestPeople asks for the platforms of an index by a rule for emergencies, and says who has to agree.
func TestRequestPeople(t *testing.T) {
	c := newCommandLine(t)
	summary := filepath.Join(t.TempDir(), "summary")
	t.Setenv("GITHUB_STEP_SUMMARY", summary)
	groups := []brokerapi.GroupNeed{{Group: "release-managers", Members: []string{"alice", "bob"}, Quorum: 2, Lacking: 1},
		{Group: "security", Members: []string{"dave"}, Quorum: 1}}
	created := team(t, &brokerapi.Request{ID: "r-1", Key: "release", URL: "https://broker.example.com/r/r-1",
		More: []brokerapi.Target{{Digest: "sha256:" + strings.Repeat("a", 64)}}, Why: "an outage",
		Needs: []brokerapi.Need{{Action: "use", Alternatives: []brokerapi.Alternative{
			{Rule: "emergency", Groups: groups}, {Rule: "old", Groups: groups, Reason: "it has changed"}}}},
		Approvals: []brokerapi.Approval{{Person: "dave", Decision: "approve", Kind: "ssh"}}})
	code, out, errors := c.run("request", "create", "--key", "broker:release", "--image", image, "--platforms", "--rule",
		"emergency", "--reason", "an outage")
	if code != 0 || !created.Platforms || created.Rule != "emergency" || created.Reason != "an outage" {
		t.Errorf("%d, %s: %+v", code, errors, created)
	}
	text, err := os.ReadFile(summary)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"1 of release-managers (alice, bob) by rule emergency", "dave", "approve (ssh)",
		strings.Repeat("a", 64), "an outage"} {
		plain := strings.NewReplacer("&#40;", "(", "&#41;", ")", "&#58;", ":").Replace(string(text))
		if !strings.Contains(out, want) || !strings.Contains(plain, want) {
			t.Errorf("%q is missing in\n%s\n%s", want, out, plain)
		}
	}
	if strings.Contains(out, "security") || strings.Contains(out, "rule old") {
		t.Errorf("it names those who are not needed: %s", out)
	}
}

// TestRequestWrong refuses images without a digest, and what notation could not sign.
func TestRequestWrong(t *testing.T) {
	c := newCommandLine(t)
	team(t, &brokerapi.Request{ID: "r-1", State: brokerapi.Approved})
	for args, want := range map[string]string{
		"--image registry.example.com/team/app:v1":                      "a tag can be moved",
		"--image registry.example.com/team/app":                         "crane digest",
		"--image app@" + digest:                                         "invalid image",
		"--image " + image + "0":                                        "invalid image",
		"--image registry.example.com/a@sha512:00":                      "invalid image",
		"--image " + image + " --expiry 1500ms":                         "whole seconds",
		"--image " + image + " --user-metadata build":                   "KEY=VALUE",
		"--image " + image + " --user-metadata a=1 --user-metadata a=2": "KEY=VALUE",
		"":                                       "--image is required",
		"--image " + image + " --rule emergency": "--reason is required",
		"--image " + image + " --reason " + strings.Repeat("x", 1001):          "1000 are the most",
		"--image registry.example.com:5000/team/app:v1@" + digest + " --key= ": "--key is required",
	} {
		code, _, errors := c.run(append([]string{"request", "create", "--key", "broker:release"},
			strings.Fields(args)...)...)
		if code != 2 || !strings.Contains(errors, want) {
			t.Errorf("%s: %d, %s", args, code, errors)
		}
	}
	t.Setenv("XDG_RUNTIME_DIR", "")
	for _, args := range []string{"list --broker=", "create --key pkcs11:object=a --image " + image} {
		t.Setenv("NOTATION_HSM_BROKER", "")
		if code, _, errors := c.run(append([]string{"request"}, strings.Fields(args)...)...); code != 1 ||
			!strings.Contains(errors, "no broker is named") {
			t.Errorf("%s: %d, %s", args, code, errors)
		}
	}
	t.Setenv("NOTATION_HSM_BROKER", "https://127.0.0.1:1")
	if code, _, errors := c.run("request", "create", "--key", "broker:", "--image", image); code != 1 ||
		!strings.Contains(errors, "no key of the broker is named") {
		t.Errorf("%d, %s", code, errors)
	}
}

// TestRequestOthers shows, waits for, lists and cancels.
func TestRequestOthers(t *testing.T) {
	c := newCommandLine(t)
	request := &brokerapi.Request{ID: "r-1", State: brokerapi.Rejected, Key: "release", Reason: "not on Friday"}
	team(t, request)
	for _, call := range []struct {
		args string
		code int
		text string
	}{
		{"show r-1", 0, "not on Friday"},
		{"show r-1 --json", 0, `"state": "rejected"`},
		{"show r-2", 4, "no such request"},
		{"wait r-1", 3, "was rejected: not on Friday"},
		{"cancel r-1", 0, "rejected"},
		{"list --state rejected --key broker:release --limit 3", 0, "rejected"},
		{"list --json", 0, `"requests"`},
	} {
		code, out, errors := c.run(append([]string{"request"}, strings.Fields(call.args)...)...)
		if code != call.code || !strings.Contains(out+errors, call.text) {
			t.Errorf("%s: %d\n%s%s", call.args, code, out, errors)
		}
	}
	t.Setenv("TEAM_TOKEN", "")
	if code, _, errors := c.run("request", "list"); code != 4 || !strings.Contains(errors, "TEAM_TOKEN is not set") {
		t.Errorf("%d, %s", code, errors)
	}
}
