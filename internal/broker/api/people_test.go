package api

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// person is someone who approves, with a key in a module or an SSH key.
type person struct {
	*testing.T
	kind   approval.Kind
	key    crypto.Signer // of a module
	ssh    ssh.Signer
	public []byte
}

func newPerson(t *testing.T, kind approval.Kind) *person {
	t.Helper()
	p := &person{T: t, kind: kind, key: generate(t)}
	var err error
	if kind == approval.Key {
		p.public, err = x509.MarshalPKIXPublicKey(p.key.Public())
	} else {
		_, p.key, _ = ed25519.GenerateKey(rand.Reader)
		if p.ssh, err = ssh.NewSignerFromSigner(p.key); err == nil {
			p.public = p.ssh.PublicKey().Marshal()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// credential returns what the person is enrolled with.
func (p *person) credential() *approval.Credential {
	return &approval.Credential{Kind: p.kind, Public: p.public}
}

// sign returns the envelope of a document, which the person signs as what it is.
func (p *person) sign(document []byte, credential string) []byte {
	p.Helper()
	e := &approval.Envelope{Approval: document, Credential: credential}
	var err error
	if p.kind == approval.Key {
		e, err = approval.SignKey(document, credential, p.key)
	} else {
		var namespace string
		if namespace, err = approval.Namespace(document); err == nil {
			var s *sshsig.Signature
			if s, err = sshsig.Sign(bytes.NewReader(document), p.ssh, sshsig.HashSHA512, namespace); err == nil {
				e.Signature = sshsig.Armor(s)
			}
		}
	}
	if err != nil {
		p.Fatal(err)
	}
	return encode(p.T, e)
}

// encode returns the encoding of a document.
func encode(t testing.TB, document interface{ Encode() ([]byte, error) }) []byte {
	t.Helper()
	data, err := document.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// newLogin returns a login at the server, as it is now.
func newLogin() *approval.Login {
	l := &approval.Login{Broker: audience, Time: time.Now().UTC().Truncate(time.Second)}
	_, _ = rand.Read(l.Random[:])
	return l
}

// login returns a message that signs the person in.
func (p *person) login(l *approval.Login) brokerapi.Login {
	p.Helper()
	return brokerapi.Login{Envelope: p.sign(encode(p.T, l), ""), Kind: string(p.kind), Public: p.public}
}

// possession returns a message that proposes the key of the person.
func (p *person) possession(name string) brokerapi.NewCredential {
	p.Helper()
	return brokerapi.NewCredential{Person: name, Kind: string(p.kind), Public: p.public,
		Possession: p.sign(encode(p.T, newLogin()), "")}
}

// first returns the first approvers: all people of the fixture, by name.
func (f *fixture) first() (all []broker.FirstApprover) {
	for _, name := range slices.Sorted(maps.Keys(f.people)) {
		all = append(all, broker.FirstApprover{Name: name, Credential: f.people[name].credential()})
	}
	return all
}

// signedIn returns a client in a session of a person.
func (f *fixture) signedIn(name string) *client {
	f.Helper()
	c := f.open()
	s := read[brokerapi.Session](f.T, c.want(201, post(brokerapi.SessionsPath, f.people[name].login(newLogin()))))
	if s.Person != name {
		f.Fatalf("%s has signed in as %s", name, s.Person)
	}
	c.auth = "Bearer hsm-session." + s.Token
	return c
}

// decision returns a request by which a person decides about a request.
func (f *fixture) decision(name, id string, decision approval.Decision) request {
	f.Helper()
	e := read[brokerapi.Evidence](f.T, f.signedIn(name).want(200, get(brokerapi.EvidencePath(id))))
	a := &approval.Approval{Approver: e.You, Decision: decision, Statement: approval.Hash(e.Statement),
		Time: time.Now().UTC().Truncate(time.Second)}
	_, _ = rand.Read(a.Random[:])
	return post(brokerapi.ApprovalsPath(id), brokerapi.SignedApproval{
		Envelope: f.people[name].sign(encode(f.T, a), f.id(name))})
}

// id returns the ID of the only credential of a person.
func (f *fixture) id(name string) string {
	f.Helper()
	for _, a := range read[brokerapi.Approvers](f.T, f.admin().want(200, get(brokerapi.ApproversPath))).Approvers {
		if a.Name == name && len(a.Credentials) == 1 {
			return a.Credentials[0].ID
		}
	}
	f.Fatalf("%s has not one credential", name)
	return ""
}
