package gate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// mostMemory is the promise: resident bytes of a process that verifies, whatever a registry serves.
const mostMemory = 128 << 20

// peakVariable has TestPeakOfACommand run its value, a list in JSON, and tell the peak. A process counts the memory of
// the one that started it as its own until it has its own program; so this one, which is small, is put between.
const peakVariable = "SOFTHSM_TEST_PEAK"

func TestPeakOfACommand(t *testing.T) {
	softhsmtest.Parallel(t)
	var command []string
	if os.Getenv(peakVariable) == "" {
		return // it is not a test then
	}
	if err := json.Unmarshal([]byte(os.Getenv(peakVariable)), &command); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	_ = cmd.Run() // which may refuse
	fmt.Fprintf(os.Stderr, "\npeak %d\n", cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss<<10)
}

// peak runs a command and returns the most memory that it had, and its output.
func peak(t testing.TB, stdin string, command ...string) (bytes int64, said string) {
	t.Helper()
	list, err := json.Marshal(command)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr, err := softhsmtest.Try(t, stdin, "env", peakVariable+"="+string(list), os.Args[0],
		"-test.run=^TestPeakOfACommand$")
	if err != nil {
		t.Fatalf("%v: %s%s", err, stdout, stderr)
	}
	if _, err := fmt.Sscanf(stderr[strings.LastIndex(stderr, "\npeak "):], "\npeak %d", &bytes); err != nil {
		t.Fatalf("%v: %s", err, stderr)
	}
	return bytes, stdout + stderr
}

// TestVerifyMemory has the programs verify what is made to take much memory. They refuse it and stay small.
func TestVerifyMemory(t *testing.T) {
	softhsmtest.Parallel(t)
	program := softhsmtest.Build(t, "hsm-image")
	mallory, err := oci.NewForger("mallory", "")
	if err != nil {
		t.Fatal(err)
	}
	alice, err := oci.NewForger("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	trust, bin := filepath.Join(base, "trust"), filepath.Join(base, "bin")
	store := filepath.Join(trust, "truststore", "x509", "ca", "store")
	for _, folder := range []string{store, bin} {
		if err := os.MkdirAll(folder, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	softhsmtest.Write(t, filepath.Join(store, "alice.pem"), string(alice.PEM()))
	softhsmtest.Write(t, filepath.Join(trust, "trustpolicy.json"),
		`{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
		"trustStores": ["ca:store"], "trustedIdentities": ["*"], "signatureVerification": {"level": "audit"}}]}`)
	page := func(entry string, n int) []byte {
		return fmt.Appendf(nil, `{"manifests":[%s%s]}`, strings.Repeat(entry+",", n-1), entry)
	}
	paged := func(data []byte) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/referrers/") {
				return false
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			w.Header().Set("Link", fmt.Sprintf("<%s?n=1>; rel=\"next\"", r.URL.Path))
			_, _ = w.Write(data)
			return true
		}
	}
	for name, prepare := range map[string]func(h *oci.Hostile, image ocispec.Descriptor){
		"20 envelopes of 33 MB": func(h *oci.Hostile, image ocispec.Descriptor) {
			data := make([]byte, 33<<20)
			for i := range 20 {
				data[0] = byte(i)
				h.Hang(t, h.Add(jws.MediaTypeEnvelope, bytes.Clone(data)), image, time.Now())
			}
		},
		"20 envelopes of 33 MB said to be short": func(h *oci.Hostile, image ocispec.Descriptor) {
			for i := range 20 {
				h.Hang(t, ocispec.Descriptor{MediaType: jws.MediaTypeEnvelope, Digest: digest.FromString(fmt.Sprint(i)),
					Size: 1 << 20}, image, time.Now())
			}
			h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/blobs/") {
					return false
				}
				for range 33 {
					_, _ = w.Write(make([]byte, 1<<20))
				}
				return true
			}
		},
		"50 envelopes of 1 MiB": func(h *oci.Hostile, image ocispec.Descriptor) {
			for i := range 50 {
				mediaType := []string{jws.MediaTypeEnvelope, cose.MediaTypeEnvelope}[i%2]
				envelope, err := mallory.Sign(mediaType, image, map[string]string{"attribute": strings.Repeat("a", 300<<10+i)})
				if err != nil {
					t.Fatal(err)
				}
				h.Hang(t, h.Add(mediaType, envelope), image, time.Now())
			}
		},
		"endless pages of little entries": func(h *oci.Hostile, _ ocispec.Descriptor) {
			h.Answer = paged(page("{}", 19000))
		},
		"endless pages of long entries": func(h *oci.Hostile, _ ocispec.Descriptor) {
			h.Answer = paged(page(fmt.Sprintf(`{"artifactType":%q}`, strings.Repeat("a", 10000)), 100))
		},
		"endless pages of long media types": func(h *oci.Hostile, _ ocispec.Descriptor) {
			pages := 0
			h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				pages++
				entry := fmt.Sprintf(`{"artifactType":%q,"digest":"sha256:%064d","mediaType":%q}`,
					notationregistry.ArtifactTypeNotation, pages, strings.Repeat("a", 1<<20-300))
				return paged(page(entry, 1))(w, r)
			}
		},
		"a list of little entries behind a tag": func(h *oci.Hostile, _ ocispec.Descriptor) {
			list := page("{}", 345000)
			h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.Contains(r.URL.Path, "/referrers/"):
					http.NotFound(w, r)
				case strings.Contains(r.URL.Path, "/manifests/sha256-"):
					w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex+"; charset=utf-8")
					w.Header().Set("Docker-Content-Digest", digest.FromBytes(list).String())
					w.Header().Set("Content-Length", fmt.Sprint(len(list)))
					_, _ = w.Write(list)
				default:
					return false
				}
				return true
			}
		},
		"an endless manifest": func(h *oci.Hostile, image ocispec.Descriptor) {
			h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead || !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				oci.Flood(w, "", string(make([]byte, 1<<20)))
				return true
			}
			h.List(image, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("endless"),
				Size: 1000}, time.Now())
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := oci.NewHostile(t)
			image := h.PushImage(name)
			prepare(h, image)
			names := []string{h.Name(image)}
			for range 10 {
				names = append(names, h.Name(image))
			}
			for how, arguments := range map[string][]string{"one": names[:1], "ten at once": names[1:]} {
				if bytes, said := peak(t, "", append([]string{program, "verify", "--plain-http", "--trust-dir", trust},
					arguments...)...); bytes > mostMemory {
					t.Errorf("verify of %s took %d MiB: %.2000s", how, bytes>>20, said)
				} else {
					t.Logf("verify of %s: %d MiB", how, bytes>>20)
				}
			}
			softhsmtest.Run(t, program, "install-verifier", "--bin-dir", bin, "--trust-dir", trust, "--state-dir",
				filepath.Join(base, "state"), "--hosts-dir", plainHosts(t, h.Address))
			descriptor := fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d}`, image.MediaType, image.Digest, image.Size)
			bytes, said := peak(t, descriptor, filepath.Join(bin, "hsm-image-verifier"), "-name", h.Name(image), "-digest",
				image.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor)
			if t.Logf("the verifier: %d MiB", bytes>>20); bytes > mostMemory {
				t.Errorf("the verifier took %d MiB: %.2000s", bytes>>20, said)
			}
		})
	}
}

// TestVerifyMemoryOfLayouts has verify look for signatures in layouts whose indexes list much else.
func TestVerifyMemoryOfLayouts(t *testing.T) {
	softhsmtest.Parallel(t)
	program := softhsmtest.Build(t, "hsm-image")
	alice, err := oci.NewForger("alice", "")
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	write := func(t testing.TB, path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		softhsmtest.Write(t, path, text)
	}
	write(t, filepath.Join(base, "trust", "truststore", "x509", "ca", "store", "alice.pem"), string(alice.PEM()))
	write(t, filepath.Join(base, "trust", "trustpolicy.json"),
		`{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"],
		"trustStores": ["ca:store"], "trustedIdentities": ["*"], "signatureVerification": {"level": "strict"}}]}`)
	layout := func(name string, entries ...func(add func(mediaType, data string) string) string) string {
		folder := filepath.Join(base, name)
		write(t, filepath.Join(folder, ocispec.ImageLayoutFile), `{"imageLayoutVersion":"1.0.0"}`)
		add := func(mediaType, data string) string {
			sum := digest.FromString(data)
			write(t, filepath.Join(folder, "blobs", "sha256", sum.Encoded()), data)
			return fmt.Sprintf(`{"mediaType":%q,"digest":%q,"size":%d,"annotations":{%q:"1"}}`, mediaType, sum, len(data),
				ocispec.AnnotationRefName)
		}
		list := add(ocispec.MediaTypeImageManifest, `{"schemaVersion":2,"layers":[]}`)
		for _, entry := range entries {
			list += "," + strings.ReplaceAll(entry(add), `:"1"`, `:"2"`)
		}
		write(t, filepath.Join(folder, ocispec.ImageIndexFile), `{"manifests":[`+list+`]}`)
		return "oci:" + folder + ":1"
	}
	little := func(func(string, string) string) string { return strings.Repeat("{},", 49900) + "{}" }
	long := func(i int) func(add func(string, string) string) string {
		return func(add func(string, string) string) string {
			entry := fmt.Sprintf(`{"mediaType":%q,"size":%d}`, strings.Repeat("a", 6000), i)
			return add(ocispec.MediaTypeImageIndex, `{"manifests":[`+strings.Repeat(entry+",", 650)+entry+`]}`)
		}
	}
	var lists []func(func(string, string) string) string
	for i := range 8 {
		lists = append(lists, long(i))
	}
	for name, entries := range map[string][]func(func(string, string) string) string{"little entries": {little},
		"lists of long entries": lists} {
		arguments := []string{program, "verify", "--trust-dir", filepath.Join(base, "trust"), "--scope",
			"registry.example.com/app"}
		for i := range 10 {
			arguments = append(arguments, layout(fmt.Sprintf("%s %d", name, i), entries...))
		}
		bytes, said := peak(t, "", arguments...)
		if !strings.Contains(said, "it has no signature") || bytes > mostMemory {
			t.Errorf("%s: %d MiB: %.2000s", name, bytes>>20, said)
		}
		t.Logf("%s: %d MiB", name, bytes>>20)
	}
}
