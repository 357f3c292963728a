package brokerfile

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
)

// TestApprovers reads a file with approvers of each kind, and refuses files with mistakes.
func TestApprovers(t *testing.T) {
	t.Parallel()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})), "\n", "\n      ")
	link := "sha256:" + strings.Repeat("a", 64)
	good := fmt.Sprintf("version: 1\napprovers:\n- {name: alice, ssh: %q}\n- name: bob\n  key: |\n      %s\n"+
		"- {name: carol, passkey: %q}\n", line, text, link)
	all, mistakes := parseApprovers([]byte(good))
	if len(mistakes) > 0 || len(all) != 3 || all[0].Kind != approval.SSH || all[1].Kind != approval.Key ||
		all[2].Invitation != link {
		t.Errorf("%+v, %v", all, mistakes)
	}
	for text, want := range map[string]string{
		"": "empty", "version: 2\napprovers: []": "version is 2", "version: 1\nothers: []": "others",
		"version: 1\napprovers: [{ssh: a}]": "no name", "version: 1\napprovers: [{name: a}]": "0 of ssh, key and passkey",
		"version: 1\napprovers: [{name: a, passkey: abc}]":                                         "invalid SHA-256",
		"version: 1\napprovers: [{name: a, ssh: abc}]":                                             "cannot read the SSH public key",
		"version: 1\napprovers: [{name: a, key: abc}]":                                             "one public key in PEM",
		fmt.Sprintf("version: 1\napprovers: [{name: a, ssh: %[1]q}, {name: b, ssh: %[1]q}]", line): "of another one",
	} {
		if _, mistakes := parseApprovers([]byte(text)); !strings.Contains(mistakes.Error(), want) {
			t.Errorf("%q: %v, want %q", text, mistakes, want)
		}
	}
}
