package agent_test

import (
	"bytes"
	"context"
	"crypto"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/agent"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
	"github.com/notation-hsm/notation-hsm/internal/payload"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// holding returns an agent with a token in memory that has a key to sign with, and one of a recipient.
func holding(t *testing.T, change func(*agent.Options)) (*agent.Agent, *keystoretest.Module) {
	t.Helper()
	m := keystoretest.New("signing")
	for label, usage := range map[string]key.Usage{"release": key.Sign, "nodes": key.Decrypt} {
		spec, err := key.ParseSpec("EC-256")
		if err != nil {
			t.Fatal(err)
		}
		private, err := keystoretest.NewKey(spec)
		if err != nil {
			t.Fatal(err)
		}
		m.Key(t, "signing", label, private, usage)
		if usage == key.Sign {
			ca := softhsmtest.NewCA(t, "root", nil)
			m.Certificate(t, "signing", label, ca.Issue(t, softhsmtest.Template("release"), private.Public()))
		}
	}
	o := agent.Options{Formats: []payload.Format{payload.Notation},
		Open: func() (*keystore.Keystore, *keystore.Reference, error) {
			token := m.Reference("signing", "")
			return token.Keystore(), token, nil
		}}
	if change != nil {
		change(&o)
	}
	a := agent.New(o)
	t.Cleanup(func() { a.Close() })
	return a, m
}

// ask makes a request with a message, or without, and decodes the answer: a Problem unless the status is 200.
func ask(t *testing.T, a *agent.Agent, method, path string, message, into any) (status int, problem brokerapi.Problem) {
	t.Helper()
	var body bytes.Buffer
	if message != nil {
		if err := json.NewEncoder(&body).Encode(message); err != nil {
			t.Fatal(err)
		}
	}
	r := httptest.NewRequestWithContext(t.Context(), method, path, &body)
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	a.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		into = &problem
	}
	if err := json.Unmarshal(w.Body.Bytes(), into); err != nil {
		t.Fatalf("%s %s: %v in %s", method, path, err, w.Body.Bytes())
	}
	return w.Code, problem
}

// TestDescribe describes keys by name and in a list. What the module says of a key is asked for once.
func TestDescribe(t *testing.T) {
	t.Parallel()
	a, m := holding(t, nil)
	var release, nodes brokerapi.Key
	for range 3 {
		if status, p := ask(t, a, http.MethodGet, brokerapi.KeyPath("release"), nil, &release); status != http.StatusOK {
			t.Fatal(p)
		}
	}
	if calls := m.Calls("Info"); calls != 1 {
		t.Errorf("the module was asked %d times", calls)
	}
	if uri, err := config.ParseURI(release.URI); err != nil || uri.Token != "signing" || uri.Object != "release" ||
		release.Token != "pkcs11:token=signing" || release.Spec != "EC-256" || len(release.Chain) != 1 ||
		release.Sign == nil || !*release.Sign || release.Receives != nil {
		t.Errorf("the key is %+v, %v", release, err)
	}
	if status, p := ask(t, a, http.MethodGet, brokerapi.KeyPath("none"), nil, &nodes); status != http.StatusNotFound {
		t.Errorf("no key: %d, %+v", status, p)
	}
	var all brokerapi.Keys
	if status, p := ask(t, a, http.MethodGet, brokerapi.KeysPath, nil, &all); status != http.StatusOK {
		t.Fatal(p)
	}
	labels := []string{}
	for _, k := range all.Keys {
		labels = append(labels, k.Label)
		if wantChain := map[string]int{"release": 1}[k.Label]; len(k.Chain) != wantChain || k.Receives != nil {
			t.Errorf("the list has %+v", k)
		}
	}
	if slices.Sort(labels); !slices.Equal(labels, []string{"nodes", "release"}) || all.Token != "pkcs11:token=signing" {
		t.Errorf("the list has %q of %s", labels, all.Token)
	}
}

// TestLayerKeys unwraps the key of a layer for an agent that may, and refuses for one that may not. The key is not used
// for what is no JWE, for another recipient's, and for what a person refuses.
func TestLayerKeys(t *testing.T) {
	t.Parallel()
	const options = `{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`
	refuse := false
	a, m := holding(t, func(o *agent.Options) {
		o.Formats = []payload.Format{payload.LayerKey}
		o.Confirm = func(_ context.Context, key string, a *payload.Artifact) error {
			if key != "nodes" || a.Format != payload.LayerKey || refuse {
				return failure.New(failure.Denied, "refused")
			}
			return nil
		}
	})
	var nodes brokerapi.Key
	if status, p := ask(t, a, http.MethodGet, brokerapi.KeyPath("nodes"), nil, &nodes); status != http.StatusOK {
		t.Fatal(p)
	}
	if nodes.Receives == nil || !nodes.Receives.Sure || nodes.Receives.Refusal != "" {
		t.Errorf("the recipient is %+v", nodes.Receives)
	}
	sealed := func(label string) []byte {
		t.Helper()
		var public crypto.PublicKey
		err := m.Reference("signing", label).WithKey(t.Context(), func(_ keystore.Store, k keystore.Key) error {
			public = k.Public()
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		jwe, err := layerkey.Seal([]byte(options), []layerkey.Recipient{{Name: label, Public: public}})
		if err != nil {
			t.Fatal(err)
		}
		return jwe
	}
	var answer brokerapi.LayerKey
	good := brokerapi.LayerKeyRequest{JWE: sealed("nodes")}
	status, p := ask(t, a, http.MethodPost, brokerapi.LayerKeysPath("nodes"), good, &answer)
	if status != http.StatusOK || string(answer.Options) != options {
		t.Errorf("%d, %q, %+v", status, answer.Options, p)
	}
	used := m.Calls("ECDH")
	refused := func(name string, want int, r brokerapi.LayerKeyRequest, on *agent.Agent) {
		t.Helper()
		status, p := ask(t, on, http.MethodPost, brokerapi.LayerKeysPath("nodes"), r, &answer)
		if status != want || m.Calls("ECDH") != used {
			t.Errorf("%s: %d, %+v; the key was used %d times", name, status, p, m.Calls("ECDH")-used)
		}
	}
	refused("a bare hash", http.StatusForbidden, brokerapi.LayerKeyRequest{JWE: make([]byte, 32)}, a)
	refused("no JWE", http.StatusBadRequest, brokerapi.LayerKeyRequest{JWE: []byte(`{"protected":"e30"}`)}, a)
	refused("another recipient", http.StatusBadRequest, brokerapi.LayerKeyRequest{JWE: sealed("release")}, a)
	refuse = true
	refused("not confirmed", http.StatusForbidden, good, a)
	signs, _ := holding(t, nil)
	refused("not allowed", http.StatusForbidden, good, signs)
}
