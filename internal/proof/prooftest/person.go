package prooftest

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"testing"

	"github.com/descope/virtualwebauthn"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
)

// Person is someone who approves with one credential.
type Person struct {
	ID         string // pseudonym
	Name       string
	Credential approval.Credential

	t    testing.TB
	sign func(document []byte) *approval.Envelope // without its credential
}

// newPerson returns a person without a credential.
func newPerson(t testing.TB, name string, kind approval.Kind, public []byte) *Person {
	id := sha256.Sum256([]byte("person " + name))
	salt := sha256.Sum256([]byte("salt " + name))
	p := &Person{ID: hex.EncodeToString(id[:16]), Name: name, t: t}
	p.Credential = approval.Credential{Approver: p.ID, Kind: kind, Public: public, Salt: hex.EncodeToString(salt[:])}
	return p
}

// KeyPerson returns a person with a key as of a module.
func KeyPerson(t testing.TB, name string, key crypto.Signer) *Person {
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	p := newPerson(t, name, approval.Key, public)
	p.sign = func(document []byte) *approval.Envelope {
		e, err := approval.SignKey(document, "", key)
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	return p
}

// SSHPerson returns a person with an SSH key.
func SSHPerson(t testing.TB, name string, key crypto.Signer) *Person {
	t.Helper()
	signer, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	p := newPerson(t, name, approval.SSH, signer.PublicKey().Marshal())
	p.sign = func(document []byte) *approval.Envelope {
		namespace, err := approval.Namespace(document)
		if err != nil {
			t.Fatal(err)
		}
		signature, err := sshsig.Sign(bytes.NewReader(document), signer, sshsig.HashSHA512, namespace)
		if err != nil {
			t.Fatal(err)
		}
		return &approval.Envelope{Approval: document, Signature: sshsig.Armor(signature)}
	}
	return p
}

// Ed25519 returns the key of a number.
func Ed25519(number byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(append(make([]byte, ed25519.SeedSize-1), number))
}

// PasskeyPerson returns a person with a passkey whose P-256 key is that of a number. It can leave its authenticator
// unless it is bound to a device.
func PasskeyPerson(t testing.TB, name string, number byte, attested, bound bool) *Person {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(Key(elliptic.P256(), number))
	if err != nil {
		t.Fatal(err)
	}
	party := virtualwebauthn.RelyingParty{ID: "broker.example.com", Name: "broker", Origin: "https://broker.example.com"}
	authenticator := virtualwebauthn.NewAuthenticator()
	authenticator.Options.BackupEligible = !bound
	key := virtualwebauthn.NewCredentialWithImportedKey(virtualwebauthn.KeyTypeEC2, der)
	key.ID = []byte{number}
	p := newPerson(t, name, approval.Passkey, key.Key.AttestationData())
	p.Credential.Passkey = &approval.WebAuthn{AAGUID: "00000000-0000-0000-0000-000000000000", Attested: attested,
		BackupEligible: !bound, ID: key.ID, Origins: []string{party.Origin}, RPID: party.ID}
	p.sign = func(document []byte) *approval.Envelope {
		challenge := sha256.Sum256(document)
		var answer struct{ Response map[string]string }
		text := virtualwebauthn.CreateAssertionResponse(party, authenticator, key,
			virtualwebauthn.AssertionOptions{Challenge: challenge[:]})
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			t.Fatal(err)
		}
		part := func(name string) []byte {
			data, err := base64.RawURLEncoding.DecodeString(answer.Response[name])
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		return &approval.Envelope{Approval: document, AuthenticatorData: part("authenticatorData"),
			ClientData: part("clientDataJSON"), Signature: part("signature")}
	}
	return p
}

// Document returns the encoding of the person's credential.
func (p *Person) Document() []byte {
	p.t.Helper()
	data, err := p.Credential.Encode()
	if err != nil {
		p.t.Fatal(err)
	}
	return data
}

// Sign returns the envelope of an approval that the person signs, in its encoding.
func (p *Person) Sign(a approval.Approval) []byte {
	p.t.Helper()
	document, err := a.Encode()
	if err != nil {
		p.t.Fatal(err)
	}
	e := p.sign(document)
	e.Credential = approval.Hash(p.Document())
	data, err := e.Encode()
	if err != nil {
		p.t.Fatal(err)
	}
	return data
}
