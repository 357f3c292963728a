// Package team tests 'hsm-broker serve' from the outside: the programs, a token, a registry and an issuer are real.
package team

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// policy lets the branch main of example/app sign, and operators with a certificate change what is in force.
const policy = `version: 1
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: main
      when: caller.issuer == "ISSUER" && caller.claims.repository == "example/app"
        && caller.claims.ref == "refs/heads/main"
    block: [{name: operators, when: caller.subject == "CN=operator"}]
    unblock: [{name: operators, when: caller.subject == "CN=operator"}]
    modify: [{name: operators, when: caller.subject == "CN=operator"}]
`

// team is a broker with a key for releases, and what its callers need.
type team struct {
	*softhsmtest.TeamBroker
	t        testing.TB
	token    *softhsmtest.Token
	notation *softhsmtest.Notation
	public   crypto.PublicKey // of the key release
	chain    string           // PEM file with its certificate
	flags    []string         // by which the log is verified
	http     *http.Client
	images   atomic.Int64
}

// start starts a broker whose policy, unless options have another, is the one above.
func start(t testing.TB, o softhsmtest.TeamOptions) *team {
	t.Helper()
	return startOn(t, softhsmtest.NewToken(t, "prod"), o)
}

// startOn does so for a token that exists.
func startOn(t testing.TB, token *softhsmtest.Token, o softhsmtest.TeamOptions) *team {
	t.Helper()
	s := &team{t: t, token: token, notation: softhsmtest.NewNotation(t, token)}
	_, s.chain = softhsmtest.NewKey(t, token, s.notation.Plugin, "EC-256", "release")
	block, _ := pem.Decode([]byte(softhsmtest.Read(t, s.chain)))
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	s.public = leaf.PublicKey
	if o.Policy == "" {
		o.Policy = policy
	}
	s.TeamBroker = softhsmtest.StartTeam(t, token, o)
	s.http, s.flags = s.Client(), s.LogFlags()
	return s
}

// mint returns a token of a job of a repository, on a branch.
func (s *team) mint(repository, branch string) string {
	s.t.Helper()
	return s.Issuer.Mint(s.t, identitytest.GitHub(s.URL, repository, "refs/heads/"+branch))
}

// ci returns a token that the policy lets sign.
func (s *team) ci() string { return s.mint("example/app", "main") }

// image returns what Notation has signed for an image that nobody has signed yet.
func (s *team) image() brokerapi.SignatureRequest {
	header := `{"alg":"ES256","crit":["io.cncf.notary.signingScheme"],` +
		`"cty":"application/vnd.cncf.notary.payload.v1+json",` +
		`"io.cncf.notary.signingScheme":"notary.x509","io.cncf.notary.signingTime":"` +
		time.Now().UTC().Format(time.RFC3339) + `"}`
	digest := sha256.Sum256(fmt.Appendf(nil, "image %d", s.images.Add(1)))
	body := fmt.Sprintf(`{"targetArtifact":{"digest":"sha256:%x",`+
		`"mediaType":"application/vnd.oci.image.manifest.v1+json","size":500}}`, digest)
	encode := base64.RawURLEncoding.EncodeToString
	return brokerapi.SignatureRequest{Payload: []byte(encode([]byte(header)) + "." + encode([]byte(body))),
		Algorithm: "ECDSA-SHA-256"}
}

// call makes a request of the API. It returns the failure that the broker answers with; err is one of the connection.
func (s *team) call(token, method, path string, body, answer any) (problem *failure.Error, err error) {
	return s.callBy(s.http, token, method, path, body, answer)
}

func (s *team) callBy(client *http.Client, token, method, path string, body, answer any) (problem *failure.Error,
	err error) {
	var sent io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		sent = strings.NewReader(string(data))
	}
	r, err := http.NewRequest(method, s.URL+path, sent) //nolint:noctx // the client has a timeout
	if err != nil {
		return nil, err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	response, err := client.Do(r)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, err
	}
	if response.StatusCode < 300 {
		return nil, json.Unmarshal(data, answer)
	}
	var p brokerapi.Problem
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s: %w: %s", response.Status, err, data)
	}
	if p.Status != response.StatusCode || p.Detail == "" || p.Kind == "" {
		return nil, fmt.Errorf("%s: this is no problem: %s", response.Status, data)
	}
	return p.Failure(), nil
}

// sign asks for a signature and verifies it.
func (s *team) sign(token string, r brokerapi.SignatureRequest) (*brokerapi.Signature, *failure.Error, error) {
	var signature brokerapi.Signature
	problem, err := s.call(token, http.MethodPost, brokerapi.SignaturesPath("release"), r, &signature)
	if err != nil || problem != nil {
		return nil, problem, err
	}
	if !brokerapi.Verify(s.public, r.Payload, signature.Signature, crypto.SHA256) {
		return nil, nil, fmt.Errorf("the signature of request %s does not verify", signature.Request)
	}
	return &signature, nil, nil
}

// signs signs an image.
func (s *team) signs() *brokerapi.Signature {
	s.t.Helper()
	signature, problem, err := s.sign(s.ci(), s.image())
	if err != nil || problem != nil {
		s.t.Fatalf("signing: %v, %v", problem, err)
	}
	return signature
}

// refuses checks that signing an image fails with a kind, and a part of the text.
func (s *team) refuses(kind failure.Kind, text string) {
	s.t.Helper()
	_, problem, err := s.sign(s.ci(), s.image())
	if err != nil || problem == nil || problem.Kind != kind || !strings.Contains(problem.Error(), text) ||
		problem.Hint == "" {
		s.t.Errorf("signing: %v, %v; not %s with %q and a hint", problem, err, kind, text)
	}
}

// operator returns a client with the certificate of an operator.
func (s *team) operator() *http.Client { return s.withCertificate("operator") }

// withCertificate returns a client with the certificate of a caller.
func (s *team) withCertificate(name string) *http.Client {
	s.t.Helper()
	certificate, err := tls.LoadX509KeyPair(s.ClientCertificate(s.t, name))
	if err != nil {
		s.t.Fatal(err)
	}
	client := s.Client()
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{certificate}
	return client
}

// propose asks for a change as an operator, and fails the test unless it is made.
func (s *team) propose(path string) {
	s.t.Helper()
	var made brokerapi.Request
	problem, err := s.callBy(s.operator(), "", http.MethodPost, path, nil, &made)
	if err != nil || problem != nil {
		s.t.Fatalf("%s: %v, %v", path, problem, err)
	}
}

// event is what the tests look at in an entry of the log.
type event struct {
	Type, Request, Payload, Key, Rule, Policy string
	Index                                     int64
	Retry                                     bool
}

// audit verifies the whole log as anyone can, with 'hsm-broker log' and entry by entry, and returns its events.
func (s *team) audit() (events []event) {
	s.t.Helper()
	return s.auditDir(s.ExportLog(s.flags), softhsmtest.LogOrigin)
}

func (s *team) auditDir(dir, origin string) (events []event) {
	s.t.Helper()
	block, _ := pem.Decode([]byte(softhsmtest.Read(s.t, s.flags[1])))
	key, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	verifier, err := translog.NewVerifier(origin, key)
	if err != nil {
		s.t.Fatal(err)
	}
	audit := broker.NewAudit()
	_, err = translog.VerifyDir(s.t.Context(), dir, []*translog.Verifier{verifier}, translog.Options{
		Each: func(index int64, _ translog.Event, entry []byte) error {
			var e event
			if err := json.Unmarshal(entry, &e); err != nil {
				return err
			}
			events = append(events, e)
			return audit.Entry(index, entry)
		}})
	if err != nil {
		s.t.Fatalf("the log: %v", err)
	}
	return events
}

// count returns how many events have a type.
func count(events []event, kind string) (n int) {
	for _, e := range events {
		if e.Type == kind {
			n++
		}
	}
	return n
}
