package approval

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/descope/virtualwebauthn"
	"github.com/fxamacker/cbor/v2"
	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// refused checks that an error is Denied, and that its message has a text.
func refused(t *testing.T, err error, text string) {
	t.Helper()
	var failed *failure.Error
	if !errors.As(err, &failed) || failed.Kind != failure.Denied || !strings.Contains(failed.What, text) {
		t.Errorf("got %v, want Denied with %q", err, text)
	}
}

// statement is the name of a statement.
var statement = Hash([]byte("statement"))

// TestEachKind checks that approvals and logins of each kind verify, also once encoded, and that the one does not
// verify as the other.
func TestEachKind(t *testing.T) {
	t.Parallel()
	for name, s := range signers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, l := exampleApproval(alice, statement), exampleLogin()
			approved, signedIn := s.approve(t, a), s.login(t, l)
			again, err := DecodeEnvelope(encode(t, approved))
			if err != nil {
				t.Fatal(err)
			}
			credential, err := DecodeCredential(encode(t, &s.credential))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := again.Verify(credential); err != nil || *got != a {
				t.Fatalf("got %+v, %v", got, err)
			}
			if got, err := signedIn.VerifyLogin(credential); err != nil || *got != l {
				t.Fatalf("got %+v, %v", got, err)
			}
			// An approval is no login, and a login no approval, whatever the signature was made for.
			if _, err := approved.VerifyLogin(credential); err == nil {
				t.Error("an approval verifies as a login")
			}
			if _, err := signedIn.Verify(credential); err == nil {
				t.Error("a login verifies as an approval")
			}
			if s.credential.Kind == Passkey {
				return // its challenge has the type of the document in it
			}
			swapped := s.sign(approved.Approval, signingIn)
			swapped.Credential = approved.Credential
			_, err = swapped.Verify(credential)
			refused(t, err, map[Kind]string{Key: "not that of the key", SSH: "namespace"}[s.credential.Kind])
			swapped = s.sign(signedIn.Approval, approving)
			swapped.Credential = approved.Credential
			_, err = swapped.VerifyLogin(credential)
			refused(t, err, map[Kind]string{Key: "not that of the key", SSH: "namespace"}[s.credential.Kind])
		})
	}
}

// TestFlip flips each byte of valid envelopes, in each of their parts, and of credentials: none verifies.
func TestFlip(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"key P-256", "key RSA-2048", "key Ed25519", "ssh Ed25519", "ssh P-256", "ssh RSA-2048",
		"ssh sk-ed25519", "ssh sk-ecdsa", "passkey ES256"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := signers(t)[name]
			e := s.approve(t, exampleApproval(alice, statement))
			for part, data := range map[string]*[]byte{"approval": &e.Approval, "authenticator data": &e.AuthenticatorData,
				"client data": &e.ClientData, "signature": &e.Signature, "public key": &s.credential.Public} {
				for i := range *data {
					for _, flip := range []byte{0x01, 0x20, 0x80, '\n' ^ '\t'} {
						(*data)[i] ^= flip
						if _, err := e.Verify(&s.credential); err == nil {
							t.Errorf("byte %d of the %s: %#x made no difference", i, part, flip)
						}
						(*data)[i] ^= flip
					}
				}
			}
			encoded := encode(t, e)
			for i := range encoded {
				flipped := slices.Clone(encoded)
				flipped[i] ^= 0x01
				if again, err := DecodeEnvelope(flipped); err == nil {
					if _, err := again.Verify(&s.credential); err == nil {
						t.Errorf("byte %d of the envelope made no difference", i)
					}
				}
			}
			if _, err := e.Verify(&s.credential); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestReplay checks that an approval counts for what it was made for alone.
func TestReplay(t *testing.T) {
	t.Parallel()
	for name, s := range signers(t) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := exampleApproval(alice, statement)
			e := s.approve(t, a)
			for what, change := range map[string]func(*Approval){
				"statement": func(a *Approval) { a.Statement = Hash([]byte("another")) },
				"approver":  func(a *Approval) { a.Approver = bob },
				"decision":  func(a *Approval) { a.Decision = Reject },
				"random":    func(a *Approval) { a.Random[0]++ },
				"reason":    func(a *Approval) { a.Reason = "changed" },
				"time":      func(a *Approval) { a.Time = a.Time.AddDate(0, 0, 1) },
			} {
				changed := a
				change(&changed)
				replayed := *e
				replayed.Approval = encode(t, &changed)
				if _, err := replayed.Verify(&s.credential); err == nil {
					t.Errorf("it verifies with another %s", what)
				}
			}
			// With another's credential of the same key, and with one of another salt.
			others := s.credential
			others.Approver = bob
			_, err := e.Verify(&others)
			refused(t, err, "another credential")
			replayed := *e
			replayed.Credential = Hash(encode(t, &others))
			_, err = replayed.Verify(&others)
			refused(t, err, "another person")
			salted := s.credential
			salted.Salt = strings.Repeat("00", 32)
			_, err = e.Verify(&salted)
			refused(t, err, "another credential")
			// A login at another broker.
			l := exampleLogin()
			login := s.login(t, l)
			l.Broker = "https://other.example.com"
			login.Approval = encode(t, &l)
			if _, err := login.VerifyLogin(&s.credential); err == nil {
				t.Error("a login verifies for another broker")
			}
		})
	}
}

// TestRefusedKeys checks that weak keys, keys of other kinds and signatures in other schemes do not verify.
func TestRefusedKeys(t *testing.T) {
	t.Parallel()
	document := encode(t, new(exampleApproval(alice, statement)))
	if _, err := SignKey(document, "", keys()["RSA-1536"]); err == nil {
		t.Error("a key of 1536 bits signs")
	}
	if _, err := SignKey(document, "", keys()["P-224"]); err == nil {
		t.Error("a key on P-224 signs")
	}
	if _, err := SignKey([]byte(`{"type":"other"}`), "", keys()["P-256"]); err == nil {
		t.Error("something else than an approval is signed")
	}
	weak := sshSigner(t, alice, newSSH(t, keys()["RSA-1536"]), sshsig.HashSHA512)
	_, err := weak.approve(t, exampleApproval(alice, statement)).Verify(&weak.credential)
	refused(t, err, "1536 bits")

	authority, err := ssh.NewSignerFromSigner(keys()["P-256"])
	if err != nil {
		t.Fatal(err)
	}
	certificate := &ssh.Certificate{Key: newSSH(t, keys()["Ed25519"]).PublicKey(), CertType: ssh.UserCert,
		ValidPrincipals: []string{alice}, ValidBefore: ssh.CertTimeInfinity}
	if err := certificate.SignCert(strings.NewReader(strings.Repeat("r", 1000)), authority); err != nil {
		t.Fatal(err)
	}
	certified, err := ssh.NewCertSigner(certificate, newSSH(t, keys()["Ed25519"]))
	if err != nil {
		t.Fatal(err)
	}
	s := sshSigner(t, alice, certified, sshsig.HashSHA512)
	_, err = s.approve(t, exampleApproval(alice, statement)).Verify(&s.credential)
	refused(t, err, "cannot sign approvals")
}

// TestSecurityKey checks that a security key has to be touched, for the application that it was made for.
func TestSecurityKey(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"Ed25519", "P-256"} {
		untouched := sshSigner(t, alice, &sk{key: keys()[name], flags: 4}, sshsig.HashSHA512)
		_, err := untouched.approve(t, exampleApproval(alice, statement)).Verify(&untouched.credential)
		refused(t, err, "user presence")
	}
}

// TestRefusedSSHSIG checks that an SSHSIG has one form, and that each of its fields counts.
func TestRefusedSSHSIG(t *testing.T) {
	t.Parallel()
	key := newSSH(t, keys()["RSA-2048"])
	a := exampleApproval(alice, statement)
	document := encode(t, &a)
	old, err := key.Sign(strings.NewReader(""), document) // ssh-rsa: SHA-1
	if err != nil || old.Format != ssh.KeyAlgoRSA {
		t.Fatal(old, err)
	}
	s := sshSigner(t, alice, key, sshsig.HashSHA512)
	for what, change := range map[string]func(*sshsig.Signature){
		"SHA-1":        func(s *sshsig.Signature) { s.Signature = old },
		"hash":         func(s *sshsig.Signature) { s.HashAlgorithm = sshsig.HashSHA256 },
		"unknown hash": func(s *sshsig.Signature) { s.HashAlgorithm = "sha1" },
		"namespace":    func(s *sshsig.Signature) { s.Namespace = "file" },
		"version":      func(s *sshsig.Signature) { s.Version = 2 },
		"rest":         func(s *sshsig.Signature) { s.Signature.Rest = []byte{1} },
		"key":          func(s *sshsig.Signature) { s.PublicKey = newSSH(t, keys()["Ed25519"]).PublicKey() },
	} {
		e := s.approve(t, a)
		signature, err := ReadSSHSIG(e.Signature)
		if err != nil {
			t.Fatal(err)
		}
		change(signature)
		e.Signature = sshsig.Armor(signature)
		_, err = e.Verify(&s.credential)
		t.Log(what)
		refused(t, err, "")
	}
	e := s.approve(t, a)
	text := string(e.Signature)
	for _, armour := range []string{text + "\n", "\n" + text, " " + text, strings.ReplaceAll(text, "\n", "\r\n"),
		strings.Replace(text, "\n", "\nA: b\n\n", 1), strings.ReplaceAll(text, "SSH SIGNATURE", "SIGNATURE"), "",
		text + text} {
		e.Signature = []byte(armour)
		_, err := e.Verify(&s.credential)
		refused(t, err, "SSHSIG")
	}
}

// TestRefusedPasskey checks each demand of WebAuthn Level 3 section 7.2.
func TestRefusedPasskey(t *testing.T) {
	t.Parallel()
	for what, c := range map[string]struct {
		change func(*passkey, *signer)
		text   string
	}{
		"not present":    {func(p *passkey, _ *signer) { p.authenticator.Options.UserNotPresent = true }, "presence"},
		"not verified":   {func(p *passkey, _ *signer) { p.authenticator.Options.UserNotVerified = true }, "verification"},
		"can leave":      {func(p *passkey, _ *signer) { p.authenticator.Options.BackupEligible = true }, "leave"},
		"was copied":     {func(p *passkey, _ *signer) { p.authenticator.Options.BackupState = true }, "copied"},
		"origin":         {func(p *passkey, _ *signer) { p.party.Origin = "https://broker.example.org" }, "origin"},
		"port":           {func(p *passkey, _ *signer) { p.party.Origin += ":8443" }, "origin"},
		"scheme":         {func(p *passkey, _ *signer) { p.party.Origin = "http://broker.example.com" }, "origin"},
		"relying party":  {func(p *passkey, _ *signer) { p.party.ID = "example.com" }, "RP Hash"},
		"no origins":     {func(_ *passkey, s *signer) { s.credential.Passkey.Origins = nil }, "origin"},
		"no passkey":     {func(_ *passkey, s *signer) { s.credential.Passkey = nil }, "does not say"},
		"not a COSE key": {func(_ *passkey, s *signer) { s.credential.Public = []byte{0xa0} }, "Key Type"},
		"another key": {func(_ *passkey, s *signer) {
			s.credential.Public = newPasskey(virtualwebauthn.KeyTypeEC2).key.Key.AttestationData()
		}, "signature"},
	} {
		p := newPasskey(virtualwebauthn.KeyTypeEC2)
		s := p.signer(t, alice)
		c.change(p, s)
		_, err := s.approve(t, exampleApproval(alice, statement)).Verify(&s.credential)
		t.Log(what)
		refused(t, err, c.text)
	}
}

// ed25519Passkey is a passkey whose browser says what it is told to, with the challenge for %.
func ed25519Passkey(t *testing.T, key ed25519.PrivateKey, clientData string) *signer {
	t.Helper()
	public, err := cbor.Marshal(map[int]any{1: 1, 3: -8, -1: 6, -2: []byte(key.Public().(ed25519.PublicKey))})
	if err != nil {
		t.Fatal(err)
	}
	return &signer{Credential{Approver: alice, Kind: Passkey, Public: public, Salt: salt(), Passkey: &WebAuthn{
		RPID: "broker.example.com", Origins: []string{origin}}}, func(document []byte, _ purpose) *Envelope {
		challenge, party := sha256.Sum256(document), sha256.Sum256([]byte("broker.example.com"))
		data := strings.Replace(clientData, "%", base64.RawURLEncoding.EncodeToString(challenge[:]), 1)
		hash := sha256.Sum256([]byte(data))
		authenticator := append(party[:], 5, 0, 0, 0, 1)
		return &Envelope{Approval: document, AuthenticatorData: authenticator, ClientData: []byte(data),
			Signature: ed25519.Sign(key, slices.Concat(authenticator, hash[:]))}
	}}
}

// TestRefusedClientData checks what a browser says of a ceremony.
func TestRefusedClientData(t *testing.T) {
	t.Parallel()
	const get, from = `{"type":"webauthn.get","challenge":"%"`, `,"origin":"https://broker.example.com"`
	for what, c := range map[string]struct{ data, text string }{
		"none":         {"", ""},
		"right":        {get + from + `,"crossOrigin":false}`, ""},
		"type":         {strings.Replace(get, "get", "create", 1) + from + `}`, "type"},
		"payment":      {strings.Replace(get, "webauthn", "payment", 1) + from + `}`, "type"},
		"challenge":    {strings.Replace(get, "%", "", 1) + from + `}`, "challenge"},
		"cross origin": {get + from + `,"crossOrigin":true}`, "cross"},
		"top origin":   {get + from + `,"topOrigin":"https://broker.example.com"}`, "topOrigin"},
	} {
		s := ed25519Passkey(t, keys()["Ed25519"].(ed25519.PrivateKey), c.data)
		_, err := s.approve(t, exampleApproval(alice, statement)).Verify(&s.credential)
		if what == "right" {
			if err != nil {
				t.Error(err)
			}
			continue
		}
		t.Log(what)
		refused(t, err, c.text)
	}
}

// TestRegistration checks that authenticator data of a registration, which has the key in it, is no assertion.
func TestRegistration(t *testing.T) {
	t.Parallel()
	key := keys()["Ed25519"].(ed25519.PrivateKey)
	s := ed25519Passkey(t, key, `{"type":"webauthn.get","challenge":"%","origin":"https://broker.example.com"}`)
	e := s.approve(t, exampleApproval(alice, statement))
	if _, err := e.Verify(&s.credential); err != nil {
		t.Fatal(err)
	}
	registered := slices.Concat(e.AuthenticatorData, make([]byte, 16), []byte{0, 1, 7}, s.credential.Public)
	registered[32] |= 0x40
	hash := sha256.Sum256(e.ClientData)
	e.AuthenticatorData, e.Signature = registered, ed25519.Sign(key, slices.Concat(registered, hash[:]))
	_, err := e.Verify(&s.credential)
	refused(t, err, "registration")
}

// TestAuthenticator checks what the broker watches of passkeys.
func TestAuthenticator(t *testing.T) {
	t.Parallel()
	p := newPasskey(virtualwebauthn.KeyTypeEC2)
	p.authenticator.Options.BackupEligible, p.authenticator.Options.BackupState, p.key.Counter = true, true, 41
	e := p.signer(t, alice).approve(t, exampleApproval(alice, statement))
	if counter, copied, err := e.Authenticator(); counter != 41 || !copied || err != nil {
		t.Error(counter, copied, err)
	}
	if _, _, err := new(Envelope).Authenticator(); err == nil {
		t.Error("an envelope without a passkey has an authenticator")
	}
}

// TestPossession checks that a new key shows that somebody has it, and that this is no login.
func TestPossession(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"key P-256", "ssh Ed25519"} {
		s := signers(t)[name]
		l := exampleLogin()
		e := s.login(t, l)
		if _, err := e.VerifyPossession(s.credential.Kind, s.credential.Public); err == nil {
			t.Error("a login shows possession")
		}
		e.Credential = ""
		if got, err := e.VerifyPossession(s.credential.Kind, s.credential.Public); err != nil || *got != l {
			t.Error(got, err)
		}
		if _, err := e.VerifyLogin(&s.credential); err == nil {
			t.Error("possession of a key signs in")
		}
		other := moduleSigner(t, bob, keys()["P-384"])
		if _, err := e.VerifyPossession(other.credential.Kind, other.credential.Public); err == nil {
			t.Error("possession of another key shows")
		}
	}
}
