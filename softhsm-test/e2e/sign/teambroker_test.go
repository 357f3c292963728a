package sign

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/payload"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// A teamBroker answers as a team's broker that lets the holder of a token sign what they have asked for before. Below
// /github it is the endpoint of GitHub Actions for tokens.
type teamBroker struct {
	address, ca string // the CA as a PEM file
	token       string // that is good, for any number of requests

	mu      sync.Mutex
	keys    map[string]*ecdsa.PrivateKey
	chains  map[string][][]byte
	minted  []string // tokens that are good once
	asked   []string // KEY REPOSITORY DIGEST of requests
	pending bool     // people have to agree to each signature
	state   string   // of keys
	refused int      // requests without a good token
}

// newTeamBroker starts a broker with keys that have certificates of their own.
func newTeamBroker(t *testing.T, token string, keys ...string) *teamBroker {
	t.Helper()
	b := &teamBroker{token: token, keys: map[string]*ecdsa.PrivateKey{}, chains: map[string][][]byte{}, state: "ready"}
	for _, name := range keys {
		private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ca := softhsmtest.NewCA(t, name+" CA", nil)
		leaf := ca.Issue(t, softhsmtest.Template(name), private.Public())
		b.keys[name], b.chains[name] = private, [][]byte{leaf.Raw, ca.Cert.Raw}
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(b.serve))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	b.address, b.ca = server.URL, filepath.Join(t.TempDir(), "ca.pem")
	softhsmtest.Write(t, b.ca, softhsmtest.PEM(server.Certificate()))
	return b
}

func (b *teamBroker) serve(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	given := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
	if r.URL.Path == "/github" && given == b.token && r.URL.Query().Get("audience") == b.address {
		b.minted = append(b.minted, fmt.Sprintf("%s.%d", b.token, len(b.asked)+len(b.minted)+1))
		reply(w, http.StatusOK, map[string]string{"value": b.minted[len(b.minted)-1]})
		return
	}
	if i := slices.Index(b.minted, given); i >= 0 {
		b.minted[i] = "" // used
	} else if given != b.token {
		b.refused++
		refuse(w, http.StatusUnauthorized, "the token is not good")
		return
	}
	key, action, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, brokerapi.KeysPath+"/"), "/")
	switch {
	case r.URL.Path == brokerapi.RequestsPath:
		var n brokerapi.NewRequest
		if !read(w, r, &n) {
			return
		}
		b.asked = append(b.asked, n.Key+" "+n.Repository+" "+n.Artifact.Digest)
		reply(w, http.StatusCreated, brokerapi.Request{ID: "r-1", State: brokerapi.Approved, Key: n.Key})
	case r.URL.Path == brokerapi.KeysPath:
		reply(w, http.StatusOK, brokerapi.Keys{Keys: []brokerapi.Key{b.describe("release")}})
	case r.URL.Path == brokerapi.RequestPath(waiting.ID):
		b.pending = false
		reply(w, http.StatusOK, brokerapi.Request{ID: waiting.ID, State: brokerapi.Approved})
	case b.keys[key] == nil:
		refuse(w, http.StatusNotFound, "no such key")
	case action == "signatures":
		b.sign(w, r, key)
	default:
		reply(w, http.StatusOK, b.describe(key))
	}
}

// waiting is what a signature waits for while the broker is pending.
var waiting = brokerapi.Request{ID: "r-2", State: brokerapi.Pending, URL: "https://broker.example.com/r/r-2",
	Reason: "2 of release-managers have to agree"}

// describe returns a key as the API has it.
func (b *teamBroker) describe(key string) brokerapi.Key {
	public, _ := x509.MarshalPKIXPublicKey(b.keys[key].Public()) // does not fail for a key of a curve
	return brokerapi.Key{Name: key, URI: "broker:" + key, Token: "broker:", Label: key,
		Public: public, Chain: b.chains[key], State: b.state, Formats: []payload.Format{payload.Notation}}
}

// sign signs what was asked for.
func (b *teamBroker) sign(w http.ResponseWriter, r *http.Request, key string) {
	var request brokerapi.SignatureRequest
	if !read(w, r, &request) {
		return
	}
	artifact, err := payload.Read(request.Payload)
	if err != nil || artifact.Format != payload.Notation ||
		!slices.Contains(b.asked, key+" "+request.Repository+" "+artifact.Digest) {
		refuse(w, http.StatusForbidden, fmt.Sprintf("no rule for %+v in %q: %v", artifact, request.Repository, err))
		return
	}
	if b.pending {
		reply(w, http.StatusAccepted, waiting)
		return
	}
	hash := crypto.SHA256.New()
	hash.Write(request.Payload)
	signature, err := ecdsa.SignASN1(rand.Reader, b.keys[key], hash.Sum(nil))
	if err != nil {
		refuse(w, http.StatusInternalServerError, err.Error())
		return
	}
	reply(w, http.StatusCreated, brokerapi.Signature{Signature: signature, Algorithm: request.Algorithm})
}

func read(w http.ResponseWriter, r *http.Request, into any) bool {
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = brokerapi.ReadRequest(body, into)
	}
	if err != nil {
		refuse(w, http.StatusBadRequest, err.Error())
	}
	return err == nil
}

func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

func refuse(w http.ResponseWriter, status int, detail string) {
	w.Header().Set("Content-Type", brokerapi.ProblemType)
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(brokerapi.Problem{Status: status, Kind: "denied", Detail: detail})
}

// TestTeamBroker uses a key of a team's broker with a program without PKCS#11, and shows what keeps it from signing.
func TestTeamBroker(t *testing.T) {
	softhsmtest.Parallel(t)
	m := newMachine(t)
	n := &softhsmtest.Notation{Program: softhsmtest.Build(t, "notation"), Plugin: m.static()}
	image := m.repository + "@" + m.digest
	softhsmtest.Run(t, n.Plugin, "install")
	if list := softhsmtest.Run(t, n.Plugin, "key", "list"); !strings.Contains(list, "release") {
		t.Errorf("the list is\n%s", list)
	}
	doctor := func(want ...string) {
		t.Helper()
		report, _, _ := softhsmtest.Try(t, "", n.Plugin, "doctor", "broker:release")
		for _, line := range want {
			if !regexp.MustCompile(`(?m)^` + line).MatchString(report) {
				t.Errorf("no line %q in\n%s", line, report)
			}
		}
		if strings.Contains(report, brokerToken) {
			t.Errorf("the token is in\n%s", report)
		}
	}
	doctor(`ok +credentials +a token of \d+ bytes \(gitlab:BROKER_TOKEN\)`, `ok +broker +https://127.0.0.1:\d+ answers$`,
		`ok +state`, `ok +formats +the broker accepts notation`, `ok +chain`)
	m.broker.set(func(b *teamBroker) { b.state = "blocked" })
	doctor(`ok +broker`, `failure +state +the key is blocked`)
	m.broker.set(func(b *teamBroker) { b.state = "" })
	softhsmtest.Setenv(t, "BROKER_TOKEN", "")
	doctor(`failure +credentials +.*BROKER_TOKEN is not set`, `not checked +broker`)
	softhsmtest.Setenv(t, "BROKER_TOKEN", brokerToken)
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER_CA", "")
	doctor(`ok +credentials`, `failure +broker +cannot verify the TLS certificate`)
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER_CA", m.broker.ca)

	sign := func(arguments ...string) (output string, err error) {
		stdout, stderr, err := softhsmtest.Try(t, "", n.Program, append([]string{"sign", "--plugin", "hsm", "--id",
			"broker:release", "--plugin-config", "repository=" + m.repository, image}, arguments...)...)
		return stdout + stderr, err
	}
	if out, err := sign(); err == nil || !strings.Contains(out, "no rule for") {
		t.Errorf("what nobody asked for: %v\n%s", err, out)
	}
	softhsmtest.Run(t, n.Plugin, "request", "create", "--key", "broker:release", "--image", image, "--wait")
	m.broker.set(func(b *teamBroker) { b.pending = true })
	if out, err := sign(); err == nil || !strings.Contains(out, waiting.URL) || !strings.Contains(out, waiting.Reason) ||
		!strings.Contains(out, "Hint: run it again once the request is approved") {
		t.Errorf("while people have to agree: %v\n%s", err, out)
	}
	if out, err := sign("--plugin-config", "approval-wait=1h"); err != nil {
		t.Errorf("it does not wait: %v\n%s", err, out)
	}
	softhsmtest.Run(t, n.Program, "verify", image)

	// cosign's plugin takes the same settings.
	ask := `{"methodName":"publicKey","publicKey":{"publicKeyOptions":{"rpcOptions":{"remoteVerification":false}}},` +
		`"initOptions":{"protocolVersion":"v1","keyResourceID":"broker:release","hashFunc":5}}`
	said := softhsmtest.Run(t, softhsmtest.Build(t, "sigstore-kms-hsm"), "v1", ask)
	if !strings.Contains(said, `"publicKeyPEM"`) {
		t.Errorf("cosign's plugin says %s", said)
	}

	// Data may name the broker only where the environment or the config file does.
	installed := []string{"install", "--key-name", "team", "--key", "broker:release", "--broker", m.broker.address}
	softhsmtest.Run(t, n.Plugin, installed...)
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER", "https://other.example.com")
	_, errors, err := softhsmtest.Try(t, "", n.Plugin, installed...)
	if err == nil || !strings.Contains(errors, "neither the environment nor the config file names it") {
		t.Errorf("%v\n%s", err, errors)
	}
	out, errors, err := softhsmtest.Try(t, "", n.Program, "sign", "--key", "team", image)
	if err == nil || !strings.Contains(out+errors, "neither the environment nor the config file names it") {
		t.Errorf("%v\n%s%s", err, out, errors)
	}
}

// set changes the broker.
func (b *teamBroker) set(change func(*teamBroker)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	change(b)
}

// static builds notation-hsm as docs/pipelines.md has it, without cgo.
func (m *machine) static() string {
	m.t.Helper()
	program := filepath.Join(m.folder, "static", "notation-hsm")
	cmd := exec.Command("go", "build", "-tags", "containers_image_openpgp", "-trimpath", "-o", program,
		"./cmd/notation-hsm")
	cmd.Dir = softhsmtest.Root()
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if text, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("%v\n%s", err, text)
	}
	return program
}
