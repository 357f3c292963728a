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
	"path/filepath"
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
	refused int      // requests without a good token
}

// newTeamBroker starts a broker with keys that have certificates of their own.
func newTeamBroker(t *testing.T, token string, keys ...string) *teamBroker {
	t.Helper()
	b := &teamBroker{token: token, keys: map[string]*ecdsa.PrivateKey{}, chains: map[string][][]byte{}}
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
	case b.keys[key] == nil:
		refuse(w, http.StatusNotFound, "no such key")
	case action == "signatures":
		b.sign(w, r, key)
	default:
		public, err := x509.MarshalPKIXPublicKey(b.keys[key].Public())
		if err != nil {
			refuse(w, http.StatusInternalServerError, err.Error())
			return
		}
		reply(w, http.StatusOK, brokerapi.Key{Name: key, URI: "pkcs11:token=prod;object=" + key, Token: "pkcs11:token=prod",
			Label: key, Public: public, Chain: b.chains[key], State: "ready",
			Formats: []payload.Format{payload.Notation}})
	}
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
