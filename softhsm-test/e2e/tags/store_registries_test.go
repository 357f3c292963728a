package tags

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/tufstore"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestImmutableTags verifies that a registry that does not let tags be overwritten is told, with what to do, and that
// signers can propose all the same.
func TestImmutableTags(t *testing.T) {
	for name, answer := range map[string]struct {
		status        int
		code, message string
	}{
		"in words":     {http.StatusBadRequest, "TAG_INVALID", "the tag already exists and cannot be overwritten: immutable"},
		"by condition": {http.StatusPreconditionFailed, "PRECONDITION", "configured as immutable"},
		"as conflict":  {http.StatusConflict, "CONFLICT", ""},
		"as denied":    {http.StatusForbidden, "DENIED", "tag is immutable"},
		"by method":    {http.StatusMethodNotAllowed, "UNSUPPORTED", "the operation is disallowed on this image"},
	} {
		t.Run(name, func(t *testing.T) {
			address := oci.StartRegistry(t)
			p := newProxy(t, address, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				reference := address + "/" + repository + ":" + r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
				if existing, err := oci.Open(reference); err != nil {
					t.Error(err)
				} else if _, err := existing.Resolve(r.Context(), existing.Reference.Reference); err != nil {
					return false
				}
				refuse(w, answer.status, answer.code, answer.message)
				return true
			})
			store := openStore(t, p.address)
			first := set("first", "timestamp.json", "1.root.json")
			published := publish(t, store, first)
			err := store.Publish(t.Context(), published, set("second", "timestamp.json"), []string{"1.root.json"})
			expectHint(t, err, failure.Conflict, "exempt the tag tuf-metadata")
			for range 2 { // the second is one that was interrupted
				if _, err := store.Propose(t.Context(), set("x", "2.alice.json")); err != nil {
					t.Error(err)
				}
			}
			if published, err = store.Published(t.Context()); err != nil {
				t.Fatal(err)
			}
			expect(t, published, first)
		})
	}
}

// TestListings verifies that proposals are found in registries that ignore where a list begins, list in another order,
// or page one by one.
func TestListings(t *testing.T) {
	address := oci.StartRegistry(t)
	store := openStore(t, address)
	publish(t, store, set("0", "timestamp.json"))
	for _, tag := range []string{"a", "b", "v1", "v2", "V3", "tuf-z"} {
		if _, err := oci.PushImage(t.Context(), address+"/"+repository+":"+tag, "image"); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	for i := range 5 {
		p, err := store.Propose(t.Context(), set("x", fmt.Sprintf("1.signer%d.json", i)))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, p.Tag)
	}
	slices.Sort(want)
	query := func(name, value string) func(http.ResponseWriter, *http.Request) bool {
		return func(_ http.ResponseWriter, r *http.Request) bool {
			if strings.HasSuffix(r.URL.Path, "/tags/list") {
				q := r.URL.Query()
				q.Set(name, value)
				r.URL.RawQuery = q.Encode()
			}
			return false
		}
	}
	for name, c := range map[string]struct {
		answer func(http.ResponseWriter, *http.Request) bool
		pages  int
	}{
		"as it is":     {nil, 1},
		"one by one":   {query("n", "1"), 7}, // tuf-metadata, the proposals, tuf-z
		"ignores last": {query("last", ""), 1},
		"in reverse": {func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.HasSuffix(r.URL.Path, "/tags/list") {
				return false
			}
			response, err := http.Get("http://" + address + r.URL.Path)
			if err != nil {
				t.Error(err)
				return false
			}
			defer response.Body.Close()
			var list struct {
				Tags []string `json:"tags"`
			}
			if err := json.NewDecoder(response.Body).Decode(&list); err != nil {
				t.Error(err)
			}
			slices.Reverse(list.Tags)
			_ = json.NewEncoder(w).Encode(list)
			return true
		}, 1},
	} {
		p := newProxy(t, address, c.answer)
		proposals, err := openStore(t, p.address).Proposals(t.Context())
		var got []string
		for _, proposal := range proposals {
			got = append(got, proposal.Tag)
		}
		pages := slices.DeleteFunc(p.take("GET"), func(r string) bool { return !strings.HasSuffix(r, "/tags/list") })
		if err != nil || !slices.Equal(got, want) || len(pages) != c.pages {
			t.Errorf("%s: %v in %d pages, not %v in %d: %v", name, got, len(pages), want, c.pages, err)
		}
	}
}

// TestDeletes verifies that proposals are withdrawn where tags or manifests can be deleted, and that a registry that
// deletes nothing is told.
func TestDeletes(t *testing.T) {
	t.Run("none", func(t *testing.T) {
		softhsmtest.Setenv(t, "REGISTRY_STORAGE_DELETE_ENABLED", "false")
		store := openStore(t, oci.StartRegistry(t))
		p, err := store.Propose(t.Context(), set("x", "1.alice.json"))
		if err != nil {
			t.Fatal(err)
		}
		expectHint(t, store.Withdraw(t.Context(), p), failure.Unsupported, "delete tags that begin with tuf-proposal-")
		if _, err := store.Propose(t.Context(), set("x", "2.alice.json")); err != nil {
			t.Fatal(err)
		}
		proposals, err := store.Proposals(t.Context())
		if err != nil || len(proposals) != 1 || proposals[0].Files["2.alice.json"] == nil {
			t.Errorf("%d proposals: %v", len(proposals), err)
		}
	})
	t.Run("not a proposal", func(t *testing.T) {
		address := oci.StartRegistry(t)
		store := openStore(t, address)
		name := address + "/" + repository + ":tuf-proposal-" + strings.Repeat("0", 32)
		if _, err := oci.PushImage(t.Context(), name, "image"); err != nil {
			t.Fatal(err)
		}
		proposals, err := store.Proposals(t.Context())
		if err != nil || len(proposals) != 1 || proposals[0].Refused == nil {
			t.Fatalf("%d proposals: %v", len(proposals), err)
		}
		expectHint(t, store.Withdraw(t.Context(), proposals[0]), failure.Invalid, "delete it in the registry")
		if proposals, err := store.Proposals(t.Context()); err != nil || len(proposals) > 0 {
			t.Errorf("%d proposals: %v", len(proposals), err)
		}
		image, err := oci.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := image.Resolve(t.Context(), image.Reference.Reference); err != nil {
			t.Errorf("the image is gone: %v", err)
		}
	})
	for name, answer := range map[string]func(http.ResponseWriter){
		"manifests alone": func(w http.ResponseWriter) { refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "") },
		"no tags known":   func(w http.ResponseWriter) { refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", "") },
		"digests asked":   func(w http.ResponseWriter) { refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "") },
	} {
		t.Run(name, func(t *testing.T) {
			p := newProxy(t, oci.StartRegistry(t), func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodDelete && !strings.Contains(r.URL.Path, "sha256:") {
					answer(w)
					return true
				}
				return false
			})
			store := openStore(t, p.address)
			published := publish(t, store, set("0", "timestamp.json"))
			proposal, err := store.Propose(t.Context(), set("x", "1.alice.json"))
			if err == nil {
				err = store.Withdraw(t.Context(), proposal)
			}
			if err != nil {
				t.Fatal(err)
			}
			if proposals, err := store.Proposals(t.Context()); err != nil || len(proposals) > 0 {
				t.Errorf("%d proposals: %v", len(proposals), err)
			}
			expect(t, published, set("0", "timestamp.json"))
		})
	}
}

// TestTokens verifies that the registry is asked for the rights that each operation needs, with the credentials in the
// auth file.
func TestTokens(t *testing.T) {
	address := oci.StartRegistry(t)
	var p *proxy
	p = newProxy(t, address, func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			if user, password, ok := r.BasicAuth(); !ok || user != "alice" || password != "secret" {
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			_ = json.NewEncoder(w).Encode(map[string]string{"token": strings.Join(r.URL.Query()["scope"], " ")})
			return true
		}
		need := map[string]string{http.MethodGet: "pull", http.MethodHead: "pull", http.MethodDelete: "delete"}[r.Method]
		if need == "" {
			need = "push"
		}
		actions, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer repository:"+repository+":")
		if ok && slices.Contains(strings.Split(actions, ","), need) {
			r.Header.Del("Authorization")
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="x",scope="repository:%s:%s"`,
			p.address, repository, need))
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "")
		_, _ = io.Copy(io.Discard, r.Body)
		return true
	})
	auth := filepath.Join(t.TempDir(), "auth.json")
	text := fmt.Sprintf(`{"auths": {%q: {"auth": "YWxpY2U6c2VjcmV0"}}}`, p.address) // alice:secret
	if err := os.WriteFile(auth, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	open := func(file string) *tufstore.Store {
		registries := registry.New(registry.Options{AuthFile: file, PlainHTTP: true, Limits: tufstore.Round})
		t.Cleanup(registries.Close)
		return tufstore.New(registries.Repository(p.address + "/" + repository))
	}
	store := open(auth)
	proposal, err := store.Propose(t.Context(), set("x", "1.alice.json"))
	if err != nil {
		t.Fatal(err)
	}
	publishProposals(t, store, "1")
	if err := store.Withdraw(t.Context(), proposal); err != nil {
		t.Error(err)
	}
	if proposals, err := store.Proposals(t.Context()); err != nil || len(proposals) > 0 {
		t.Errorf("%d proposals: %v", len(proposals), err)
	}
	empty := filepath.Join(t.TempDir(), "auth.json")
	if err := os.WriteFile(empty, []byte(`{}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(empty).Published(t.Context()); !failure.Is(err, failure.Denied) {
		t.Errorf("without credentials: %v", err)
	}
}
