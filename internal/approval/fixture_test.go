package approval

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"
)

const (
	alice = "id-alice"
	bob   = "id-bob"
	carol = "id-carol"
	dave  = "id-dave"
)

const origin = "https://broker.example.com"

// signer signs documents as a person, in a way of one kind.
type signer struct {
	credential Credential
	sign       func(document []byte, p purpose) *Envelope // without its credential
}

// hash returns the name of the signer's credential.
func (s *signer) hash(t testing.TB) string {
	t.Helper()
	return Hash(encode(t, &s.credential))
}

// approve returns the envelope of an approval, and login that of a login.
func (s *signer) approve(t testing.TB, a Approval) *Envelope {
	t.Helper()
	e := s.sign(encode(t, &a), approving)
	e.Credential = s.hash(t)
	return e
}

func (s *signer) login(t testing.TB, l Login) *Envelope {
	t.Helper()
	e := s.sign(encode(t, &l), signingIn)
	e.Credential = s.hash(t)
	return e
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

// moduleSigner signs with a key as one of a module.
func moduleSigner(t testing.TB, person string, key crypto.Signer) *signer {
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	return &signer{Credential{Approver: person, Kind: Key, Public: public, Salt: salt()},
		func(document []byte, p purpose) *Envelope {
			e, err := signKey(document, p, "", key)
			if err != nil {
				t.Fatal(err)
			}
			return e
		}}
}

// sshSigner signs with a key as an SSH key.
func sshSigner(t testing.TB, person string, key ssh.Signer, hash sshsig.HashAlgorithm) *signer {
	t.Helper()
	return &signer{Credential{Approver: person, Kind: SSH, Public: key.PublicKey().Marshal(), Salt: salt()},
		func(document []byte, p purpose) *Envelope {
			signature, err := sshsig.Sign(bytes.NewReader(document), key, hash, p.namespace)
			if err != nil {
				t.Fatal(err)
			}
			return &Envelope{Approval: document, Signature: sshsig.Armor(signature)}
		}}
}

// newSSH returns an SSH key of a private key.
func newSSH(t testing.TB, key crypto.Signer) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// passkey is an authenticator in software.
type passkey struct {
	authenticator virtualwebauthn.Authenticator
	key           virtualwebauthn.Credential
	party         virtualwebauthn.RelyingParty
}

func newPasskey(kind virtualwebauthn.KeyType) *passkey {
	p := &passkey{authenticator: virtualwebauthn.NewAuthenticator(), party: virtualwebauthn.RelyingParty{
		ID: "broker.example.com", Name: "broker", Origin: origin}}
	for {
		p.key = virtualwebauthn.NewCredential(kind)
		// The library drops leading zeros of coordinates, which COSE keeps.
		if checkCOSE(p.key.Key.AttestationData()) == nil {
			return p
		}
	}
}

// fixedPasskey returns an authenticator whose key is the same in each process.
func fixedPasskey(t testing.TB, number byte) *passkey {
	t.Helper()
	p := newPasskey(virtualwebauthn.KeyTypeEC2)
	data, err := x509.MarshalPKCS8PrivateKey(fixedKey(elliptic.P256(), number))
	if err != nil {
		t.Fatal(err)
	}
	p.key = virtualwebauthn.NewCredentialWithImportedKey(virtualwebauthn.KeyTypeEC2, data)
	p.key.ID = []byte{number}
	if err := checkCOSE(p.key.Key.AttestationData()); err != nil {
		t.Fatalf("take another number than %d: %v", number, err)
	}
	return p
}

// fixedKey returns the key of a number on a curve.
func fixedKey(curve elliptic.Curve, number byte) *ecdsa.PrivateKey {
	scalar := make([]byte, (curve.Params().BitSize+7)/8)
	scalar[len(scalar)-1], scalar[1] = number, 1
	key, err := ecdsa.ParseRawPrivateKey(curve, scalar)
	if err != nil {
		panic(err)
	}
	return key
}

// signer returns what signs with the authenticator as it is by then.
func (p *passkey) signer(t testing.TB, person string) *signer {
	t.Helper()
	credential := Credential{Approver: person, Kind: Passkey, Public: p.key.Key.AttestationData(), Salt: salt(),
		Passkey: &WebAuthn{AAGUID: "00000000-0000-0000-0000-000000000000", ID: p.key.ID, RPID: p.party.ID,
			BackupEligible: p.authenticator.Options.BackupEligible, Origins: []string{origin}}}
	return &signer{credential, func(document []byte, _ purpose) *Envelope {
		challenge := sha256.Sum256(document)
		var answer struct {
			Response struct {
				AuthenticatorData string `json:"authenticatorData"`
				ClientDataJSON    string `json:"clientDataJSON"`
				Signature         string `json:"signature"`
			} `json:"response"`
		}
		text := virtualwebauthn.CreateAssertionResponse(p.party, p.authenticator, p.key,
			virtualwebauthn.AssertionOptions{Challenge: challenge[:]})
		if err := json.Unmarshal([]byte(text), &answer); err != nil {
			t.Fatal(err)
		}
		decode := func(text string) []byte {
			data, err := base64.RawURLEncoding.DecodeString(text)
			if err != nil {
				t.Fatal(err)
			}
			return data
		}
		return &Envelope{Approval: document, AuthenticatorData: decode(answer.Response.AuthenticatorData),
			ClientData: decode(answer.Response.ClientDataJSON), Signature: decode(answer.Response.Signature)}
	}}
}

// keys makes the keys of tests once. Those of elliptic curves are the same in each process, which fuzzing needs.
var keys = sync.OnceValue(func() map[string]crypto.Signer {
	made := map[string]crypto.Signer{}
	must := func(name string, key crypto.Signer, err error) {
		if err != nil {
			panic(err)
		}
		made[name] = key
	}
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		must(curve.Params().Name, fixedKey(curve, 1), nil)
	}
	must("Ed25519", ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)), nil)
	strong, err := rsa.GenerateKey(rand.Reader, 2048)
	must("RSA-2048", strong, err)
	weak, err := rsa.GenerateKey(rand.Reader, 1536)
	must("RSA-1536", weak, err)
	return made
})

// signers returns one signer of each kind and algorithm, all of alice.
func signers(t testing.TB) map[string]*signer {
	t.Helper()
	all := map[string]*signer{}
	for _, name := range []string{"P-256", "P-384", "P-521", "Ed25519", "RSA-2048"} {
		all["key "+name] = moduleSigner(t, alice, keys()[name])
		all["ssh "+name] = sshSigner(t, alice, newSSH(t, keys()[name]), sshsig.HashSHA512)
	}
	all["ssh sha256"] = sshSigner(t, alice, newSSH(t, keys()["Ed25519"]), sshsig.HashSHA256)
	all["ssh sk-ed25519"] = sshSigner(t, alice, &sk{key: keys()["Ed25519"], flags: 1}, sshsig.HashSHA512)
	all["ssh sk-ecdsa"] = sshSigner(t, alice, &sk{key: keys()["P-256"], flags: 5}, sshsig.HashSHA512)
	all["passkey ES256"] = fixedPasskey(t, 2).signer(t, alice)
	all["passkey RS256"] = newPasskey(virtualwebauthn.KeyTypeRSA).signer(t, alice)
	return all
}

// sk is a FIDO security key in software, as OpenSSH uses one.
type sk struct {
	key   crypto.Signer
	flags byte // 1 if it was touched, 4 if the user was verified
}

const application = "ssh:approvals"

func (s *sk) PublicKey() ssh.PublicKey {
	var wire []byte
	switch key := s.key.Public().(type) {
	case ed25519.PublicKey:
		wire = ssh.Marshal(struct {
			Type        string
			Key         []byte
			Application string
		}{ssh.KeyAlgoSKED25519, key, application})
	case *ecdsa.PublicKey:
		point, err := key.Bytes()
		if err != nil {
			panic(err)
		}
		wire = ssh.Marshal(struct {
			Type, Curve string
			Key         []byte
			Application string
		}{ssh.KeyAlgoSKECDSA256, "nistp256", point, application})
	}
	public, err := ssh.ParsePublicKey(wire)
	if err != nil {
		panic(err)
	}
	return public
}

func (s *sk) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) {
	applicationHash, message := sha256.Sum256([]byte(application)), sha256.Sum256(data)
	rest := []byte{s.flags, 0, 0, 0, 7}
	signed := append(append(applicationHash[:], rest...), message[:]...)
	ordinary := newSSHQuietly(s.key)
	signature, err := ordinary.Sign(rand.Reader, signed)
	if err != nil {
		return nil, err
	}
	return &ssh.Signature{Format: s.PublicKey().Type(), Blob: signature.Blob, Rest: rest}, nil
}

func newSSHQuietly(key crypto.Signer) ssh.Signer {
	s, err := ssh.NewSignerFromSigner(key)
	if err != nil {
		panic(err)
	}
	return s
}

func salt() string { return strings.Repeat("5a", 32) }

// exampleApproval returns an approval of a statement by a person.
func exampleApproval(person, statement string) Approval {
	a := Approval{Approver: person, Decision: Approve, Statement: statement,
		Time: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	_, _ = rand.Read(a.Random[:])
	return a
}

// exampleLogin returns a login with a broker.
func exampleLogin() Login {
	l := Login{Broker: origin, Time: time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)}
	_, _ = rand.Read(l.Random[:])
	return l
}
