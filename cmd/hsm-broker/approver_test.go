package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// TestApproverCommands lists, adds, invites and removes.
func TestApproverCommands(t *testing.T) {
	f := newFakeBroker(t)
	f.answers["GET "+brokerapi.ApproversPath] = brokerapi.Approvers{Approvers: []brokerapi.Approver{
		{Name: "alice", Groups: []string{"security"}, Credentials: []brokerapi.Credential{
			{ID: "sha256:01", Kind: "ssh", Label: "SHA256:abc"}, {ID: "sha256:02", Kind: "passkey", Label: "phone"}}},
		{Name: "bob"}}}
	f.answers["GET "+brokerapi.CredentialsPath] = brokerapi.Export{Approvers: []brokerapi.Exported{{Name: "alice",
		ID: "id-alice", Credentials: [][]byte{[]byte("document")}}}}
	f.answers["POST /v1/approvers/carol/forget"] = brokerapi.Forgotten{Documents: 3, Requests: 2}
	f.answers["POST /v1/approvers/bob/invitations"] = brokerapi.Invitation{URL: "https://broker.example.com/enrol#x"}
	for _, c := range []struct{ args, call, want string }{
		{"approver list", "GET /v1/approvers", "alice   security  passkey  phone"},
		{"approver list --json", "GET /v1/approvers", `"SHA256:abc"`},
		{"approver export", "GET /v1/credentials", `"ZG9jdW1lbnQ="`},
		{"approver export --removed", "GET /v1/credentials?removed=true", `"id": "id-alice"`},
		{"approver forget carol", "POST /v1/approvers/carol/forget", "3 documents; 2 requests show the id instead of carol"},
		{"approver forget carol --json", "POST /v1/approvers/carol/forget", `"requests": 2`},
		{"approver invite bob", "POST /v1/approvers/bob/invitations", "https://broker.example.com/enrol#x"},
		{"approver remove --credential sha256:03", "POST /v1/credentials/sha256:03/remove", f.request.URL},
		{"approver remove alice", "POST /v1/credentials/sha256:02/remove", "request r-1 is pending"},
		{"approver remove alice", "POST /v1/credentials/sha256:01/remove", "request r-1 is pending"},
		{"approver add alice --ssh " + f.keys["alice"], "POST /v1/credentials", f.request.URL},
	} {
		out, err := f.run(strings.Fields(c.args)...)
		if err != nil || !strings.Contains(out, c.want) || !slices.Contains(f.calls, c.call) {
			t.Errorf("%s: %v\n%s\n%q", c.args, err, out, f.calls)
		}
	}
	var added brokerapi.NewCredential
	f.body(brokerapi.CredentialsPath, &added)
	envelope, err := approval.DecodeEnvelope(added.Possession)
	if err != nil {
		t.Fatal(err)
	}
	login, err := envelope.VerifyPossession(approval.SSH, added.Public)
	if err != nil || login.Broker != f.URL || added.Person != "alice" || added.Kind != "ssh" {
		t.Errorf("%+v, %+v, %v", added, login, err)
	}
	for args, want := range map[string]string{
		"approver remove bob":                       "has no credentials",
		"approver remove":                           "name a person, or a credential",
		"approver remove bob --credential sha256:0": "name a person, or a credential",
		"approver add alice":                        "--ssh is required",
	} {
		if _, err := f.run(strings.Fields(args)...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", args, err)
		}
	}
}
