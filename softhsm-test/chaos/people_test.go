package chaos

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"strings"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
)

// person approves requests.
type person struct {
	name       string
	number     int
	caller     *caller
	approver   string // id of the person
	credential string // its id
	sign       func(document []byte, credential string) (*approval.Envelope, error)
}

// makePeople makes the people of the policy, with their keys, and the file that enrols them: one with an SSH key.
func (w *world) makePeople() {
	w.t.Helper()
	var approvers []map[string]string
	for i, name := range []string{"ann", "ben", "cem"} {
		p := &person{name: name, number: i, caller: w.withCertificate(name)}
		kind, text := "key", ""
		if i == 0 {
			kind = "ssh"
			text = p.useSSH(w)
		} else {
			text = p.useKey(w, w.newKey())
		}
		approvers = append(approvers, map[string]string{"name": name, kind: text})
		w.people = append(w.people, p)
	}
	file, err := json.Marshal(map[string]any{"version": 1, "approvers": approvers}) // which is YAML
	w.must(err)
	w.file("approvers.yaml", string(file))
}

func (p *person) useKey(w *world, key *ecdsa.PrivateKey) string {
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	w.must(err)
	p.sign = func(document []byte, credential string) (*approval.Envelope, error) {
		return approval.SignKey(document, credential, key)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))
}

func (p *person) useSSH(w *world) string {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	w.must(err)
	key, err := ssh.NewSignerFromKey(private)
	w.must(err)
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
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(key.PublicKey())))
}

// decides returns a signed decision about a statement, which is given once.
func (p *person) decides(decision approval.Decision, statement string) ([]byte, error) {
	a := approval.Approval{Approver: p.approver, Decision: decision, Statement: statement, Time: time.Now()}
	_, _ = rand.Read(a.Random[:]) // never fails
	document, err := a.Encode()
	if err != nil {
		return nil, err
	}
	e, err := p.sign(document, p.credential)
	if err != nil {
		return nil, err
	}
	return e.Encode()
}
