package gate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/gate"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/containerd"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// install writes the verifier into a folder, as an operator does.
func (g *gated) install(t testing.TB, c *containerd.Daemon, bin, state string, arguments ...string) {
	t.Helper()
	snippet := softhsmtest.Run(t, g.image, append([]string{"install-verifier", "--bin-dir", bin, "--trust-dir", g.trust,
		"--state-dir",
		state, "--hosts-dir", filepath.Join(c.Dir, "certs.d")}, arguments...)...)
	if !strings.Contains(snippet, fmt.Sprintf("bin_dir = %q", bin)) {
		t.Errorf("the snippet for containerd is %s", snippet)
	}
}

// leftovers are all traces of images in a containerd, also of those that are only half there.
func leftovers(t testing.TB, c *containerd.Daemon) []string {
	t.Helper()
	ingests, err := filepath.Glob(filepath.Join(c.Root, "io.containerd.content.v1.content", "ingest", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.Concat(c.Images(t), c.Content(t), c.Snapshots(t), ingests)
}

// decisions reads a log.
func decisions(t testing.TB, path string) (list []map[string]string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(data) {
		d := map[string]string{}
		if err := json.Unmarshal(line, &d); err != nil || !bytes.HasSuffix(line, []byte("\n")) {
			t.Errorf("a line of the log is %q: %v", line, err)
		}
		if _, err := time.Parse(time.RFC3339, d["time"]); err != nil {
			t.Error(err)
		}
		list = append(list, d)
	}
	return list
}

// TestContainerdGate has a real containerd ask before each pull. What may not run is refused with its reason and leaves
// nothing behind; what may is there afterwards.
func TestContainerdGate(t *testing.T) {
	softhsmtest.Parallel(t)
	g := newGated(t)
	bin, state := filepath.Join(t.TempDir(), "bin"), filepath.Join(t.TempDir(), "state")
	c := containerd.Start(t, containerd.Options{Verifiers: bin})
	g.install(t, c, bin, state)
	log := gate.Node{StateDir: state}.LogFile()
	asked := 0
	refusedFor := func(image, reason string) {
		t.Helper()
		for way, pull := range map[string]func(testing.TB, string) error{"ctr": c.Pull, "kubelet": c.PullCRI} {
			err := pull(t, image)
			asked++
			if err == nil || !strings.Contains(err.Error(), "blocked pull") || !strings.Contains(err.Error(), reason) {
				t.Errorf("%s pulls %s: %v, wanted %q", way, image, err, reason)
			}
			if left := leftovers(t, c); len(left) > 0 {
				t.Fatalf("%s pulls %s, and leaves behind %v", way, image, left)
			}
			if d := decisions(t, log); len(d) != asked || d[asked-1]["verdict"] != gate.Refuse ||
				d[asked-1]["reference"] != image || !strings.Contains(d[asked-1]["reason"], reason) {
				t.Errorf("the log says %v, wanted %q", d[len(d)-1], reason)
			}
		}
	}
	for image, reason := range g.cases {
		if reason != "" {
			refusedFor(image, reason)
		}
	}

	// The registry goes away between containerd's question and the gate's, and does not come back, or does not answer.
	good := g.signed + ":signed"
	restore := g.front.when(func(w http.ResponseWriter, _ *http.Request) bool {
		if hijacker, ok := w.(http.Hijacker); ok {
			if connection, _, err := hijacker.Hijack(); err == nil {
				connection.Close()
			}
		}
		return true
	})
	refusedFor(good, "EOF")
	restore()
	g.install(t, c, bin, state, "--timeout", "1s")
	restore = g.front.when(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true })
	refusedFor(good, "it could not be verified within 1s")
	restore()
	g.install(t, c, bin, state)

	// Without a policy, or with a trust store that cannot be read, nobody is trusted.
	policy := filepath.Join(g.trust, "trustpolicy.json")
	away := policy + ".away"
	rename := func(from, to string) {
		t.Helper()
		if err := os.Rename(from, to); err != nil {
			t.Fatal(err)
		}
	}
	rename(policy, away)
	refusedFor(good, "cannot read the trust policy in "+g.trust)
	softhsmtest.Write(t, policy, `{"version": "1.0", "trustPolicies": [`)
	refusedFor(good, "malformed trust policy")
	rename(away, policy)
	certificates, err := filepath.Glob(filepath.Join(g.trust, "truststore", "x509", "ca", "notation-hsm-release-*",
		"*.pem"))
	if err != nil || len(certificates) != 1 {
		t.Fatalf("%v %v", certificates, err)
	}
	rename(certificates[0], away)
	softhsmtest.Write(t, certificates[0], "this was a certificate")
	refusedFor(good, "release.pem")
	rename(away, certificates[0])

	// A decision that cannot be written down is a no.
	written, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Remove(log), os.Mkdir(log, 0o700)); err != nil {
		t.Fatal(err)
	}
	if err := c.Pull(t, good); err == nil || !strings.Contains(err.Error(), "cannot write the decision log") {
		t.Errorf("without a log: %v", err)
	}
	if err := os.Remove(log); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, log, string(written))

	// Someone changes the manifest that was signed, in the registry itself.
	sum := g.digest(t, good)
	manifest := filepath.Join(g.data, "docker/registry/v2/blobs/sha256", sum[:2], sum, "data")
	original, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range []string{"layer.v1.rat", "layer.v1.tar+gzip"} { // as long as it was, and longer
		softhsmtest.Write(t, manifest, strings.Replace(string(original), "layer.v1.tar", change, 1))
		if err := c.Pull(t, good); err == nil || !strings.Contains(err.Error(), "blocked pull") {
			t.Errorf("a manifest that was changed to %s: %v", change, err)
		}
		if left := leftovers(t, c); len(left) > 0 {
			t.Errorf("a manifest that was changed to %s leaves behind %v", change, left)
		}
	}
	softhsmtest.Write(t, manifest, string(original))
	asked = len(decisions(t, log))

	// What may run is pulled, by tag and by digest; the gate is asked and says who signed.
	for image, reason := range g.cases {
		if reason != "" {
			continue
		}
		for _, pull := range []func(testing.TB, string) error{c.Pull, c.PullCRI} {
			if err := pull(t, image); err != nil {
				t.Errorf("%s is not pulled: %v", image, err)
			}
			asked++
		}
		if d := decisions(t, log)[asked-1]; d["verdict"] != gate.Pass || d["policy"] == "" || d["signer"] == "" ||
			len(d["fingerprint"]) != 64 || d["digest"] == "" {
			t.Errorf("the log says %v", d)
		}
		if !slices.Contains(c.Images(t), image) {
			t.Errorf("%s is not there: %v", image, c.Images(t))
		}
	}
	if err := c.Pull(t, g.signed+"@sha256:"+sum); err != nil {
		t.Errorf("by digest: %v", err)
	}

	// The tag moves to an image that nobody signed, between containerd's question and the gate's: what is pulled is what
	// was verified.
	moving := g.signed + ":moving"
	first, err := oci.PushImage(context.Background(), moving, "the first")
	if err != nil {
		t.Fatal(err)
	}
	g.sign(t, g.key, g.signed+"@"+first.String())
	var second string
	restore = g.front.when(func(http.ResponseWriter, *http.Request) bool {
		d, err := oci.PushImage(context.Background(), moving, "the second")
		if err != nil {
			t.Error(err)
		}
		second = d.String()
		return false
	})
	err = c.Pull(t, moving)
	restore()
	if err != nil || second == "" || second == first.String() {
		t.Fatalf("%v; the tag moved to %q", err, second)
	}
	if content := c.Content(t); !slices.Contains(content, first.String()) || slices.Contains(content, second) {
		t.Errorf("the tag moved from %s to %s, and there is %v", first, second, content)
	}

	// The program goes away: that is a no, and says so.
	softhsmtest.Write(t, filepath.Join(bin, "hsm-image-verifier"),
		strings.Replace(softhsmtest.Read(t, filepath.Join(bin, "hsm-image-verifier")), g.image, "/nowhere/hsm-image", 1))
	if err := c.Pull(t, good); err == nil ||
		!strings.Contains(err.Error(), "/nowhere/hsm-image is gone: no image can be verified") {
		t.Errorf("without the program: %v", err)
	}
}

// TestContainerdMirror pulls an image of Docker Hub, by its short name, from the mirrors that containerd knows. Its
// signatures are looked for in the same places.
func TestContainerdMirror(t *testing.T) {
	softhsmtest.Parallel(t)
	g := newGated(t)
	bin, state := filepath.Join(t.TempDir(), "bin"), filepath.Join(t.TempDir(), "state")
	// containerd is told what install-verifier prints. That was started elsewhere, where the folder has a shorter name,
	// and ten others are asked before it.
	c := containerd.Start(t, containerd.Options{Config: func(root string) string {
		folder := filepath.Join(filepath.Dir(root), "certs.d")
		if err := errors.Join(os.MkdirAll(folder, 0o700), os.Mkdir(bin, 0o700)); err != nil {
			t.Fatal(err)
		}
		for i := range 10 {
			if err := os.WriteFile(filepath.Join(bin, fmt.Sprint(i)), []byte("#!/bin/sh\n"),
				0o700); err != nil { //nolint:gosec // it is run
				t.Fatal(err)
			}
		}
		snippet, warnings, err := softhsmtest.Try(t, "", "env", "-C", filepath.Dir(bin), g.image, "install-verifier",
			"--bin-dir", "bin", "--trust-dir", g.trust, "--state-dir", state, "--hosts-dir", folder)
		if err != nil || strings.Count(warnings, "warning: containerd will run "+bin) != 10 {
			t.Errorf("%v %s", err, warnings)
		}
		return snippet
	}})
	sum, err := oci.PushImage(context.Background(), g.front.address+"/library/hello:v1", "hello")
	if err != nil {
		t.Fatal(err)
	}
	hosts := filepath.Join(c.Dir, "certs.d", "docker.io", "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(hosts), 0o700); err != nil {
		t.Fatal(err)
	}
	// The first mirror is down. The second stands for Docker Hub here, so that nothing leaves the machine.
	softhsmtest.Write(t, hosts, fmt.Sprintf(
		"server = %q\n[host.\"http://127.0.0.1:1\"]\ncapabilities = [\"pull\", "+
			"\"resolve\"]\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
		"http://"+g.front.address, g.front.address))
	if err := c.PullCRI(t, "hello:v1"); err == nil || !strings.Contains(err.Error(), "it has no signature") ||
		!strings.Contains(err.Error(), "127.0.0.1:1: ") {
		t.Errorf("without a signature: %v", err)
	}
	if left := leftovers(t, c); len(left) > 0 {
		t.Errorf("without a signature it leaves behind %v", left)
	}
	g.sign(t, g.key, g.front.address+"/library/hello@"+sum.String())
	asked := "" // which registry the mirror is asked to stand for
	defer g.front.when(func(_ http.ResponseWriter,
		r *http.Request) bool {
		asked = r.URL.Query().Get("ns")
		return false
	})()
	if err := c.PullCRI(t, "hello:v1"); err != nil {
		t.Error(err)
	}
	if asked != "docker.io" {
		t.Errorf("the mirror was asked for %q", asked)
	}
	if d := decisions(t, gate.Node{StateDir: state}.LogFile()); len(d) != 2 ||
		d[1]["policy"] != "notation-hsm:docker.io/library/hello" || d[1]["reference"] != "docker.io/library/hello:v1" {
		t.Errorf("the log says %v", d)
	}
}

// digest returns the hex digest that a tag has.
func (g *gated) digest(t testing.TB, image string) string {
	t.Helper()
	results, _ := g.verify(t, image)
	return strings.TrimPrefix(results[0].Digest, "sha256:")
}

// TestVerifierByHand runs the verifier as containerd does, with nothing in the environment, and with requests that
// containerd never makes.
func TestVerifierByHand(t *testing.T) {
	softhsmtest.Parallel(t)
	g := newGated(t)
	bin, state := filepath.Join(t.TempDir(), "bin dir's"), filepath.Join(t.TempDir(), "state")
	softhsmtest.Run(t, g.image, "install-verifier", "--bin-dir", bin, "--trust-dir", g.trust, "--state-dir", state,
		"--hosts-dir", plainHosts(t, g.front.address))
	program := filepath.Join(bin, "hsm-image-verifier")
	if info, err := os.Stat(program); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the verifier is %v, %v", info, err)
	}
	if entries, err := os.ReadDir(bin); err != nil || len(entries) != 1 {
		t.Errorf("containerd would run %v, %v", entries, err)
	}
	good := g.signed + ":signed"
	sum := "sha256:" + g.digest(t, good)
	size := len(softhsmtest.Read(t, filepath.Join(g.data, "docker/registry/v2/blobs/sha256", sum[7:9], sum[7:], "data")))
	descriptor := fmt.Sprintf(`{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":%q,"size":%d}`, sum,
		size)
	arguments := func(name, digest, mediaType string) []string {
		return []string{"-i", "PATH=" + softhsmtest.Getenv(t, "PATH"), program, "-name", name, "-digest", digest,
			"-stdin-media-type",
			mediaType}
	}
	const mediaType = "application/vnd.oci.descriptor.v1+json"
	other := "sha256:" + strings.Repeat("0", 64)
	for _, c := range []struct {
		name      string
		arguments []string
		stdin     string
		reason    string
	}{
		{"as containerd does", arguments(good, sum, mediaType), descriptor, ""},
		{"no arguments", []string{"-i", program}, descriptor, "there is no -name"},
		{"an unknown argument", append(arguments(good, sum, mediaType), "-force"), descriptor, "-force"},
		{"not a name", arguments("Not A Name", sum, mediaType), descriptor, "is not an image's name"},
		{"another digest in the name", arguments(g.signed+"@"+other, sum, mediaType), descriptor,
			"the name says another digest"},
		{"not a digest", arguments(good, "sha256:1", mediaType), descriptor, "is not a digest"},
		{"another input", arguments(good, sum, "application/json"), descriptor,
			"not \"application/vnd.oci.descriptor.v1+json\""},
		{"no descriptor", arguments(good, sum, mediaType), "", "it is not JSON"},
		{"another descriptor", arguments(good, other, mediaType), descriptor, "the descriptor is not one of " + other},
		{"another size", arguments(good, sum, mediaType), strings.Replace(descriptor, fmt.Sprint(size), "77", 1),
			"it was made for something else"},
		{"a long descriptor", arguments(good, sum, mediaType), descriptor + strings.Repeat(" ", 1<<20), "more than 1048576"},
		{"two lines in the name", arguments("a\nb", sum, mediaType), descriptor, "is not an image's name"},
	} {
		stdout, stderr, err := softhsmtest.Try(t, c.stdin, "env", c.arguments...)
		if (err == nil) != (c.reason == "") || !strings.Contains(stdout, c.reason) || strings.Count(stdout, "\n") != 1 {
			t.Errorf("%s: %v: %q, wanted %q\n%s", c.name, err, stdout, c.reason, stderr)
		}
	}
	if d := decisions(t, gate.Node{StateDir: state}.LogFile()); len(d) != 12 {
		t.Errorf("there are %d decisions in the log", len(d))
	}
	if _, err := os.Stat(".notation"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("without a home it writes into the folder where it stands")
	}

	// What cannot work is told when it is installed.
	for _, arguments := range [][]string{
		{"--bin-dir", bin},
		{"--bin-dir", bin, "--trust-dir", t.TempDir()},
		{"--bin-dir", bin, "--trust-dir", g.trust, "--hosts-dir", "/nowhere"},
		{"--bin-dir", bin, "--trust-dir", g.trust, "--auth-file", "/nowhere"},
		{"--bin-dir", filepath.Join(program, "bin"), "--trust-dir", g.trust},
		{"--bin-dir", bin, "--trust-dir", g.trust, "--timeout", "0"},
		{"--bin-dir", bin, "--trust-dir", g.trust, "--auth-file", ""},
		{"--bin-dir", bin, "--trust-dir", g.trust, "--hosts-dir", ""},
	} {
		if _, stderr, err := softhsmtest.Try(t, "", g.image,
			append([]string{"install-verifier", "--state-dir", state}, arguments...)...); err == nil ||
			!strings.Contains(stderr, "hint: ") {
			t.Errorf("install-verifier %v: %v %s", arguments, err, stderr)
		}
	}
}

// plainHosts is a folder of registry hosts that has one spoken to in plain HTTP.
func plainHosts(t testing.TB, address string) string {
	t.Helper()
	folder := t.TempDir()
	file := filepath.Join(folder, address, "hosts.toml")
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, file, fmt.Sprintf("server = %q\n", "http://"+address))
	return folder
}
