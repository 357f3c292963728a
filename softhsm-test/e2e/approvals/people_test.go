package approvals

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/browser"
)

// person approves requests.
type person struct {
	name string
	kind string // ssh, key, passkey, or memory: a key of the kind key that is in no module
	file string // of the SSH key
	uri  string // of the key in the module
	text string // what the ceremony file has of the key

	public     []byte // as a credential has it
	invitation string // token of the link by which the person enrols a passkey

	sign func(document []byte, credential string) (*approval.Envelope, error) // with the key, unless it is in a module
	page *browser.Page                                                        // of one who has a passkey
}

// make makes the person's key in a folder, or in the token "cards".
func (p *person) make(t testing.TB, dir string) {
	t.Helper()
	p.file = filepath.Join(dir, p.name)
	switch p.kind {
	case "ssh":
		p.makeSSH(t)
	case "key":
		program := softhsmtest.Build(t, "notation-hsm")
		p.uri = strings.TrimSpace(softhsmtest.Run(t, program, "key", "generate", "--token", "cards", "--spec", "EC-256",
			"--label", p.name))
		p.text = softhsmtest.Run(t, program, "cert", "export", "--public", p.uri)
	case "memory":
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		public, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			t.Fatal(err)
		}
		p.public = public
		p.text = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
		p.sign = func(document []byte, credential string) (*approval.Envelope, error) {
			return approval.SignKey(document, credential, key)
		}
	case "passkey":
		p.invitation = rand.Text()
		p.text = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(p.invitation)))
	}
}

func (p *person) makeSSH(t testing.TB) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, p.name)
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, p.file, string(pem.EncodeToMemory(block)))
	key, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	p.text = strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
	p.sign = func(document []byte, credential string) (*approval.Envelope, error) {
		namespace, err := approval.Namespace(document)
		if err != nil {
			return nil, err
		}
		signature, err := sshsig.Sign(bytes.NewReader(document), key, sshsig.HashSHA512, namespace)
		if err != nil {
			return nil, err
		}
		return &approval.Envelope{Approval: document, Credential: credential, Signature: sshsig.Armor(signature)}, nil
	}
}

// approver returns the person as a ceremony file has them.
func (p *person) approver() map[string]string {
	kind := p.kind
	if kind == "memory" {
		kind = "key"
	}
	return map[string]string{"name": p.name, kind: p.text}
}

// signs signs a decision of an approver about a statement.
func (p *person) signs(decision approval.Decision, approver, credential, statement string) (*approval.Envelope, error) {
	a := approval.Approval{Approver: approver, Decision: decision, Statement: statement, Time: time.Now()}
	_, _ = rand.Read(a.Random[:]) // never fails
	document, err := a.Encode()
	if err != nil {
		return nil, err
	}
	return p.sign(document, credential)
}
