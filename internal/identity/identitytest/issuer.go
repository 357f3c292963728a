// Package identitytest has an issuer of OIDC tokens for tests: a real server over TLS, whose keys can be rotated, and
// that can be down.
package identitytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Issuer issues tokens.
type Issuer struct {
	URL string
	CA  string // PEM file of the issuer's own certificate

	mu      sync.Mutex
	keys    []jose.JSONWebKey // the newest is the last
	other   []jose.JSONWebKey // published as well, never used by Mint
	answers map[string]http.HandlerFunc
	slow    chan struct{} // closed when answers may go on; nil: at once
	down    bool
	fetches int // of the keys
	minted  int
}

// New starts an issuer on loopback.
func New(t testing.TB) *Issuer {
	t.Helper()
	i := &Issuer{answers: map[string]http.HandlerFunc{}}
	i.Rotate(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(i.serve))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	i.URL = server.URL
	i.CA = filepath.Join(t.TempDir(), "issuer.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(i.CA, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return i
}

func (i *Issuer) serve(w http.ResponseWriter, r *http.Request) {
	i.mu.Lock()
	slow, answer := i.slow, i.answers[r.URL.Path]
	i.mu.Unlock()
	if slow != nil {
		select {
		case <-slow:
		case <-r.Context().Done():
			return
		}
	}
	if answer != nil {
		answer(w, r)
		return
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.down {
		http.Error(w, "down", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		_ = json.NewEncoder(w).Encode(map[string]any{"issuer": i.URL, "jwks_uri": i.URL + "/keys",
			"id_token_signing_alg_values_supported": []string{"ES256", "RS256"}})
	case "/keys":
		i.fetches++
		set := jose.JSONWebKeySet{}
		for _, k := range i.keys {
			set.Keys = append(set.Keys, k.Public())
		}
		set.Keys = append(set.Keys, i.other...)
		_ = json.NewEncoder(w).Encode(set)
	default:
		http.NotFound(w, r)
	}
}

// Rotate has later tokens signed by a new key. The old ones stay published.
func (i *Issuer) Rotate(t testing.TB) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.keys = append(i.keys, jose.JSONWebKey{Key: private, KeyID: fmt.Sprintf("key-%d", len(i.keys)+1), Use: "sig",
		Algorithm: "ES256"})
}

// Down has the issuer answer nothing but failures, or no longer.
func (i *Issuer) Down(down bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.down = down
}

// Slow has the issuer hold its answers back until the function that it returns is called, or the client hangs up.
func (i *Issuer) Slow() (release func()) {
	held := make(chan struct{})
	i.mu.Lock()
	defer i.mu.Unlock()
	i.slow = held
	return sync.OnceFunc(func() {
		i.mu.Lock()
		defer i.mu.Unlock()
		i.slow = nil
		close(held)
	})
}

// Answer has the issuer answer a path by a function. A nil function restores its own answer.
func (i *Issuer) Answer(path string, answer http.HandlerFunc) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.answers[path] = answer
}

// Publish adds keys to those that the issuer publishes.
func (i *Issuer) Publish(keys ...jose.JSONWebKey) {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.other = append(i.other, keys...)
}

// Key returns the private key that Mint uses.
func (i *Issuer) Key() jose.JSONWebKey {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.keys[len(i.keys)-1]
}

// Fetches returns how often the keys were fetched.
func (i *Issuer) Fetches() int {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.fetches
}

// Mint returns a token with claims, which replace those that it has by itself: iss, iat, nbf, exp in 5 minutes, and
// jti. A nil claim is left out.
func (i *Issuer) Mint(t testing.TB, claims map[string]any) string {
	t.Helper()
	i.mu.Lock()
	defer i.mu.Unlock()
	i.minted++
	now := time.Now()
	all := map[string]any{"iss": i.URL, "iat": now.Unix(), "nbf": now.Unix(), "exp": now.Add(5 * time.Minute).Unix(),
		"jti": fmt.Sprintf("token-%d", i.minted)}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, value any) bool { return value == nil })
	payload, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return i.sign(t, payload)
}

// sign signs a payload with the newest key. The caller holds the lock.
func (i *Issuer) sign(t testing.TB, payload []byte) string {
	t.Helper()
	newest := i.keys[len(i.keys)-1]
	options := (&jose.SignerOptions{}).WithType("JWT")
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: newest}, options)
	if err != nil {
		t.Fatal(err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		t.Fatal(err)
	}
	compact, err := signed.CompactSerialize()
	if err != nil {
		t.Fatal(err)
	}
	return compact
}

// GitHub returns the claims of a token of GitHub Actions for a job of a repository, on a ref
// (https://docs.github.com/en/actions/reference/security/oidc).
func GitHub(audience, repository, ref string) map[string]any {
	return map[string]any{
		"aud": audience, "sub": "repo:" + repository + ":ref:" + ref, "ref": ref, "ref_type": "branch",
		"sha":        "6dcb09b5b57875f334f61aebed695e2e4193db5e",
		"repository": repository, "repository_id": "74", "repository_owner": "example", "repository_owner_id": "65",
		"repository_visibility": "private", "run_id": "9001", "run_number": "10", "run_attempt": "2", "actor": "octocat",
		"actor_id": "12", "workflow": "release", "workflow_ref": repository + "/.github/workflows/release.yml@" + ref,
		"workflow_sha":     "6dcb09b5b57875f334f61aebed695e2e4193db5e",
		"job_workflow_ref": repository + "/.github/workflows/release.yml@" + ref, "event_name": "push",
		"head_ref": "", "base_ref": "", "ref_protected": "true", "runner_environment": "github-hosted",
	}
}
