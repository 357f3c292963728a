package repository

import (
	"context"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// open returns the registries of one that listens on a loopback address over plain HTTP.
func open(t testing.TB, r Registry) *Registries {
	t.Helper()
	r.PlainHTTP = true
	all, err := New(Config{[]Registry{r}})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// expect compares the kind and the message of a failure.
func expect(t testing.TB, err error, kind failure.Kind, words string) {
	t.Helper()
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), words) {
		t.Errorf("%v is not %s with %q", err, kind, words)
	}
}

// TestRegistry checks an image and an index in a real registry.
func TestRegistry(t *testing.T) {
	address := oci.StartRegistry(t)
	all := open(t, Registry{Host: address})
	sum, err := oci.PushImage(t.Context(), address+"/team/app:v1", "text")
	if err != nil {
		t.Fatal(err)
	}
	repository, err := oci.Open(address + "/team/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	d, err := repository.Resolve(t.Context(), "v1")
	if err != nil {
		t.Fatal(err)
	}
	check := func(repository, sum, mediaType string, size int64) (*Claims, error) {
		return all.Check(t.Context(), address+"/"+repository, sum, mediaType, size)
	}
	c, err := check("team/app", sum.String(), d.MediaType, d.Size)
	if err != nil || len(c.Platforms) != 1 || c.Size == 0 {
		t.Errorf("%+v, %v", c, err)
	}
	_, err = check("team/other", sum.String(), d.MediaType, d.Size)
	expect(t, err, failure.Denied, "/team/other has no manifest "+sum.String())
	_, err = check("team/app", digest.FromString("none").String(), d.MediaType, d.Size)
	expect(t, err, failure.Denied, "has no manifest")
	_, err = check("team/app", sum.String(), d.MediaType, d.Size+1)
	expect(t, err, failure.Denied, "bytes for "+sum.String())
	_, err = check("team/app", sum.String(), dockerManifest, d.Size)
	expect(t, err, failure.Denied, "has no manifest") // with the media type that is accepted
	c, err = check("team/app", sum.String(), "", 0)
	if err != nil || c.MediaType != d.MediaType || c.ManifestSize != d.Size {
		t.Errorf("%+v, %v", c, err)
	}
	if _, err := oci.PushIndex(t.Context(), address+"/team/app:index"); err != nil {
		t.Fatal(err)
	}
	if d, err = repository.Resolve(t.Context(), "index"); err != nil {
		t.Fatal(err)
	}
	c, err = check("team/app", d.Digest.String(), d.MediaType, d.Size)
	if err != nil || fmt.Sprint(c.Platforms[:2]) != "[linux/amd64 linux/arm64]" || c.Manifests != 2 || c.Size == 0 {
		t.Errorf("%+v, %v", c, err)
	}
}

// TestElsewhere verifies that redirects to and realms at hosts that are not listed are refused, and that no other host
// gets credentials.
func TestElsewhere(t *testing.T) {
	var leaks, visits atomic.Int32
	other := oci.NewHostile(t)
	other.Answer = func(_ http.ResponseWriter, r *http.Request) bool {
		visits.Add(1)
		if r.Header.Get("Authorization") != "" {
			leaks.Add(1)
		}
		return false
	}
	h := oci.NewHostile(t)
	image := h.PushImage("x")
	secret := filepath.Join(t.TempDir(), "credentials")
	if err := os.WriteFile(secret, []byte("username: u\npassword: p\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(hosts ...string) error {
		all := open(t, Registry{Host: h.Address, Credentials: secret, Hosts: hosts})
		_, err := all.Check(t.Context(), h.Address+"/app", image.Digest.String(), image.MediaType, image.Size)
		return err
	}
	h.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, other.Address))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	expect(t, check(), failure.Denied, "which is not listed")
	h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		http.Redirect(w, r, "http://"+other.Address+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	}
	expect(t, check(), failure.Denied, "which is not listed")
	if visits.Load() != 0 {
		t.Error("a host that is not listed was visited")
	}
	expect(t, check(other.Address), failure.Denied, "has no manifest")
	if visits.Load() != 1 || leaks.Load() != 0 {
		t.Errorf("%d visits, %d with credentials", visits.Load(), leaks.Load())
	}
}

// TestAddresses verifies that names resolve to addresses of a network alone, and that dial uses what it has checked.
func TestAddresses(t *testing.T) {
	for address, ok := range map[string]bool{"10.1.2.3": true, "192.0.2.1": true, "2001:db8::1": true, "127.0.0.1": false,
		"::1": false, "::ffff:127.0.0.1": false, "169.254.169.254": false, "::ffff:169.254.169.254": false,
		"fe80::1": false, "0.0.0.0": false, "::": false, "224.0.0.1": false, "ff02::1": false, "64:ff9b::7f00:1": false,
		"2002:7f00:1::": false, "fd00:ec2::254": false, "255.255.255.255": false} {
		for _, loopback := range []bool{false, true} {
			r, mistakes := Registry{Host: "registry.example.com", Loopback: loopback}.read()
			if len(mistakes) > 0 {
				t.Fatal(mistakes)
			}
			a := netip.MustParseAddr(address)
			err := r.checkAddresses("registry.example.com", []netip.Addr{netip.MustParseAddr("10.0.0.1"), a})
			if want := ok || loopback && unwrap(a).IsLoopback(); (err == nil) != want {
				t.Errorf("%s, loopback %v: %v", address, loopback, err)
			}
		}
	}
	// an address that is listed counts for itself, not for names that resolve to it
	r, mistakes := Registry{Host: "registry.example.com", Hosts: []string{"127.0.0.1:5000"}}.read()
	if len(mistakes) > 0 {
		t.Fatal(mistakes)
	}
	for host, ok := range map[string]bool{"127.0.0.1": true, "127.0.0.2": false, "registry.example.com": false} {
		if err := r.checkAddresses(host, []netip.Addr{netip.MustParseAddr("127.0.0.1")}); (err == nil) != ok {
			t.Errorf("%s: %v", host, err)
		}
	}
	all, err := New(Config{[]Registry{{Host: "registry.example.com"}}})
	if err != nil {
		t.Fatal(err)
	}
	all.byName["registry.example.com"].lookup = func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("169.254.169.254")}, nil
	}
	_, err = all.Check(t.Context(), "registry.example.com/app", digest.FromString("x").String(),
		ocispec.MediaTypeImageManifest, 1)
	expect(t, err, failure.Denied, "has the address 169.254.169.254, which is not allowed")
}

// TestHostile verifies that content which is not what was asked for is refused.
func TestHostile(t *testing.T) {
	for text, words := range map[string]string{
		`{"annotations":` + strings.Repeat("[", 1000):                              "nested deeper",
		`{"manifests":[{}]}`:                                                       "is an index",
		`{"layers":[{"size":2},{"size":-1}]}`:                                      "a layer of -1 bytes",
		`{"layers":[{"size":9223372036854775807},{"size":1}]}`:                     "a layer of 1 bytes",
		`{"mediaType":"application/vnd.example"}`:                                  "says that it is",
		`{"config":{"mediaType":"` + ocispec.MediaTypeImageConfig + `","size":1}}`: "it refers to",
	} {
		h := oci.NewHostile(t)
		d := h.Add(ocispec.MediaTypeImageManifest, []byte(text))
		_, err := open(t, Registry{Host: h.Address}).Check(t.Context(), h.Address+"/app", d.Digest.String(), d.MediaType,
			d.Size)
		expect(t, err, failure.Denied, words)
	}
	h := oci.NewHostile(t)
	d := h.PushImage("x")
	all := open(t, Registry{Host: h.Address})
	check := func() error {
		_, err := all.Check(t.Context(), h.Address+"/app", d.Digest.String(), d.MediaType, d.Size)
		return err
	}
	h.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", d.MediaType)
		fmt.Fprint(w, strings.Repeat(" ", int(d.Size)))
		return true
	}
	expect(t, check(), failure.Denied, "other content")
	h.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", dockerManifest)
		fmt.Fprint(w, strings.Repeat(" ", int(d.Size)))
		return true
	}
	expect(t, check(), failure.Denied, "with media type \""+dockerManifest)
	h.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Content-Type", d.MediaType)
		oci.Flood(w, "", strings.Repeat(" ", 1<<16))
		return true
	}
	expect(t, check(), failure.Denied, "more than")
	h.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	expect(t, check(), failure.Unavailable, "status 503")
	h.Answer = nil
	before, _ := h.Count("/manifests/")
	for range 3 {
		if err := check(); err != nil {
			t.Error(err)
		}
	}
	if after, _ := h.Count("/manifests/"); after != before+1 {
		t.Errorf("%d requests, not 1: successes are remembered, failures are not", after-before)
	}
}

// TestNames verifies the normal form of names, and what is refused.
func TestNames(t *testing.T) {
	for name, want := range map[string]string{"REGISTRY.example.com:443/team/app": "registry.example.com/team/app",
		"index.docker.io/app": "docker.io/library/app", "registry.example.com/app:v1": "", "app": "",
		"registry.example.com/app@sha256:00": "", "registry.example.com/App": "", "registry.example.com/../app": "",
		"registry.example.com/app?x": ""} {
		if got, err := Name(name); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

// TestMistakes verifies that all mistakes are reported at once.
func TestMistakes(t *testing.T) {
	mistakes := Config{[]Registry{{Host: "https://x"}, {Host: "registry.example.com", PlainHTTP: true, CA: "/none"},
		{Host: "localhost:5000"}, {Host: "a.example.com"}, {Host: "A.example.com:443", Hosts: []string{"0.0.0.0"}},
		{Host: "a.example.com:443"}}}.Check()
	if len(mistakes) != 7 {
		t.Errorf("%d mistakes: %v", len(mistakes), mistakes)
	}
}
