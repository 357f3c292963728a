package web

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"math/big"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/descope/virtualwebauthn"
	"github.com/fxamacker/cbor/v2"

	"github.com/notation-hsm/notation-hsm/internal/approval"
)

// enrolling is a person with a new authenticator and an invitation.
func enrolling(f *fixture, name string) *person {
	f.broker.invitations["token"] = name
	return newcomer(f, name)
}

// newcomer is a person with a new authenticator.
func newcomer(f *fixture, name string) *person {
	return &person{fixture: f, name: name, passkey: newPasskey(),
		authenticator: virtualwebauthn.NewAuthenticatorWithOptions(virtualwebauthn.AuthenticatorOptions{
			UserHandle: f.web.handleOf(name)})}
}

// make makes a passkey for the question of an invitation.
func (p *person) make(token string, asked question) made {
	p.Helper()
	options := read[createOptions](p.fixture, mustJSON(asked.Options))
	response := read[struct {
		RawID    string
		Response struct{ AttestationObject, ClientDataJSON string }
	}](p.fixture, []byte(virtualwebauthn.CreateAttestationResponse(p.rp, p.authenticator, p.passkey,
		virtualwebauthn.AttestationOptions{Challenge: options.Challenge, RelyingPartyID: options.RP.ID})))
	decode := func(text string) []byte {
		data, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			p.Fatal(err)
		}
		return data
	}
	return made{Token: token, Document: asked.Document, Seal: asked.Seal, ID: decode(response.RawID),
		ClientData: decode(response.Response.ClientDataJSON), Attestation: decode(response.Response.AttestationObject)}
}

// TestEnrol enrols a passkey by an invitation, once, with which the person signs in.
func TestEnrol(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	p := enrolling(f, "alice")
	asked := read[question](f, p.script("/enrol/begin", invited{"token"}, http.StatusOK))
	o := read[createOptions](f, mustJSON(asked.Options))
	if asked.Person != "alice" || o.RP.ID != f.rp.ID || o.Attestation != "direct" || !o.Selection.RequireResidentKey ||
		o.Selection.ResidentKey != required || o.Selection.UserVerification != required || len(o.PubKeyCredParams) != 3 ||
		strings.Contains(string(o.User.ID), "alice") {
		t.Errorf("%s: %+v", asked.Person, o)
	}
	answer := p.make("token", asked)
	to := read[going](f, p.script("/enrol/finish", answer, http.StatusOK))
	label := base64.RawURLEncoding.EncodeToString(p.passkey.ID)
	contains(t, p.get(to.Location), "once other", label)
	lacks(t, p.get("/enrol/done?state=pending&passkey="+label), label)
	if len(f.broker.credentials) != 1 {
		t.Fatalf("%d credentials", len(f.broker.credentials))
	}
	for _, c := range f.broker.credentials {
		k := c.Passkey
		if c.Kind != approval.Passkey || k.AAGUID != uuid(p.authenticator.Aaguid[:]) || k.Attested || k.BackupEligible ||
			string(k.ID) != string(p.passkey.ID) || len(k.Origins) != 1 || k.Origins[0] != base || k.RPID != f.rp.ID {
			t.Errorf("%+v", k)
		}
	}
	p.script("/enrol/finish", answer, http.StatusNotFound) // the invitation was used
	p.script("/enrol/begin", invited{"token"}, http.StatusNotFound)
	signIn := read[question](f, p.script("/signin/begin", struct{}{}, http.StatusOK))
	p.script("/signin/finish", p.answer(signIn), http.StatusOK)
	p.get("/")
}

// TestRefuseEnrolment enrols no passkey that does not answer the question of the page, or has not verified its user.
func TestRefuseEnrolment(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(*fixture, *person, *made)
		status int
	}{
		"late":          {func(f *fixture, _ *person, _ *made) { f.pass(enrolTime) }, 403},
		"no invitation": {func(_ *fixture, _ *person, m *made) { m.Token = "other" }, 404},
		"invitation of another": {func(f *fixture, _ *person, m *made) {
			f.broker.invitations["theirs"] = "bob"
			m.Token = "theirs"
		}, 403},
		"own challenge": {func(_ *fixture, _ *person, m *made) { m.Document[0] ^= 1 }, 403},
		"seal of a sign-in": {func(f *fixture, _ *person, m *made) {
			m.Seal = f.web.seal(forSignIn, "token alice", m.Document, enrolTime)
		}, 403},
		"other ID":   {func(_ *fixture, _ *person, m *made) { m.ID[0] ^= 1 }, 403},
		"not CBOR":   {func(_ *fixture, _ *person, m *made) { m.Attestation = []byte("x") }, 403},
		"signature":  {func(_ *fixture, _ *person, m *made) { m.ClientData = append(m.ClientData, ' ') }, 403},
		"unverified": {remake(func(p *person) { p.authenticator.Options.UserNotVerified = true }), 403},
		"absent":     {remake(func(p *person) { p.authenticator.Options.UserNotPresent = true }), 403},
		"other origin": {remake(func(p *person) {
			p.rp.Origin = "https://evil.example.com"
		}), 403},
		"other RP": {remake(func(p *person) { p.rp.ID = "example.com" }), 403},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			p := enrolling(f, "alice")
			m := p.make("token", read[question](f, p.script("/enrol/begin", invited{"token"}, http.StatusOK)))
			c.change(f, p, &m)
			p.script("/enrol/finish", m, c.status)
			if len(f.broker.credentials) > 0 {
				t.Error("it was enrolled")
			}
		})
	}
}

// remake returns a change of a passkey that another authenticator makes for the same question.
func remake(change func(*person)) func(*fixture, *person, *made) {
	return func(f *fixture, p *person, m *made) {
		before := f.rp
		change(p)
		var o createOptions
		o.Challenge = m.Document
		*m = p.make("token", question{Document: m.Document, Seal: m.Seal, Options: o})
		f.rp = before
	}
}

// TestAttested takes the attestation of a manufacturer into account that is listed, and no other.
func TestAttested(t *testing.T) {
	t.Parallel()
	ca, other := newManufacturer(t), newManufacturer(t)
	roots := x509.NewCertPool()
	roots.AddCert(ca.certificate)
	for name, c := range map[string]struct {
		roots *x509.CertPool
		by    *manufacturer
		want  bool
	}{"listed": {roots, ca, true}, "other": {roots, other, false}, "none listed": {nil, ca, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t, func(o *Options) { o.AttestationRoots = c.roots })
			p := enrolling(f, "alice")
			m := p.make("token", read[question](f, p.script("/enrol/begin", invited{"token"}, http.StatusOK)))
			m.Attestation = c.by.attest(t, m.Attestation, m.ClientData)
			p.script("/enrol/finish", m, http.StatusOK)
			for _, credential := range f.broker.credentials {
				if credential.Passkey.Attested != c.want {
					t.Errorf("attested: %v", credential.Passkey.Attested)
				}
			}
		})
	}
}

// manufacturer attests authenticators.
type manufacturer struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
}

func newManufacturer(t *testing.T) *manufacturer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root"}, IsCA: true,
		BasicConstraintsValid: true, NotBefore: testTime.Add(-time.Hour), NotAfter: testTime.Add(time.Hour)}
	return &manufacturer{key, sign(t, template, template, key, key)}
}

func sign(t *testing.T, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// attest replaces the statement of an attestation object by one in the format packed with a certificate (WebAuthn
// section 8.2).
func (m *manufacturer) attest(t *testing.T, object, clientData []byte) []byte {
	t.Helper()
	var read struct {
		AuthData []byte `cbor:"authData"`
	}
	if err := cbor.Unmarshal(object, &read); err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	aaguid, err := asn1.Marshal(read.AuthData[37:53])
	if err != nil {
		t.Fatal(err)
	}
	leaf := sign(t, &x509.Certificate{SerialNumber: big.NewInt(2), BasicConstraintsValid: true,
		Subject: pkix.Name{Country: []string{"CH"}, Organization: []string{"Example"},
			OrganizationalUnit: []string{"Authenticator Attestation"}, CommonName: "attestation"},
		NotBefore: testTime.Add(-time.Hour), NotAfter: testTime.Add(time.Hour),
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 45724, 1, 1, 4}, Value: aaguid}},
	}, m.certificate, key, m.key)
	hash := sha256.Sum256(clientData)
	signed := sha256.Sum256(append(append([]byte{}, read.AuthData...), hash[:]...))
	signature, err := key.Sign(rand.Reader, signed[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	data, err := cbor.Marshal(map[string]any{"fmt": "packed", "authData": read.AuthData,
		"attStmt": map[string]any{"alg": -7, "sig": signature, "x5c": [][]byte{leaf.Raw}}})
	if err != nil {
		t.Fatal(err)
	}
	return data
}
