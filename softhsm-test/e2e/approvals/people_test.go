package approvals

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/browser"
)

// person approves requests.
type person struct {
	name string
	kind string        // ssh, key or passkey
	file string        // of the SSH key
	uri  string        // of the key in the module
	page *browser.Page // of the passkey
	text string        // what the ceremony file has of the key
}

// make makes the person's key.
func (p *person) make(t testing.TB, s *site, dir string) {
	t.Helper()
	p.file = filepath.Join(dir, p.name)
	switch p.kind {
	case "ssh":
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		block, err := ssh.MarshalPrivateKey(private, p.name)
		if err != nil {
			t.Fatal(err)
		}
		softhsmtest.Write(t, p.file, string(pem.EncodeToMemory(block)))
		key, err := ssh.NewPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		p.text = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key)))
	case "key":
		p.uri = strings.TrimSpace(softhsmtest.Run(t, s.program, "key", "generate", "--token", "cards", "--spec", "EC-256",
			"--label", p.name))
		p.text = filepath.Join(dir, p.name+".pem")
		softhsmtest.Write(t, p.text, softhsmtest.Run(t, s.program, "cert", "export", "--public", p.uri))
	case "passkey":
		p.text = "invite"
	}
}

// approver returns the person as a ceremony file has them.
func (p *person) approver() map[string]string { return map[string]string{"name": p.name, p.kind: p.text} }
