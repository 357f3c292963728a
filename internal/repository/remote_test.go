package repository

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	access "github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestRepository writes to a real registry that is listed, and reads it again within the limits.
func TestRepository(t *testing.T) {
	address := oci.StartRegistry(t)
	all := open(t, Registry{Host: address})
	blob := []byte("text")
	described := ocispec.Descriptor{MediaType: "text/plain", Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	r := all.Repository(address+"/team/app", access.OneImage)
	if err := r.Blobs().Push(t.Context(), described, strings.NewReader(string(blob))); err != nil {
		t.Fatal(err)
	}
	data, err := access.Fetch(t.Context(), r.Blobs(), described, 100)
	if err != nil || string(data) != "text" {
		t.Errorf("%q, %v", data, err)
	}
	r = all.Repository(address+"/team/app", access.Limits{Requests: 1, Bytes: 1000})
	for i, want := range []bool{true, false} {
		if _, err := r.Blobs().Exists(t.Context(), described); (err == nil) != want {
			t.Errorf("request %d: %v", i+1, err)
		}
	}
}

// TestRepositoryElsewhere verifies that nothing is connected to that is not listed, and that credentials go to the
// registry alone.
func TestRepositoryElsewhere(t *testing.T) {
	var visits, used atomic.Int32
	other, listed := oci.NewHostile(t), oci.NewHostile(t)
	other.Answer = func(http.ResponseWriter, *http.Request) bool {
		visits.Add(1)
		return false
	}
	secret := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(secret, []byte("username: u\npassword: p\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all := open(t, Registry{Host: listed.Address, Credentials: secret})
	for name, c := range map[string]struct {
		host   string
		answer func(http.ResponseWriter, *http.Request) bool
	}{
		"host": {host: other.Address},
		"realm": {host: listed.Address, answer: func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+other.Address+`/token"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}},
		"redirect": {host: listed.Address, answer: func(w http.ResponseWriter, r *http.Request) bool {
			if _, password, _ := r.BasicAuth(); password != "p" {
				w.Header().Set("WWW-Authenticate", "Basic")
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			used.Add(1)
			http.Redirect(w, r, "http://"+other.Address+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}},
	} {
		listed.Answer = c.answer
		_, err := all.Repository(c.host+"/app", access.OneImage).Resolve(t.Context(), "v1")
		if err == nil || !strings.Contains(err.Error(), "which is not listed") &&
			!strings.Contains(err.Error(), "not https") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if visits.Load() != 0 || used.Load() == 0 {
		t.Errorf("the other host was asked %d times, and the credentials were used %d times", visits.Load(), used.Load())
	}
}
