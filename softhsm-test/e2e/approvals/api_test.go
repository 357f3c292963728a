package approvals

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity/identitytest"
)

// as returns a client with the certificate CN=NAME.
func (s *site) as(name string) *http.Client {
	s.t.Helper()
	if c := s.clients[name]; c != nil {
		return c
	}
	certificate, err := tls.LoadX509KeyPair(s.ClientCertificate(s.t, name))
	if err != nil {
		s.t.Fatal(err)
	}
	client := s.Client()
	client.Transport.(*http.Transport).TLSClientConfig.Certificates = []tls.Certificate{certificate}
	s.clients[name] = client
	return client
}

// call makes a request of the API as CN=NAME, or with a token, and reads the answer unless it is a failure. It returns
// the status and the text of the answer.
func (s *site) call(name, token, method, path string, body, answer any) (int, string) {
	s.t.Helper()
	var sent io.Reader
	if body != nil {
		data, err := json.Marshal(body)
		if err != nil {
			s.t.Fatal(err)
		}
		sent = strings.NewReader(string(data))
	}
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.URL+path, sent)
	if err != nil {
		s.t.Fatal(err)
	}
	client := s.Client()
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	} else {
		client = s.as(name)
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	response, err := client.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err == nil && answer != nil && response.StatusCode < 300 {
		err = json.Unmarshal(data, answer)
	}
	if err != nil {
		s.t.Fatalf("%s %s: %v\n%s", method, path, err, data)
	}
	return response.StatusCode, string(data)
}

// must makes a request of the API as CN=NAME that succeeds.
func (s *site) must(name, method, path string, body, answer any) {
	s.t.Helper()
	if status, text := s.call(name, "", method, path, body, answer); status >= 300 {
		s.t.Fatalf("%s %s by %s: %d %s", method, path, name, status, text)
	}
}

// token returns a token of a job of example/app on a ref.
func (s *site) mint(ref string) string {
	s.t.Helper()
	return s.Issuer.Mint(s.t, identitytest.GitHub(s.URL, "example/app", ref))
}

// artifact returns an artifact that is in no registry.
func artifact(text string) brokerapi.Target {
	return brokerapi.Target{Format: "notation", MediaType: "application/vnd.oci.image.manifest.v1+json", Size: 500,
		Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text)))}
}

// asks makes a request for an artifact as a job on a ref.
func (s *site) asks(ref, key, text string) string {
	s.t.Helper()
	var r brokerapi.Request
	status, answer := s.call("", s.mint(ref), http.MethodPost, brokerapi.RequestsPath,
		brokerapi.NewRequest{Key: key, Artifact: artifact(text)}, &r)
	if status >= 300 || r.State != brokerapi.Pending {
		s.t.Fatalf("a request for %q: %d %s", text, status, answer)
	}
	return r.ID
}

// signature asks for the signature of an artifact as a job on a ref. It returns what the broker says if it does not
// sign.
func (s *site) signature(ref, key, text string) (refusal string, signed bool) {
	s.t.Helper()
	header := `{"alg":"ES256","crit":["io.cncf.notary.signingScheme"],` +
		`"cty":"application/vnd.cncf.notary.payload.v1+json",` +
		`"io.cncf.notary.signingScheme":"notary.x509","io.cncf.notary.signingTime":"` +
		time.Now().UTC().Format(time.RFC3339) + `"}`
	body := fmt.Sprintf(`{"targetArtifact":{"digest":"%s","mediaType":"application/vnd.oci.image.manifest.v1+json",`+
		`"size":500}}`, artifact(text).Digest)
	encode := base64.RawURLEncoding.EncodeToString
	var made brokerapi.Signature
	status, answer := s.call("", s.mint(ref), http.MethodPost, brokerapi.SignaturesPath(key),
		brokerapi.SignatureRequest{Payload: []byte(encode([]byte(header)) + "." + encode([]byte(body))),
			Algorithm: "ECDSA-SHA-256"}, &made)
	return answer, status == http.StatusCreated && len(made.Signature) > 0
}

// evidence returns what a person is shown of a request.
func (s *site) evidence(name, id string) *brokerapi.Evidence {
	s.t.Helper()
	var e brokerapi.Evidence
	s.must(name, http.MethodGet, brokerapi.EvidencePath(id), nil, &e)
	return &e
}

// show returns a request as a person sees it.
func (s *site) show(name, id string) *brokerapi.Request {
	s.t.Helper()
	var r brokerapi.Request
	s.must(name, http.MethodGet, brokerapi.RequestPath(id), nil, &r)
	return &r
}

// envelope has a person sign a decision about a request.
func (s *site) envelope(name, id string, decision approval.Decision) *approval.Envelope {
	s.t.Helper()
	e := s.evidence(name, id)
	signed, err := s.people[name].signs(decision, e.You, s.credential(name, e), approval.Hash(e.Statement))
	if err != nil {
		s.t.Fatal(err)
	}
	return signed
}

// credential returns the one credential of the person in the evidence that the person has got.
func (s *site) credential(name string, e *brokerapi.Evidence) (id string) {
	s.t.Helper()
	for hash, document := range e.Credentials {
		if c, err := approval.DecodeCredential(document); err != nil || c.Approver == e.You {
			id = hash
		}
	}
	if id == "" {
		s.t.Fatalf("%s has no credential in %d", name, len(e.Credentials))
	}
	return id
}

// post gives the broker an envelope as a person, and returns its answer.
func (s *site) post(name, id string, e *approval.Envelope) (int, string) {
	s.t.Helper()
	data, err := e.Encode()
	if err != nil {
		s.t.Fatal(err)
	}
	return s.call(name, "", http.MethodPost, brokerapi.ApprovalsPath(id), brokerapi.SignedApproval{Envelope: data}, nil)
}

// decide has a person decide about a request.
func (s *site) decide(name, id string, decision approval.Decision) {
	s.t.Helper()
	if status, answer := s.post(name, id, s.envelope(name, id, decision)); status >= 300 {
		s.t.Fatalf("%s by %s: %d %s", decision, name, status, answer)
	}
}
