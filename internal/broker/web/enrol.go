package web

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"log/slog"
	"net/http"
	"net/url"
	"slices"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/protocol/webauthncose"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// createOptions are the options of navigator.credentials.create.
type createOptions struct {
	RP struct {
		ID   string `json:"id"`
		Name string `json:"name"`
	} `json:"rp"`
	User struct {
		ID          []byte `json:"id"`
		Name        string `json:"name"`
		DisplayName string `json:"displayName"`
	} `json:"user"`
	Challenge          []byte       `json:"challenge"`
	PubKeyCredParams   []parameter  `json:"pubKeyCredParams"`
	ExcludeCredentials []descriptor `json:"excludeCredentials,omitempty"`
	Selection          struct {
		ResidentKey        string `json:"residentKey"`
		RequireResidentKey bool   `json:"requireResidentKey"`
		UserVerification   string `json:"userVerification"`
	} `json:"authenticatorSelection"`
	Attestation string `json:"attestation"`
	Timeout     int64  `json:"timeout"` // milliseconds
}

// parameter is an algorithm that a passkey may have.
type parameter struct {
	Type string                               `json:"type"`
	Alg  webauthncose.COSEAlgorithmIdentifier `json:"alg"`
}

// algorithms are those of passkeys, the best ones first.
var algorithms = []webauthncose.COSEAlgorithmIdentifier{webauthncose.AlgES256, webauthncose.AlgEdDSA,
	webauthncose.AlgRS256}

// invited names an invitation.
type invited struct {
	Token string `json:"token"`
}

// made is a new passkey.
type made struct {
	Token       string `json:"token"` // of the invitation
	Document    []byte `json:"document"`
	Seal        string `json:"seal"`
	ID          []byte `json:"id"`
	ClientData  []byte `json:"client_data"`
	Attestation []byte `json:"attestation"` // the attestation object
}

func (w *Web) enrolPage(*http.Request) (*view, error) {
	return &view{Template: "enrol", Title: "Enrol a passkey"}, nil
}

// beginEnrol tells whose invitation it is, and asks for a passkey of that person.
func (w *Web) beginEnrol(_ http.ResponseWriter, r *http.Request) (any, error) {
	var body invited
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, err
	}
	person, err := w.options.Broker.Invitation(r.Context(), body.Token)
	if err != nil {
		return nil, err
	}
	all, err := w.options.Broker.CredentialsOf(r.Context(), person)
	if err != nil {
		return nil, err
	}
	o := createOptions{Challenge: make([]byte, 32), Attestation: string(protocol.PreferDirectAttestation),
		ExcludeCredentials: passkeysOf(all), Timeout: enrolTime.Milliseconds()}
	_, _ = rand.Read(o.Challenge) // never fails
	o.RP.ID, o.RP.Name = w.options.RPID, "hsm-broker at "+w.options.RPID
	o.User.ID, o.User.Name, o.User.DisplayName = w.handleOf(person), person, person
	o.Selection.ResidentKey, o.Selection.RequireResidentKey, o.Selection.UserVerification = required, true, required
	for _, alg := range algorithms {
		o.PubKeyCredParams = append(o.PubKeyCredParams, parameter{"public-key", alg})
	}
	return &question{Document: o.Challenge, Seal: w.seal(forEnrol, body.Token+" "+person, o.Challenge, enrolTime),
		Person: person, Options: o}, nil
}

// finishEnrol has a new passkey enrolled.
func (w *Web) finishEnrol(_ http.ResponseWriter, r *http.Request) (any, error) {
	var body made
	if err := httpapi.ReadJSON(r, &body); err != nil {
		return nil, err
	}
	person, err := w.options.Broker.Invitation(r.Context(), body.Token)
	if err != nil {
		return nil, err
	}
	until, err := w.unseal(body.Seal, forEnrol, body.Token+" "+person, body.Document)
	if err != nil {
		return nil, err
	}
	credential, err := w.verifyPasskey(&body)
	if err != nil {
		return nil, err
	}
	if err := w.once(r.Context(), body.Document, until); err != nil {
		return nil, err
	}
	enrolled, err := w.options.Broker.Enrol(r.Context(), callerOf(person), person, *credential, body.Token)
	if err != nil {
		return nil, err
	}
	slog.Info("a passkey was enrolled", "person", person, "request", enrolled.ID)
	label := labelOf(credential)
	said := url.Values{"state": {string(enrolled.State)}, "passkey": {label},
		"seal": {w.seal(forEnrolled, "", []byte(label), enrolTime)}}
	return &going{"/enrol/done?" + said.Encode()}, nil
}

// enrolledPage says what comes after an enrolment, and names the passkey, as others see it who approve it.
func (w *Web) enrolledPage(r *http.Request) (*view, error) {
	values := r.URL.Query()
	label := values.Get("passkey")
	if _, err := w.unseal(values.Get("seal"), forEnrolled, "", []byte(label)); err != nil {
		label = "" // nobody else can have the page name a passkey
	}
	return &view{Template: "enrolled", Title: "Your passkey is registered", Data: struct {
		Counts  bool
		Passkey string
	}{values.Get("state") == string(brokerapi.Signed), label}}, nil
}

// verifyPasskey returns the credential of a new passkey, whose authenticator has answered the challenge.
func (w *Web) verifyPasskey(m *made) (*approval.Credential, error) {
	response := protocol.CredentialCreationResponse{
		PublicKeyCredential: protocol.PublicKeyCredential{RawID: m.ID, Credential: protocol.Credential{
			ID: base64.RawURLEncoding.EncodeToString(m.ID), Type: string(protocol.PublicKeyCredentialType)}},
		AttestationResponse: protocol.AuthenticatorAttestationResponse{AttestationObject: m.Attestation,
			AuthenticatorResponse: protocol.AuthenticatorResponse{ClientDataJSON: m.ClientData}},
	}
	parsed, err := response.Parse()
	if err != nil {
		return nil, refusedPasskey(err)
	}
	var parameters []protocol.CredentialParameter
	for _, alg := range algorithms {
		parameters = append(parameters, protocol.CredentialParameter{Type: protocol.PublicKeyCredentialType, Algorithm: alg})
	}
	_, err = parsed.Verify(base64.RawURLEncoding.EncodeToString(m.Document), w.options.RPID, []string{w.origin}, nil, nil,
		protocol.TopOriginExplicitVerificationMode, false, true, true, nil, parameters, protocol.AttestationPolicy{},
		protocol.SignaturePolicy{})
	if err != nil {
		return nil, refusedPasskey(err)
	}
	object := &parsed.Response.AttestationObject
	data := &object.AuthData.AttData
	if len(data.AAGUID) != 16 {
		return nil, refusedPasskey(failure.New(failure.Invalid, "it has no AAGUID"))
	}
	return &approval.Credential{Kind: approval.Passkey, Public: data.CredentialPublicKey, Passkey: &approval.WebAuthn{
		AAGUID: uuid(data.AAGUID), Attested: w.attested(object),
		BackupEligible: object.AuthData.Flags.HasBackupEligible(), ID: data.CredentialID, Origins: []string{w.origin},
		RPID: w.options.RPID}}, nil
}

func refusedPasskey(err error) error {
	return failure.New(failure.Denied, "cannot accept the passkey: %w", err).
		WithHint("load the page again, and use another authenticator if it happens again")
}

// uuid returns 16 bytes as RFC 9562 writes them.
func uuid(b []byte) string {
	return hex.EncodeToString(b[:4]) + "-" + hex.EncodeToString(b[4:6]) + "-" + hex.EncodeToString(b[6:8]) + "-" +
		hex.EncodeToString(b[8:10]) + "-" + hex.EncodeToString(b[10:])
}

// attested reports whether the certificates of an attestation, whose signature has verified, lead to a root of a
// manufacturer.
func (w *Web) attested(object *protocol.AttestationObject) bool {
	chain, _ := object.AttStatement["x5c"].([]any)
	if w.options.AttestationRoots == nil || len(chain) == 0 || len(chain) > maxChain {
		return false
	}
	var leaf *x509.Certificate
	between := x509.NewCertPool()
	for i, one := range chain {
		der, _ := one.([]byte)
		c, err := x509.ParseCertificate(der)
		switch {
		case err != nil:
			return false
		case i == 0:
			leaf = c
		default:
			between.AddCert(c)
		}
	}
	// A TPM's certificate names it in a critical extension that crypto/x509 leaves to its caller; go-webauthn has read it.
	leaf.UnhandledCriticalExtensions = slices.DeleteFunc(leaf.UnhandledCriticalExtensions, subjectAltName.Equal)
	_, err := leaf.Verify(x509.VerifyOptions{Roots: w.options.AttestationRoots, Intermediates: between,
		CurrentTime: w.options.Now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	if err != nil {
		slog.Info("the attestation of a passkey leads to no root that is listed", "error", err)
	}
	return err == nil
}

// maxChain is the largest number of certificates of an attestation.
const maxChain = 8

// subjectAltName is the extension subjectAltName (RFC 5280).
var subjectAltName = asn1.ObjectIdentifier{2, 5, 29, 17}
