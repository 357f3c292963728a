package agent

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi/brokerapitest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// server is an agent whose module is in memory: the token signing with the key release, of EC-256.
type server struct {
	t           testing.TB
	module      *keystoretest.Module
	agent       *Agent
	description *brokerapitest.Description
	seen        map[string]bool // operations with their statuses
}

func newServer(t testing.TB, change func(*Options)) *server {
	t.Helper()
	s := &server{t: t, module: keystoretest.New("signing"), description: brokerapitest.Load(t), seen: map[string]bool{}}
	s.key("release", newKey(t, "EC-256"), key.Sign)
	o := Options{Formats: []payload.Format{payload.Notation}}
	o.Open = func() (*keystore.Keystore, *keystore.Reference, error) {
		token := s.module.Reference("signing", "")
		return token.Keystore(), token, nil
	}
	if change != nil {
		change(&o)
	}
	s.agent = New(o)
	t.Cleanup(func() { s.agent.Close() })
	return s
}

func newKey(t testing.TB, spec string) crypto.Signer {
	t.Helper()
	parsed, err := key.ParseSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	private, err := keystoretest.NewKey(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return private
}

func (s *server) key(label string, private crypto.Signer, usage key.Usage) {
	s.module.Key(s.t, "signing", label, private, usage)
}

// do has the agent answer a request, and fails the test unless the description has the answer.
func (s *server) do(r *http.Request) brokerapitest.Answer {
	s.t.Helper()
	recorder := httptest.NewRecorder()
	s.agent.Handler().ServeHTTP(recorder, r)
	answer := brokerapitest.Answer{Status: recorder.Code, Header: recorder.Header(), Body: recorder.Body.Bytes()}
	operation, err := s.description.Check(r, answer)
	if err != nil {
		s.t.Errorf("%s %s: %v\n%s", r.Method, r.URL, err, answer.Body)
	}
	s.seen[fmt.Sprintf("%s %d", operation, answer.Status)] = true
	return answer
}

// want is do for a request to which the answer has this status. It returns the problem, if it is one.
func (s *server) want(status int, r *http.Request) (p brokerapi.Problem) {
	s.t.Helper()
	answer := s.do(r)
	if answer.Status != status {
		s.t.Errorf("%s %s: status %d, want %d: %s", r.Method, r.URL, answer.Status, status, answer.Body)
	}
	if answer.Status >= 400 {
		if err := json.Unmarshal(answer.Body, &p); err != nil || p.Status != answer.Status || p.Detail == "" {
			s.t.Errorf("%s %s: %v, %s", r.Method, r.URL, err, answer.Body)
		}
	}
	return p
}

func get(path string) *http.Request { return httptest.NewRequest(http.MethodGet, path, nil) }

// post returns a request with a body: JSON as it is, or a message.
func post(path string, body any) *http.Request {
	var data []byte
	switch body := body.(type) {
	case string:
		data = []byte(body)
	default:
		data, _ = json.Marshal(body)
	}
	r := httptest.NewRequest(http.MethodPost, path, bytes.NewReader(data))
	r.Header.Set("Content-Type", "application/json")
	return r
}

// notation returns what Notation has a key sign in JWS.
func notation(algorithm string, at time.Time) []byte {
	header, _ := json.Marshal(map[string]any{
		"alg": algorithm, "crit": []string{"io.cncf.notary.signingScheme"},
		"cty":                          "application/vnd.cncf.notary.payload.v1+json",
		"io.cncf.notary.signingScheme": "notary.x509",
		"io.cncf.notary.signingTime":   at.UTC().Format(time.RFC3339),
	})
	content, _ := json.Marshal(map[string]any{"targetArtifact": map[string]any{
		"annotations": map[string]string{"io.example.build": "7"},
		"digest":      "sha256:" + strings.Repeat("a", 64),
		"mediaType":   "application/vnd.oci.image.manifest.v1+json", "size": 525,
	}})
	encode := base64.RawURLEncoding.EncodeToString
	return []byte(encode(header) + "." + encode(content))
}

// sign returns a request for a signature by ECDSA with SHA-256.
func sign(label string) *http.Request {
	return post(brokerapi.SignaturesPath(label), brokerapi.SignatureRequest{
		Payload: notation("ES256", time.Now()), Algorithm: "ECDSA-SHA-256"})
}

type slowReader struct{}

func (slowReader) Read([]byte) (int, error) { return 0, os.ErrDeadlineExceeded }

// endless is a body without an end.
type endless struct{}

func (endless) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = ' '
	}
	return len(b), nil
}

func changed(r *http.Request, change func(*http.Request)) *http.Request {
	change(r)
	return r
}

// layerKey returns a request to unwrap the key of an image layer that was wrapped for a key.
func layerKey(t testing.TB, label string, public crypto.PublicKey) func() *http.Request {
	t.Helper()
	jwe, err := layerkey.Seal([]byte("{}"), []layerkey.Recipient{{Name: label, Public: public}})
	if err != nil {
		t.Fatal(err)
	}
	return func() *http.Request {
		return post(brokerapi.LayerKeysPath(label), brokerapi.LayerKeyRequest{JWE: jwe})
	}
}

// TestContract has every operation answer with every status that the description has for it, and with no other.
func TestContract(t *testing.T) {
	t.Parallel()
	s := newServer(t, func(o *Options) { o.Formats = []payload.Format{payload.Notation, payload.LayerKey} })
	recipient := newKey(t, "EC-256")
	s.key("nodes", recipient, key.Decrypt)
	path := brokerapi.KeyPath("release")
	describe := func() *http.Request { return get(path) }
	list := func() *http.Request { return get(brokerapi.KeysPath) }
	signature := func() *http.Request { return sign("release") }
	unwrap := layerKey(t, "nodes", recipient.Public())
	status := func() *http.Request { return get(brokerapi.AgentPath) }
	lock := func() *http.Request { return post(brokerapi.AgentLockPath, "") }
	stop := func() *http.Request { return post(brokerapi.AgentStopPath, "") }
	all := []func() *http.Request{list, describe, signature, unwrap, status, lock, stop}

	s.want(200, list())
	s.want(200, describe())
	s.want(200, get(brokerapi.KeyPath("nodes")))
	s.want(201, signature())
	s.want(200, unwrap())
	s.want(200, status())
	s.want(200, lock())
	s.want(200, status())
	s.want(404, get(brokerapi.KeyPath("other")))
	s.want(404, sign("other"))
	s.want(404, layerKey(t, "other", recipient.Public())())
	hash := brokerapi.SignatureRequest{Payload: make([]byte, 32), Algorithm: "ECDSA-SHA-256"}
	s.want(403, post(path+"/signatures", hash))
	for _, request := range all {
		s.want(400, changed(request(), func(r *http.Request) { r.URL.RawQuery = "all=1" }))
		s.want(400, changed(request(), func(r *http.Request) { r.Proto, r.ProtoMinor = "HTTP/1.0", 0 }))
	}
	for _, request := range []func() *http.Request{signature, unwrap} {
		s.want(400, changed(request(), func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader("{}")) }))
		s.want(408, changed(request(), func(r *http.Request) { r.Body = io.NopCloser(slowReader{}) }))
		s.want(413, changed(request(), func(r *http.Request) { r.Body, r.ContentLength = io.NopCloser(endless{}), -1 }))
		s.want(413, changed(request(), func(r *http.Request) { r.ContentLength = 1 << 40 }))
		s.want(415, changed(request(), func(r *http.Request) { r.Header.Del("Content-Type") }))
	}
	ends := []func(){}
	for i := range httpapi.MaxRequests {
		end, err := s.agent.limits.Begin(t.Context(), strconv.Itoa(i))
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, end)
	}
	for _, request := range all {
		s.want(429, request())
	}
	for _, end := range ends {
		end()
	}

	for kind, status := range map[failure.Kind]int{failure.Denied: 403, failure.Throttled: 429, failure.Internal: 500,
		failure.Unsupported: 501, failure.Unavailable: 503, failure.Timeout: 504} {
		refused := failure.New(kind, "cannot open the token").WithHint("look at the module")
		refused.CKR = "CKR_GENERAL_ERROR"
		if err := s.agent.Lock(); err != nil {
			t.Fatal(err)
		}
		s.module.Fail("Open", refused)
		for _, request := range []func() *http.Request{list, describe, signature, unwrap} {
			if p := s.want(status, request()); p.Kind != kind.String() || p.CKR != refused.CKR || p.Detail != refused.What {
				t.Errorf("%+v", p)
			}
		}
		s.module.Fail("Open", nil)
	}
	for operation, request := range map[string]func() *http.Request{"Sign": signature, "ECDH": unwrap} {
		s.module.Fail(operation, failure.New(failure.Conflict, "the key was replaced"))
		s.want(409, request())
		s.module.Fail(operation, nil)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s.key("edwards", edwards, key.Sign)
	s.want(501, sign("edwards"))
	s.want(202, stop())

	documented := s.description.Operations()
	served := s.agent.operations()
	for operation, statuses := range documented {
		if served[operation] == nil {
			t.Errorf("%s is described and not served", operation)
		}
		for _, status := range statuses {
			if !s.seen[operation+" "+status] {
				t.Errorf("%s never answered with %s", operation, status)
			}
		}
	}
	for operation := range served {
		if documented[operation] == nil {
			t.Errorf("%s is served and not described", operation)
		}
	}
}

// TestUnknownOperation answers what is no operation with problem details.
func TestUnknownOperation(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	for _, path := range []string{"/", "/v1", "/v1/", "/v2/keys/release", "/v1/keys/release/", "//v1/keys/release",
		"/v1/keys/../keys/release", "/v1/./keys/release", "/v1/keys/release/signatures/", "/V1/keys/release",
		"/v1/keys/a/b/signatures", "/v1/keys//signatures"} {
		for _, method := range []string{"GET", "POST", "DELETE", "HEAD", "-"} {
			s.want(404, httptest.NewRequest(method, path, nil))
		}
	}
	for path, allowed := range map[string]string{"/v1/keys/release": "GET", "/v1/keys/release/signatures": "POST"} {
		for _, method := range []string{"GET", "POST", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "get"} {
			if method == allowed {
				continue
			}
			answer := s.do(httptest.NewRequest(method, path, nil))
			if answer.Status != 405 || answer.Header.Get("Allow") != allowed {
				t.Errorf("%s %s: %d, Allow: %s", method, path, answer.Status, answer.Header.Get("Allow"))
			}
		}
	}
	for name, r := range map[string]*http.Request{
		"OPTIONS *": changed(get("/"), func(r *http.Request) { r.Method, r.URL.Path, r.RequestURI = "OPTIONS", "*", "*" }),
		"CONNECT":   changed(get("/"), func(r *http.Request) { r.Method, r.URL.Path = "CONNECT", "" }),
	} {
		if p := s.want(404, r); p.Kind != "not-found" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	p := s.want(400, changed(get("/v1/keys/release"), func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader("{}")), 2
	}))
	if !strings.Contains(p.Detail, "body") {
		t.Errorf("%+v", p)
	}
}

// TestStrictRequests refuses all but one JSON object with the names of the API, in base64 of one kind.
func TestStrictRequests(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	path := brokerapi.SignaturesPath("release")
	encoded := base64.StdEncoding.EncodeToString(notation("ES256", time.Now()))
	valid := fmt.Sprintf(`{"payload":%q,"algorithm":"ECDSA-SHA-256"}`, encoded)
	s.want(201, post(path, valid))
	s.want(201, post(path, " \n{\n\"algorithm\": \"ECDSA-SHA-256\", \"payload\": "+
		strings.ReplaceAll(fmt.Sprintf("%q", encoded), "/", `\/`)+"}\r\n"))
	for name, body := range map[string]string{
		"nothing":           "",
		"space":             " ",
		"NUL":               valid + "\x00",
		"null":              "null",
		"array":             "[" + valid + "]",
		"string":            `"payload"`,
		"truncated":         valid[:len(valid)-1],
		"two objects":       valid + valid,
		"byte order mark":   "\ufeff" + valid,
		"other case":        strings.Replace(valid, `"payload"`, `"Payload"`, 1),
		"both cases":        strings.Replace(valid, "{", `{"Payload":"",`, 1),
		"long s":            strings.Replace(valid, `"algorithm"`, `"algorithm\u0000"`, 1),
		"twice":             strings.Replace(valid, "{", `{"payload":"",`, 1),
		"twice, escaped":    strings.Replace(valid, "{", `{"\u0070ayload":"",`, 1),
		"unknown":           strings.Replace(valid, "{", `{"digest":"",`, 1),
		"missing algorithm": fmt.Sprintf(`{"payload":%q}`, encoded),
		"missing payload":   `{"algorithm":"ECDSA-SHA-256"}`,
		"null payload":      `{"payload":null,"algorithm":"ECDSA-SHA-256"}`,
		"null algorithm":    fmt.Sprintf(`{"payload":%q,"algorithm":null}`, encoded),
		"number":            `{"payload":1e999,"algorithm":"ECDSA-SHA-256"}`,
		"bytes in an array": `{"payload":[1,2,3],"algorithm":"ECDSA-SHA-256"}`,
		"object":            `{"payload":{"a":{}},"algorithm":"ECDSA-SHA-256"}`,
		"deep":              `{"payload":` + strings.Repeat("[", 100000) + `,"algorithm":"ECDSA-SHA-256"}`,
		"line break":        strings.Replace(valid, encoded, encoded[:8]+`\n`+encoded[8:], 1),
		"carriage return":   strings.Replace(valid, encoded, encoded+`\r`, 1),
		"space in base64":   strings.Replace(valid, encoded, encoded[:8]+` `+encoded[8:], 1),
		"base64url":         `{"payload":"-_-_","algorithm":"ECDSA-SHA-256"}`,
		"no padding":        `{"payload":"YQ","algorithm":"ECDSA-SHA-256"}`,
		"trailing bits":     `{"payload":"YR==","algorithm":"ECDSA-SHA-256"}`,
		"more padding":      `{"payload":"YQ====","algorithm":"ECDSA-SHA-256"}`,
		"invalid UTF-8":     strings.Replace(valid, "ECDSA", "ECDSA\xff", 1),
		"other algorithm":   strings.Replace(valid, "ECDSA-SHA-256", "ecdsa-sha-256", 1),
	} {
		if p := s.want(400, post(path, body)); p.Kind != "invalid" {
			t.Errorf("%s: %+v", name, p)
		}
	}
	for _, media := range []string{"", "text/plain", "application/json; x=y", "application/problem+json",
		"application/json,", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "*/*"} {
		r := post(path, valid)
		r.Header.Set("Content-Type", media)
		s.want(415, r)
	}
	r := post(path, valid)
	r.Header.Set("Content-Encoding", "gzip")
	s.want(415, r)
	r = post(path, valid)
	r.Header.Set("Content-Type", "Application/JSON; charset=utf-8")
	r.Header.Set("Accept", "text/html")
	s.want(201, r)
}

// TestHandlerPanic answers with a problem, and the agent goes on.
func TestHandlerPanic(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	s.module.Before("Sign", func() error { panic("a defect with a secret") })
	p := s.want(500, sign("release"))
	if p.Kind != "internal" || strings.Contains(p.Detail, "secret") {
		t.Errorf("%+v", p)
	}
	s.module.Before("Sign", nil)
	s.want(201, sign("release"))
}
