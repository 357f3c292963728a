package demand

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	"github.com/notation-hsm/notation-hsm/internal/trust"
)

const id = "00112233445566778899aabbccddeeff"

// approver returns alice with an SSH key as trust reads her from an export, and the hash of her credential.
func approver(t *testing.T) (alice trust.Approver, hash string) {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ssh.NewPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	c := &approval.Credential{Approver: id, Kind: approval.SSH, Public: key.Marshal(), Salt: strings.Repeat("5a", 32)}
	document, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal([]any{map[string]any{"name": "alice", "id": id, "credentials": [][]byte{document}}})
	if err != nil {
		t.Fatal(err)
	}
	list, err := trust.ParseApprovers(data)
	if err != nil {
		t.Fatal(err)
	}
	return list[0], approval.Hash(document)
}

// TestOf compares demands with the approvals that they are made from.
func TestOf(t *testing.T) {
	t.Parallel()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	log, err := translog.NewVerifier("broker.example.com/log", public)
	if err != nil {
		t.Fatal(err)
	}
	alice, hash := approver(t)
	first := &trust.Approvals{Scope: "registry.example.com/app", Log: []string{log.String()},
		Witnesses: []string{log.String()}, Cosigned: 1, MaxAge: trust.Span(time.Hour), Approvers: []trust.Approver{alice},
		Groups: []trust.ApprovalGroup{{Name: "release", Members: []string{"alice"}, Quorum: 1,
			Kinds: []string{"ssh", "passkey"}, Attestation: "required", DeviceBound: true}}}
	second := *first
	second.Scope, second.MaxAge = "*", 0
	required := trust.Required{{first.Scope: first, "*": &second}, {"*": &second}}
	demands, err := Of(required, first.Scope)
	if err != nil || len(demands) != 2 {
		t.Fatal(demands, err)
	}
	d := demands[0]
	if len(d.Groups) != 1 || d.Cosigned != 1 || d.MaxAge != time.Hour || demands[1].MaxAge != 0 ||
		d.Names[id] != "alice" || len(d.Log) != 1 || d.Log[0].String() != log.String() || len(d.Witnesses) != 1 ||
		d.Witnesses[0].Name() != log.Name() {
		t.Errorf("%+v", d)
	}
	g := d.Groups[0]
	if g.Name != "release" || !slices.Equal(g.Members, []string{id}) || g.Quorum != 1 || !g.Attested || !g.DeviceBound ||
		!slices.Equal(g.Kinds, []approval.Kind{approval.SSH, approval.Passkey}) {
		t.Errorf("%+v", g)
	}
	c, err := approval.DecodeCredential(d.Credentials[hash])
	if err != nil || len(d.Credentials) != 1 || c.Approver != id {
		t.Errorf("%v %v", d.Credentials, err)
	}
	demands, err = Of(trust.Required{{first.Scope: first}}, "registry.example.com/other")
	if err != nil || demands != nil {
		t.Errorf("a repository without approvals: %v %v", demands, err)
	}
	second.Log = []string{"broken"}
	if _, err := Of(required, "registry.example.com/other"); err == nil {
		t.Error("a key that is none was read")
	}
}
