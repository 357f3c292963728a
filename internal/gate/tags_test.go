package gate

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go/dir"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/cjson"
	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/trust"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

func sum256(data []byte) [sha256.Size]byte { return sha256.Sum256(data) }

func metadataPayload(m *metadata.Metadata[metadata.TimestampType]) ([]byte, error) {
	return cjson.EncodeCanonical(m.Signed)
}

// tagTest is a registry with metadata, and with two images that alice has signed: tag v1 is the first, by the role
// tags, and release-1 the second, by the delegation alice.
type tagTest struct {
	*tagged
	h             *oci.Hostile
	alice         *oci.Forger
	first, second ocispec.Descriptor
	trustDir      string
	tagsDir       string
}

func newTagTest(t testing.TB, stale time.Duration) *tagTest {
	t.Helper()
	a := &tagTest{tagged: newTagged(t), h: oci.NewHostile(t), alice: newForger(t), tagsDir: t.TempDir()}
	a.first, a.second = a.h.PushImage("first"), a.h.PushImage("second")
	for _, image := range []ocispec.Descriptor{a.first, a.second} {
		a.h.Sign(t, a.alice, jws.MediaTypeEnvelope, image, nil)
	}
	a.sign(tuf.Tags, "v1", a.first)
	a.sign("alice", "release-1", a.second)
	a.serve(a.h, a.published)
	a.h.Tag("v1", a.second) // the registry says something else
	a.trustDir = trusting(t, "strict", a.alice)
	a.trustTags(stale)
	return a
}

func (a *tagTest) trustTags(stale time.Duration, signers ...trust.PinnedSigner) {
	a.t.Helper()
	a.trust(a.trustDir, trust.Pinned{Scope: a.h.Address + "/app", StaleSeconds: int64(stale / time.Second),
		Signers: signers})
}

// verify verifies an image of the repository, with what was remembered before.
func (a *tagTest) verify(name string) Decision {
	a.t.Helper()
	g := openGate(a.t, Options{TrustDir: a.trustDir, TagsDir: a.tagsDir})
	return g.Verify(a.t.Context(), []string{a.h.Address + "/app" + name}, "", time.Minute)[0]
}

// expect fails unless the image is refused for a reason, or passes if it is "".
func (a *tagTest) expect(name, reason string) Decision {
	a.t.Helper()
	d := a.verify(name)
	if d.Passed() != (reason == "") || !strings.Contains(d.Reason, reason) {
		a.t.Errorf("%s: %+v", name, d)
	}
	return d
}

// TestTags verifies that a tag is what the metadata say, whatever the registry says, and that an image by its digest
// alone needs no metadata.
func TestTags(t *testing.T) {
	a := newTagTest(t, 0)
	d := a.expect(":v1", "")
	if d.Digest != a.first.Digest.String() || d.Tag == nil || d.Tag.Name != "v1" || d.Tag.Role != tuf.Tags || d.Tag.Stale ||
		d.Tag.Versions.Root != 1 || d.Tag.Versions.Timestamp < 3 || d.Signature == nil {
		t.Errorf("%+v, %+v", d, d.Tag)
	}
	if d := a.expect(":release-1", ""); d.Digest != a.second.Digest.String() || d.Tag.Role != "alice" {
		t.Errorf("%+v", d)
	}
	a.expect(":v1@"+a.first.Digest.String(), "")
	if d := a.expect(":v1@"+a.second.Digest.String(), "the tag v1 is "+a.first.Digest.String()); d.Tag != nil {
		t.Errorf("%+v", d)
	}
	a.expect("", "tag latest is not signed")
	a.expect(":v2", "tag v2 is not signed")
	a.expect(":tuf-metadata", "is reserved for metadata")
	if d := a.expect("@"+a.second.Digest.String(), ""); d.Tag != nil {
		t.Errorf("%+v", d)
	}
	g := openGate(t, Options{TrustDir: a.trustDir, TagsDir: a.tagsDir})
	layout := writeLayout(t, nil)
	if d := g.Verify(t.Context(), []string{"oci:" + layout + ":v1"}, a.h.Address+"/app", time.Minute)[0]; d.Passed() ||
		!strings.Contains(d.Reason, "an OCI layout has no tag metadata") {
		t.Errorf("%+v", d)
	}
	// Another repository has no root.
	other := strings.Replace(a.h.Address, "127.0.0.1", "localhost", 1) + "/app:v1"
	if d := g.Verify(t.Context(), []string{other}, "", time.Minute)[0]; !d.Passed() ||
		d.Digest != a.second.Digest.String() || d.Tag != nil {
		t.Errorf("%+v", d)
	}
}

// TestTagSigners verifies that the signature of a tag's image must be by a signer whose paths match the tag.
func TestTagSigners(t *testing.T) {
	a := newTagTest(t, 0)
	a.trustTags(0, signerOf(a.alice, "release-*"))
	a.expect(":release-1", "")
	d := a.expect(":v1", `the signature does not count for the tag v1: signer "signer" may only sign the tags release-*`)
	if len(d.Refused) != 1 || d.Tag == nil {
		t.Errorf("%+v", d)
	}
	a.expect("@"+a.first.Digest.String(), "")
	bob := newForger(t)
	a.trustTags(0, signerOf(bob))
	a.expect(":v1", "its certificate is of no signer of the tags")
	// One signature that counts is enough, also if a newer one does not.
	put(t, filepath.Join(a.trustDir, "truststore", "x509", "ca", "store", "bob.pem"), string(bob.PEM()), 0o600)
	a.h.Sign(t, bob, jws.MediaTypeEnvelope, a.first, nil)
	if d := a.expect(":v1", ""); d.Signature.Fingerprint != fmt.Sprintf("%x", sum256(bob.Certificate.Raw)) {
		t.Errorf("%+v", d)
	}
}

// TestTagAttacks verifies that each attack of a registry is refused, with its own reason, and that the true metadata
// pass again afterwards.
func TestTagAttacks(t *testing.T) {
	for name, c := range map[string]struct {
		attack func(a *tagTest) files
		reason string
	}{
		"rollback": {func(a *tagTest) files {
			old := a.published
			a.sign(tuf.Tags, "v1", a.second)
			a.serve(a.h, a.published)
			if d := a.expect(":v1", ""); d.Digest != a.second.Digest.String() {
				a.t.Errorf("%+v", d)
			}
			return old
		}, "it went back to an older version"},
		"freeze": {func(a *tagTest) files {
			before := a.published
			a.expire()
			frozen := a.published
			a.published = before
			return frozen
		}, "it has expired, so that it may not be the newest"},
		"mix and match": {func(a *tagTest) files {
			old := a.published[a.snapshotName()]
			for a.sign(tuf.Tags, "v1", a.second); len(old) > len(a.published[a.snapshotName()]); { // an ECDSA signature has
				a.publish(nil) // one or two bytes more at random, and a longer file is refused before it is read
			}
			mixed := maps.Clone(a.published)
			mixed[a.snapshotName()] = old
			return mixed
		}, "a file is not the signed one"},
		"endless data": {func(a *tagTest) files {
			a.publish(nil)
			long := maps.Clone(a.published)
			long[a.snapshotName()] = append(bytes.Clone(long[a.snapshotName()]), ' ')
			return long
		}, "a file is not the signed one"},
		"wrong threshold": {func(a *tagTest) files {
			a.publish(nil)
			unsigned := maps.Clone(a.published)
			m, err := metadata.Timestamp().FromBytes(unsigned["timestamp.json"])
			a.must(err)
			m.ClearSignatures()
			unsigned["timestamp.json"], err = m.ToBytes(false)
			a.must(err)
			return unsigned
		}, "it lacks signatures by enough of the role's keys"},
		"a file left out": {func(a *tagTest) files {
			a.sign(tuf.Tags, "v1", a.second)
			less := maps.Clone(a.published)
			for name := range less {
				if strings.HasSuffix(name, ".tags.json") {
					delete(less, name)
				}
			}
			return less
		}, "cannot verify the tag metadata"},
		"another repository": {func(a *tagTest) files { return newTagged(a.t).published }, "cannot verify the tag metadata"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newTagTest(t, 72*time.Hour) // which is for a registry that gives no metadata
			a.expect(":v1", "")
			a.serve(a.h, c.attack(a))
			a.expect(":v1", c.reason)
			a.serve(a.h, a.published)
			a.expect(":v1", "")
		})
	}
}

// TestRevokedDelegation verifies that a tag of a removed delegation is refused, and that it passes when another role
// has signed it.
func TestRevokedDelegation(t *testing.T) {
	a := newTagTest(t, 0)
	a.expect(":release-1", "")
	a.delegate(tuf.Delegation{Name: "alice"})
	a.serve(a.h, a.published)
	a.expect(":release-1", "tag release-1 is no longer signed: the delegation alice, which signed it, was removed")
	a.sign(tuf.Tags, "release-1", a.second)
	a.serve(a.h, a.published)
	if d := a.expect(":release-1", ""); d.Tag.Role != tuf.Tags {
		t.Errorf("%+v", d)
	}
}

// TestTagSize verifies that the manifest in the registry has the size in the metadata.
func TestTagSize(t *testing.T) {
	a := newTagTest(t, 0)
	image := a.first
	image.Size++
	a.sign(tuf.Tags, "v1", image)
	a.serve(a.h, a.published)
	a.expect(":v1", fmt.Sprintf("its manifest has %d bytes, and %d in the tag metadata", a.first.Size, image.Size))
}

// TestStaleTags verifies that remembered metadata count while the registry gives none, as long as the root's entry
// says, and say so.
func TestStaleTags(t *testing.T) {
	for name, answer := range map[string]func(http.ResponseWriter){
		"down":    func(w http.ResponseWriter) { w.WriteHeader(http.StatusServiceUnavailable) },
		"without": func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) },
		"closed":  func(w http.ResponseWriter) { w.WriteHeader(http.StatusForbidden) },
		"garbage": func(w http.ResponseWriter) {
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			_, _ = w.Write([]byte("{}"))
		},
	} {
		for _, stale := range []time.Duration{0, time.Hour} {
			a := newTagTest(t, stale)
			a.h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				if strings.HasSuffix(r.URL.Path, "/tuf-metadata") {
					answer(w)
					return true
				}
				return false
			}
			a.expect(":v1", "tuf-metadata") // nothing is remembered
			before := a.h.Answer
			a.h.Answer = nil
			a.expect(":v1", "")
			a.h.Answer = before
			if stale == 0 {
				a.expect(":v1", "tuf-metadata")
				continue
			}
			d := a.expect(":v1", "")
			if d.Tag == nil || !d.Tag.Stale || d.Digest != a.first.Digest.String() ||
				!strings.Contains(strings.Join(d.Warnings, " "), "the tag is from remembered metadata") {
				t.Errorf("%s: %+v", name, d)
			}
			a.expect(":v2", "tag v2 is not signed")
			a.expect(":v1@"+a.second.Digest.String(), "the tag v1 is")
			refreshed, err := filepath.Glob(filepath.Join(a.tagsDir, "*", "refreshed"))
			if err != nil || len(refreshed) != 1 {
				t.Fatal(refreshed, err)
			}
			put(t, refreshed[0], time.Now().Add(-2*time.Hour).UTC().Format(time.RFC3339), 0o600)
			a.expect(":v1", "the last update was")
		}
	}
}

// TestRequestsOfTags verifies that a tag costs one request more than without metadata, if these are unchanged.
func TestRequestsOfTags(t *testing.T) {
	a := newTagTest(t, 0)
	count := func() int {
		n, _ := a.h.Count("")
		return n
	}
	for _, name := range []string{":v1", ":release-1"} {
		a.expect(name, "")
		before := count()
		a.expect(name, "")
		with := count() - before
		if err := os.Rename(filepath.Join(a.trustDir, "tags.json"), filepath.Join(a.trustDir, "moved")); err != nil {
			t.Fatal(err)
		}
		a.h.Tag("release-1", a.second)
		before = count()
		a.expect(name, "")
		if without := count() - before; with != without+1 {
			t.Errorf("%s: %d requests with metadata, %d without", name, with, without)
		}
		if err := os.Rename(filepath.Join(a.trustDir, "moved"), filepath.Join(a.trustDir, "tags.json")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestManyTags verifies images of one repository at the same time, of which each update waits for the others.
func TestManyTags(t *testing.T) {
	a := newTagTest(t, time.Hour)
	var group sync.WaitGroup
	for range 4 {
		g := openGate(t, Options{TrustDir: a.trustDir, TagsDir: a.tagsDir})
		group.Go(func() {
			name := a.h.Address + "/app:"
			for _, d := range g.Verify(t.Context(), []string{name + "v1", name + "release-1", name + "v1"}, "", time.Minute) {
				if !d.Passed() {
					t.Errorf("%+v", d)
				}
			}
		})
	}
	group.Wait()
}

// node returns a node that pulls from the registry, by way of mirrors.
func (a *tagTest) node(mirrors ...*oci.Hostile) Node {
	a.t.Helper()
	hosts := a.t.TempDir()
	text := fmt.Sprintf("server = %q\n", "http://"+a.h.Address)
	for _, m := range mirrors {
		text += fmt.Sprintf("[host.%q]\ncapabilities = [\"pull\"]\n", "http://"+m.Address)
	}
	put(a.t, filepath.Join(hosts, "registry.example.com", "hosts.toml"), text, 0o600)
	a.trust(a.trustDir, trust.Pinned{Scope: "registry.example.com/app", StaleSeconds: 3600,
		Signers: []trust.PinnedSigner{signerOf(a.alice)}})
	return Node{Options: Options{TrustDir: a.trustDir, HostsDir: hosts}, StateDir: a.t.TempDir(), Timeout: time.Minute}
}

// TestNodeTags verifies that a node pulls under a tag what the metadata say, and remembers them.
func TestNodeTags(t *testing.T) {
	a := newTagTest(t, 0)
	node := a.node()
	const name = "registry.example.com/app"
	expect := func(reference string, image ocispec.Descriptor, reason string) Decision {
		t.Helper()
		d := ask(t, node, reference, image)
		if d.Passed() != (reason == "") || !strings.Contains(d.Reason, reason) {
			t.Errorf("%s: %+v", reference, d)
		}
		return d
	}
	if d := expect(name+":v1", a.first, ""); d.Tag == nil || d.Tag.Role != tuf.Tags {
		t.Errorf("%+v", d)
	}
	moved := expect(name+":v1", a.second, "the tag v1 is "+a.first.Digest.String()+" in the tag metadata (role tags)")
	if moved.Digest != a.second.Digest.String() {
		t.Errorf("%+v", moved)
	}
	expect(name+":v1@"+a.first.Digest.String(), a.first, "")
	expect(name+":v1@"+a.second.Digest.String(), a.second, "the tag v1 is ")
	expect(name+":v2", a.first, "tag v2 is not signed")
	expect(name+"@"+a.second.Digest.String(), a.second, "")
	long := a.first
	long.Size++
	expect(name+":v1", long, "in the tag metadata")

	old := a.published
	a.sign(tuf.Tags, "v1", a.second)
	a.serve(a.h, a.published)
	expect(name+":v1", a.second, "")
	a.serve(a.h, old)
	expect(name+":v1", a.first, "it went back to an older version")
	log := readLog(t, node.LogFile())
	if len(log) == 0 || log[0].TagRole != tuf.Tags || log[0].Digest != a.first.Digest.String() {
		t.Errorf("the log has %+v", log)
	}
	if err := node.CheckFiles(os.Args[0], os.Geteuid()); err != nil && strings.Contains(err.Error(), node.StateDir) {
		t.Error(err)
	}
	if err := os.Chmod(node.tagsDir(), 0o777); err != nil { //nolint:gosec // that is what is refused
		t.Fatal(err)
	}
	if err := node.CheckFiles("/proc/self/exe", os.Geteuid()); !failure.Is(err, failure.Denied) {
		t.Errorf("others can write: %v", err)
	}
}

// TestTagsOfMirrors verifies that a mirror without metadata, with older ones or with damaged ones leaves the decision
// to the next source, and that remembered metadata count if no source can be read.
func TestTagsOfMirrors(t *testing.T) {
	const name = "registry.example.com/app:v1"
	for what, serve := range map[string]func(a *tagTest, mirror *oci.Hostile){
		"nothing": func(*tagTest, *oci.Hostile) {},
		"older":   func(a *tagTest, mirror *oci.Hostile) { a.serve(mirror, a.published) },
		"expired": func(a *tagTest, mirror *oci.Hostile) {
			now := a.published
			a.expire()
			a.serve(mirror, a.published)
			a.published = now
		},
		"others": func(a *tagTest, mirror *oci.Hostile) { a.serve(mirror, newTagged(t).published) },
		"down": func(_ *tagTest, mirror *oci.Hostile) {
			mirror.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
				w.WriteHeader(http.StatusServiceUnavailable)
				return true
			}
		},
	} {
		a := newTagTest(t, 0)
		mirror := oci.NewHostile(t)
		serve(a, mirror)
		node := a.node(mirror)
		for range 2 {
			a.publish(nil)
			a.sign(tuf.Tags, "v1", a.second)
			a.serve(a.h, a.published)
			if d := ask(t, node, name, a.second); !d.Passed() || d.Tag.Stale {
				t.Errorf("%s: %+v", what, d)
			}
			if d := ask(t, node, name, a.first); d.Passed() {
				t.Errorf("%s: %+v", what, d)
			}
		}
		a.h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "tuf-metadata") {
				return false
			}
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		if d := ask(t, node, name, a.second); !d.Passed() || !d.Tag.Stale {
			t.Errorf("%s, and the registry down: %+v", what, d)
		}
	}
}

// TestFrozenBehindMirror verifies that a mirror without metadata does not make remembered ones count while the registry
// has frozen ones, and that one that is down does.
func TestFrozenBehindMirror(t *testing.T) {
	a := newTagTest(t, 0)
	node := a.node(oci.NewHostile(t))
	const name = "registry.example.com/app:v1"
	if d := ask(t, node, name, a.first); !d.Passed() {
		t.Errorf("%+v", d)
	}
	a.expire()
	a.serve(a.h, a.published)
	if d := ask(t, node, name, a.first); d.Passed() || !strings.Contains(d.Reason, "it has expired") ||
		!strings.Contains(d.Reason, "tuf-metadata") {
		t.Errorf("%+v", d)
	}
	down := oci.NewHostile(t)
	down.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	behind := a.node(down, oci.NewHostile(t))
	behind.StateDir = node.StateDir
	if d := ask(t, behind, name, a.first); !d.Passed() || !d.Tag.Stale {
		t.Errorf("%+v", d)
	}
}

// TestHalfReadMirror verifies that a mirror that gives no more than the manifest of the metadata leaves the decision to
// the registry, although remembered metadata would count.
func TestHalfReadMirror(t *testing.T) {
	a, mirror := newTagTest(t, 0), oci.NewHostile(t)
	node := a.node(mirror)
	const name = "registry.example.com/app:v1"
	if d := ask(t, node, name, a.first); !d.Passed() {
		t.Errorf("%+v", d)
	}
	a.publish(nil)
	a.serve(a.h, a.published)
	a.serveWith(mirror, a.published, "")
	mirror.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	if d := ask(t, node, name, a.first); !d.Passed() || d.Tag.Stale {
		t.Errorf("%+v", d)
	}
	a.h.Answer = mirror.Answer // whose newer timestamp is known, so that what is remembered does not count
	a.publish(nil)
	a.serve(a.h, a.published)
	if d := ask(t, node, name, a.first); d.Passed() || !strings.Contains(d.Reason, "503") {
		t.Errorf("%+v", d)
	}
}

// TestExportMeanwhile reads trust while exports replace it: a policy that trusts bob is never read without the root
// that limits bob to some tags.
func TestExportMeanwhile(t *testing.T) {
	const scope = "registry.example.com/app"
	to, w := t.TempDir(), newTagged(t)
	dir.UserConfigDir = to
	t.Cleanup(func() { dir.UserConfigDir = "" })
	manifest := func(name string, tags bool) string {
		path := filepath.Join(t.TempDir(), "trust.yaml")
		if _, err := trust.Init(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(t.TempDir(), "cert.pem")
		put(t, file, string(newForger(t).PEM()), 0o600)
		cert, err := trust.FromFile(file, "")
		if err != nil {
			t.Fatal(err)
		}
		grant := trust.Grant{Name: name, Scopes: []string{scope}, Cert: cert}
		if tags {
			if _, err := trust.AddTags(t.Context(), path, trust.Tags{Scope: scope, Root: w.pin}, false); err != nil {
				t.Fatal(err)
			}
			grant.Paths = []string{"release-*"}
		}
		if _, err := trust.Add(t.Context(), path, grant); err != nil {
			t.Fatal(err)
		}
		return path
	}
	manifests := []string{manifest("bob", true), manifest("carol", false)}
	if _, err := trust.Export(t.Context(), manifests[0], to); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 100 && err == nil; i++ {
			_, err = trust.Export(t.Context(), manifests[(i+1)%2], to)
		}
		done <- err
	}()
	limited, free := 0, 0
	for {
		read, err := readTrust(to)
		if err != nil && !failure.Is(err, failure.Conflict) {
			t.Error(err)
		}
		if err == nil {
			if strings.Contains(read.policy.TrustPolicies[0].TrustStores[0], "bob") {
				limited++
				if read.tags[scope] == nil {
					t.Error("bob may sign every tag")
				}
			} else {
				free++
			}
		}
		select {
		case err := <-done:
			if err != nil {
				t.Error(err)
			}
			t.Logf("read %d times with bob and %d times with carol", limited, free)
			return
		default:
		}
	}
}

// TestTagsUnreadable verifies that no image passes if the roots of tags cannot be read, or if nothing can be
// remembered.
func TestTagsUnreadable(t *testing.T) {
	a := newTagTest(t, 0)
	file := filepath.Join(a.tagsDir, "file")
	put(t, file, "", 0o600)
	a.tagsDir = file
	a.expect(":v1", "file")
	put(t, filepath.Join(a.trustDir, "tags.json"), "{", 0o600)
	if _, err := Open(Options{TrustDir: a.trustDir, CacheDir: t.TempDir()}); !failure.Is(err, failure.Invalid) ||
		!strings.Contains(err.Error(), "cannot use the roots of tags") {
		t.Errorf("%v", err)
	}
}
