package gate

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// localName is the name of the registry that containerd reaches with plain HTTP.
func localName(h *oci.Hostile) string {
	_, port, _ := strings.Cut(h.Address, ":")
	return "localhost:" + port
}

// ask asks a node about an image as containerd does.
func ask(t *testing.T, node Node, name string, image ocispec.Descriptor) Decision {
	t.Helper()
	descriptor, err := json.Marshal(image)
	if err != nil {
		t.Fatal(err)
	}
	return node.Verify(t.Context(), []string{"-name", name, "-digest", image.Digest.String(), "-stdin-media-type",
		ocispec.MediaTypeDescriptor}, bytes.NewReader(descriptor))
}

// TestNodePasses verifies that an image with a valid signature passes, that the log says so, and that it is refused
// when the log cannot be written.
func TestNodePasses(t *testing.T) {
	h, alice := oci.NewHostile(t), newForger(t)
	node := Node{Options: Options{TrustDir: trusting(t, "strict", alice)}, StateDir: t.TempDir(), Timeout: time.Minute}
	image := h.PushImage("image")
	h.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
	name := localName(h) + "/app:1"
	if d := ask(t, node, name, image); !d.Passed() || d.Reference != name || d.Digest != image.Digest.String() {
		t.Errorf("%+v", d)
	}
	list := readLog(t, node.LogFile())
	if len(list) != 1 || list[0].Verdict != Pass || list[0].Reference != name ||
		list[0].Signer != alice.Certificate.Subject.String() ||
		list[0].Fingerprint != fmt.Sprintf("%x", sha256.Sum256(alice.Certificate.Raw)) {
		t.Errorf("the log has %+v", list)
	}
	info, err := os.Stat(node.LogFile())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the log has mode %v, %v", info, err)
	}
	descriptor, err := json.Marshal(image)
	if err != nil {
		t.Fatal(err)
	}
	out := runPart(t, "ask with full log", "GATE_TEST_TRUST="+node.TrustDir, "GATE_TEST_STATE="+node.StateDir,
		"GATE_TEST_NAME="+name, "GATE_TEST_DESCRIPTOR="+string(descriptor))
	var d Decision
	if err := json.Unmarshal(out, &d); err != nil || d.Passed() || d.Digest != image.Digest.String() ||
		!strings.Contains(d.Reason, "cannot write the decision log") {
		t.Errorf("with a full log: %+v, %v", d, err)
	}
	if list := readLog(t, node.LogFile()); len(list) != 1 {
		t.Errorf("the log has %+v", list)
	}
}

// askWithFullLog asks a node whose log is full, and prints its decision.
func askWithFullLog() error {
	node := Node{Options: Options{TrustDir: os.Getenv("GATE_TEST_TRUST")}, StateDir: os.Getenv("GATE_TEST_STATE"),
		Timeout: time.Minute}
	var image ocispec.Descriptor
	descriptor := os.Getenv("GATE_TEST_DESCRIPTOR")
	if err := errors.Join(fillLog(node.LogFile()), json.Unmarshal([]byte(descriptor), &image)); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(node.Verify(context.Background(), []string{"-name",
		os.Getenv("GATE_TEST_NAME"), "-digest", image.Digest.String(), "-stdin-media-type", ocispec.MediaTypeDescriptor},
		strings.NewReader(descriptor)))
}

// TestNodeManifest verifies that a signed image is refused whose manifest is not there, is another one, or is longer
// than containerd's limit.
func TestNodeManifest(t *testing.T) {
	alice := newForger(t)
	trust := trusting(t, "strict", alice)
	for name, c := range map[string]struct {
		answer func(w http.ResponseWriter, manifest []byte)
		reason string
	}{
		"missing": {func(w http.ResponseWriter, _ []byte) { w.WriteHeader(http.StatusNotFound) }, "not found"},
		"changed": {func(w http.ResponseWriter, manifest []byte) {
			_, _ = w.Write(bytes.Replace(manifest, []byte("image"), []byte("other"), 1))
		}, "cannot fetch its manifest"},
		"longer": {func(w http.ResponseWriter, manifest []byte) { _, _ = w.Write(append(manifest, ' ')) },
			"cannot fetch its manifest"},
		"shorter": {func(w http.ResponseWriter, manifest []byte) { _, _ = w.Write(manifest[1:]) },
			"cannot fetch its manifest"},
		"whole": {func(w http.ResponseWriter, manifest []byte) { _, _ = w.Write(manifest) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			h := oci.NewHostile(t)
			image := h.PushImage("image")
			h.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
			manifest := []byte(`{"schemaVersion":2,"layers":[],"annotations":{"name":"image"}}`)
			if digest.FromBytes(manifest) != image.Digest {
				t.Fatal("this is another manifest")
			}
			h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/manifests/"+image.Digest.String()) {
					return false
				}
				w.Header().Set("Content-Type", image.MediaType)
				c.answer(w, manifest)
				return true
			}
			node := Node{Options: Options{TrustDir: trust}, StateDir: t.TempDir(), Timeout: time.Minute}
			if d := ask(t, node, localName(h)+"/app:1", image); d.Passed() != (c.reason == "") ||
				!strings.Contains(d.Reason, c.reason) {
				t.Errorf("%+v", d)
			}
		})
	}
}

// TestChangedManifest verifies that a manifest with a wrong digest refuses the image, also if another source has the
// right one: containerd would keep the wrong one, and ask no other source.
func TestChangedManifest(t *testing.T) {
	alice := newForger(t)
	good, bad := oci.NewHostile(t), oci.NewHostile(t)
	image := good.PushImage("image")
	good.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
	for reply, reason := range map[string]string{strings.Repeat("x", int(image.Size)): "mismatched digest", "": ""} {
		bad.Answer = func(w http.ResponseWriter, r *http.Request) bool {
			if reply == "" || !strings.HasSuffix(r.URL.Path, "/manifests/"+image.Digest.String()) {
				return false
			}
			w.Header().Set("Content-Type", image.MediaType)
			fmt.Fprint(w, reply)
			return true
		}
		hosts := t.TempDir()
		put(t, filepath.Join(hosts, "registry.example.com", "hosts.toml"), fmt.Sprintf(
			"server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", "http://"+good.Address, "http://"+bad.Address), 0o600)
		node := Node{Options: Options{TrustDir: trusting(t, "strict", alice), HostsDir: hosts}, StateDir: t.TempDir(),
			Timeout: time.Minute}
		if d := ask(t, node, "registry.example.com/app:1", image); d.Passed() != (reason == "") ||
			!strings.Contains(d.Reason, reason) {
			t.Errorf("%q: %+v", reply, d)
		}
	}
}

// TestManifestLimit verifies that no manifest is fetched that is longer than containerd's limit.
func TestManifestLimit(t *testing.T) {
	alice := newForger(t)
	trust := trusting(t, "strict", alice)
	for more, reason := range map[int64]string{0: "cannot fetch its manifest", 1: "its manifest is longer than "} {
		h := oci.NewHostile(t)
		image := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("long"),
			Size: docker.MaxManifestSize + more}
		h.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
		node := Node{Options: Options{TrustDir: trust}, StateDir: t.TempDir(), Timeout: time.Minute}
		d := ask(t, node, localName(h)+"/app:1", image)
		if d.Passed() || !strings.Contains(d.Reason, reason) {
			t.Errorf("%d bytes: %+v", image.Size, d)
		}
		if n, _ := h.Count("/manifests/" + image.Digest.String()); (n > 0) != (more == 0) {
			t.Errorf("%d bytes: there were %d requests for the manifest", image.Size, n)
		}
	}
}

// TestNextSource verifies that a source that never answers leaves time for the next, and that a source without a valid
// signature does not stop the search.
func TestNextSource(t *testing.T) {
	alice, mallory := newForger(t), newForger(t)
	good, bad := oci.NewHostile(t), oci.NewHostile(t)
	image := good.PushImage("image")
	bad.PushImage("image")
	good.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
	bad.Sign(t, mallory, jws.MediaTypeEnvelope, image, nil)
	silent, halting := oci.NewHostile(t), oci.NewHostile(t)
	silent.Answer = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
	halting.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
	halting.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		return strings.Contains(r.URL.Path, "/blobs/") && silent.Answer(w, r)
	}
	for _, first := range []*oci.Hostile{bad, silent, halting} {
		hosts := t.TempDir()
		put(t, filepath.Join(hosts, "registry.example.com", "hosts.toml"), fmt.Sprintf(
			"server = %q\n[host.%q]\ncapabilities = [\"pull\"]\n", "http://"+good.Address, "http://"+first.Address), 0o600)
		node := Node{Options: Options{TrustDir: trusting(t, "strict", alice), HostsDir: hosts}, StateDir: t.TempDir()}
		passed := false
		for node.Timeout = time.Second; !passed && node.Timeout < time.Minute; node.Timeout *= 4 { // for slow machines
			d := ask(t, node, "registry.example.com/app:1", image)
			passed = d.Passed()
			if first == bad && (len(d.Refused) != 1 || !passed) || first != bad && len(d.Refused) > 0 {
				t.Errorf("%+v", d) // a signature that did not come is not one that was refused
			}
		}
		if !passed {
			t.Error("the second source was not used")
		}
	}
}

// TestNodeCredentials verifies that a node uses the credentials of its auth file, and none that the places of users
// have.
func TestNodeCredentials(t *testing.T) {
	alice := newForger(t)
	h := oci.NewHostile(t)
	image := h.PushImage("image")
	h.Sign(t, alice, jws.MediaTypeEnvelope, image, nil)
	h.Answer = func(w http.ResponseWriter, r *http.Request) bool {
		if _, password, ok := r.BasicAuth(); ok && password == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="tests"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	file := filepath.Join(t.TempDir(), "auth.json")
	put(t, file, fmt.Sprintf(`{"auths": {%q: {"auth": "YWxpY2U6c2VjcmV0"}}}`, h.Address), 0o600) // alice:secret
	hosts := t.TempDir()
	put(t, filepath.Join(hosts, "registry.example.com", "hosts.toml"), fmt.Sprintf("server = %q\n", "http://"+h.Address),
		0o600)
	t.Setenv("REGISTRY_AUTH_FILE", file)
	for auth, reason := range map[string]string{"": "basic credential not found", file: ""} {
		node := Node{Options: Options{TrustDir: trusting(t, "strict", alice), AuthFile: auth, HostsDir: hosts},
			StateDir: t.TempDir(), Timeout: time.Minute}
		if d := ask(t, node, "registry.example.com/app:1", image); d.Passed() != (reason == "") ||
			!strings.Contains(d.Reason, reason) {
			t.Errorf("%q: %+v", auth, d)
		}
	}
}

// TestNodeHeader verifies that the header of a reply is limited for a node too.
func TestNodeHeader(t *testing.T) {
	h := oci.NewHostile(t)
	image := h.PushImage("image")
	h.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
		for i := range 100 {
			w.Header().Set(fmt.Sprint("X-", i), strings.Repeat("a", registry.MaxHeader/100))
		}
		return false
	}
	node := Node{Options: Options{TrustDir: trusting(t, "strict")}, StateDir: t.TempDir(), Timeout: time.Minute}
	if d := ask(t, node, localName(h)+"/app:1", image); d.Passed() ||
		!strings.Contains(d.Reason, fmt.Sprintf("exceeded %d bytes", registry.MaxHeader)) {
		t.Errorf("%+v", d)
	}
}

// TestPullSources verifies that a node asks the hosts that containerd pulls from, in its order, and no other.
func TestPullSources(t *testing.T) {
	for text, want := range map[string]string{
		"": "registry.example.com",
		"[host.\"https://mirror.example.com\"]\ncapabilities = [\"pull\"]\n":    "mirror.example.com registry.example.com",
		"[host.\"https://mirror.example.com\"]\ncapabilities = [\"resolve\"]\n": "registry.example.com",
		"server = \"https://other.example.com\"\n":                              "other.example.com",
		"[host.\"https://b.example.com\"]\n[host.\"https://a.example.com\"]\n": "b.example.com a.example.com" +
			" registry.example.com",
	} {
		hosts := t.TempDir()
		put(t, filepath.Join(hosts, "registry.example.com", "hosts.toml"), text, 0o600)
		g := &Gate{options: Options{HostsDir: hosts}, registries: registry.New(registry.Options{})}
		sources, err := g.pullSources(t.Context(), "registry.example.com/app")
		var names []string
		for _, s := range sources {
			names = append(names, s.name)
			s.close()
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%s: %s, want %s: %v", text, got, want, err)
		}
	}
}

// TestShareDeadline verifies that each of several steps gets an equal share of the time.
func TestShareDeadline(t *testing.T) {
	all, cancel := context.WithTimeout(t.Context(), 4*time.Hour)
	defer cancel()
	end, _ := all.Deadline()
	for steps, left := range map[int]time.Duration{1: 0, 2: 2 * time.Hour, 4: 3 * time.Hour} {
		ctx, cancel := shareDeadline(all, steps)
		defer cancel()
		if deadline, ok := ctx.Deadline(); !ok || end.Sub(deadline).Round(time.Hour) != left {
			t.Errorf("%d steps: %s are left to the others, want %s", steps, end.Sub(deadline), left)
		}
	}
}

// TestParseRequest refuses requests that containerd does not make, and those whose parts do not fit together.
func TestParseRequest(t *testing.T) {
	t.Parallel()
	sum, other := digest.FromString("image").String(), digest.FromString("other").String()
	descriptor := `{"mediaType":"` + ocispec.MediaTypeImageManifest + `","digest":"` + sum + `","size":7}`
	arguments := func(name, sum, mediaType string) []string {
		return []string{"-name", name, "-digest", sum, "-stdin-media-type", mediaType}
	}
	const app = "registry.example.com/app"
	good := arguments(app+":1", sum, ocispec.MediaTypeDescriptor)
	for name, c := range map[string]struct {
		args   []string
		stdin  string
		reason string
		kind   failure.Kind
	}{
		"no arguments":    {nil, descriptor, "there is no -name", failure.Invalid},
		"an unknown flag": {append(good[:6:6], "-force"), descriptor, "-force", failure.Invalid},
		"an unknown argument": {append(good[:6:6], "force"), descriptor, `unknown argument "force"`,
			failure.Invalid},
		"not a name": {arguments("Not A Name", sum, ocispec.MediaTypeDescriptor), descriptor,
			"is not an image's name", failure.Invalid},
		"another digest in the name": {arguments(app+"@"+other, sum, ocispec.MediaTypeDescriptor), descriptor,
			"another digest", failure.Invalid},
		"not a digest": {arguments(app, "sha256:1", ocispec.MediaTypeDescriptor), descriptor,
			"is not a digest", failure.Invalid},
		"a host that is none": {arguments("127.1/app", sum, ocispec.MediaTypeDescriptor), descriptor,
			"four decimal numbers", failure.Invalid},
		"another input": {arguments(app, sum, "application/json"), descriptor, "the input is",
			failure.Unsupported},
		"no descriptor": {good, "", "it is not JSON", failure.Invalid},
		"another descriptor": {good, strings.Replace(descriptor, sum, other, 1), "is not one of " + sum,
			failure.Invalid},
		"no size": {good, strings.Replace(descriptor, `:7}`, `:0}`, 1), "is not one of " + sum,
			failure.Invalid},
		"a negative size": {good, strings.Replace(descriptor, `:7}`, `:-7}`, 1), "is not one of " + sum,
			failure.Invalid},
		"no media type": {good, `{"digest":"` + sum + `","size":7}`, "is not one of " + sum,
			failure.Invalid},
		"two descriptors": {good, descriptor + descriptor, "something follows", failure.Invalid},
		"a name twice":    {good, strings.Replace(descriptor, `{`, `{"size":7,`, 1), "twice", failure.Invalid},
		"a list":          {good, `[]`, "cannot read the descriptor", failure.Invalid},
		"a long descriptor": {good, descriptor + strings.Repeat(" ", maxDescriptor), "more than 1048576",
			failure.Invalid},
	} {
		if r, err := parseRequest(c.args, strings.NewReader(c.stdin)); !failure.Is(err, c.kind) ||
			!strings.Contains(err.Error(), c.reason) {
			t.Errorf("%s: %+v, %v; want an error with %q", name, r, err, c.reason)
		}
	}
	if r, err := parseRequest(good, strings.NewReader(descriptor)); err != nil || r.given != app+":1" || r.scope != app ||
		r.tag != "1" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestScript verifies that the verifier passes all settings and containerd's arguments to the program, whatever is in
// them.
func TestScript(t *testing.T) {
	folder := t.TempDir()
	program := filepath.Join(folder, "it's a $program")
	put(t, program, "#!/bin/sh\nfor a; do printf '%s\\n' \"$a\"; done\n", 0o700)
	node := Node{Options: Options{TrustDir: "/etc/a b", HostsDir: "/etc/$(date)", AuthFile: `/etc/"auth`,
		VerificationPlugins: []string{"good"}}, StateDir: "/var/it's", Timeout: DefaultTimeout, User: "someone",
		AllowSkip: true}
	verifier := filepath.Join(folder, "bin", verifierName)
	if err := errors.Join(os.Mkdir(filepath.Dir(verifier), 0o700), node.writeScript(verifier, program)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), verifier, "-name", "a b").Output()
	want := "containerd-verifier\n--allow-skip\n--auth-file=/etc/\"auth\n--hosts-dir=/etc/$(date)\n" +
		"--state-dir=/var/it's\n--timeout=8s\n--trust-dir=/etc/a b\n--user=someone\n--verification-plugin=good\n" +
		"--\n-name\na b\n"
	if err != nil || string(out) != want {
		t.Errorf("%v, and the program has got\n%s\nwant\n%s", err, out, want)
	}
	if entries, err := os.ReadDir(filepath.Dir(verifier)); err != nil || len(entries) != 1 {
		t.Errorf("containerd would run %v, %v", entries, err)
	}
}

// TestCheckVerifier verifies that the installation fails with the message and the hint of a verifier that cannot run.
func TestCheckVerifier(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	put(t, program, "#!/bin/sh\n[ \"$1 $2\" = 'containerd-verifier --check' ] || exit 0\n"+
		"echo 'error: cannot see' >&2\necho 'hint: open your eyes' >&2\nexit 1\n", 0o700)
	var f *failure.Error
	if err := (Node{}).checkVerifier(program); !errors.As(err, &f) || f.What != "the verifier cannot run: cannot see" ||
		f.Hint != "open your eyes" {
		t.Errorf("%+v", err)
	}
}

// TestInstallChecksVerifier verifies that no verifier is installed that cannot run.
func TestInstallChecksVerifier(t *testing.T) {
	node, folder := newNode(t)
	program := filepath.Join(folder, "program")
	put(t, program, "#!/bin/sh\nexit 1\n", 0o700)
	if done, err := node.Install("bin", program); err == nil || !strings.Contains(err.Error(), "the verifier cannot run") {
		t.Errorf("%+v, %v", done, err)
	}
	if _, err := os.Stat("bin/" + verifierName); err == nil {
		t.Error("the verifier was written")
	}
}

// TestWriteScript verifies that no other file is in the folder at any time: containerd would run it, and it may be half
// written.
func TestWriteScript(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "bin")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	events, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(events)
	if _, err := unix.InotifyAddWatch(events, folder, unix.IN_CREATE|unix.IN_MODIFY|unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	if err := (Node{}).writeScript(filepath.Join(folder, verifierName), "/program"); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 4096)
	n, err := unix.Read(events, buffer)
	mask := binary.NativeEndian.Uint32(buffer[4:])
	if err != nil || n > unix.SizeofInotifyEvent+unix.NAME_MAX+1 || mask != unix.IN_MOVED_TO ||
		!strings.HasPrefix(string(buffer[unix.SizeofInotifyEvent:]), verifierName+"\x00") {
		t.Errorf("%v: the first of the events in %q has the mask %#x", err, buffer[:max(n, 0)], mask)
	}
}
