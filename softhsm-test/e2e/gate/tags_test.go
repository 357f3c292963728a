package gate

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/gate"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/containerd"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// newTaggedGate has a registry with one repository whose tags the keys of a token sign, and whose images the signer
// "release" signs.
func newTaggedGate(t testing.TB) *gated {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	g := &gated{Notation: softhsmtest.NewNotation(t, token), token: token, image: softhsmtest.Build(t, "hsm-image"),
		trust: filepath.Join(t.TempDir(), "trust"), front: newFront(t, oci.StartRegistry(t))}
	g.signed = g.front.address + "/team/app"
	for _, name := range []string{"release", "root", "targets", "snapshot", "timestamp", "alice"} {
		softhsmtest.NewCAKey(t, g.Plugin, token.Label, "EC-256", name)
	}
	g.key = keyURI("release")
	pem := filepath.Join(t.TempDir(), "release.pem")
	softhsmtest.Write(t, pem, softhsmtest.Run(t, g.Plugin, "cert", "self-sign", g.key, "--subject",
		fmt.Sprintf(subjectOf, "release")))
	softhsmtest.Run(t, g.Plugin, "cert", "import", g.key, pem)
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(t.TempDir(), "trust.yaml"))
	softhsmtest.Run(t, g.Plugin, "trust", "init")
	softhsmtest.Run(t, g.Plugin, "trust", "signer", "add", "release", "--scope", g.signed, "--cert", pem)
	g.tag(t, "init", g.signed, "--root", keyURI("root"), "--targets", keyURI("targets"), "--to",
		filepath.Join(t.TempDir(), "root.json"))
	softhsmtest.Run(t, g.Plugin, "trust", "export", "--to", g.trust)
	return g
}

func keyURI(name string) string { return "pkcs11:token=signing;object=" + name }

// tag runs a command of hsm-image tag with the keys of the publisher.
func (g *gated) tag(t testing.TB, arguments ...string) {
	t.Helper()
	softhsmtest.Run(t, g.image, append(append([]string{"tag"}, arguments...), "--plain-http", "--snapshot",
		keyURI("snapshot"), "--timestamp", keyURI("timestamp"))...)
}

// push pushes an image, which release signs.
func (g *gated) push(t testing.TB, tag, text string) digest.Digest {
	t.Helper()
	sum, err := oci.PushImage(t.Context(), g.signed+":"+tag, text)
	if err != nil {
		t.Fatal(err)
	}
	g.sign(t, g.key, g.signed+"@"+sum.String())
	return sum
}

// manifest returns the manifest under a tag.
func (g *gated) manifest(t testing.TB, tag string) []byte {
	t.Helper()
	repository, err := oci.Open(g.signed + ":" + tag)
	if err != nil {
		t.Fatal(err)
	}
	d, reply, err := repository.FetchReference(t.Context(), tag)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Close()
	var data bytes.Buffer
	if n, err := data.ReadFrom(reply); err != nil || n != d.Size {
		t.Fatal(n, err)
	}
	return data.Bytes()
}

// serve makes the registry serve a manifest under a tag, as someone can who owns it.
func (g *gated) serve(t testing.TB, tag string, manifest []byte) {
	t.Helper()
	repository, err := oci.Open(g.signed + ":" + tag)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := oci.Push(t.Context(), repository, ocispec.MediaTypeImageManifest, manifest); err != nil {
		t.Fatal(err)
	}
}

// TestContainerdTags has a real containerd pull tags of a real registry that goes back: to an older image under a tag,
// and to older metadata with it. The node still knows better after containerd was started again.
func TestContainerdTags(t *testing.T) {
	softhsmtest.Parallel(t)
	g := newTaggedGate(t)
	old := g.push(t, "v1", "old")
	g.tag(t, "sign", g.signed+":v1", "--key", keyURI("targets"))
	oldImage, oldMetadata := g.manifest(t, "v1"), g.manifest(t, "tuf-metadata")
	g.push(t, "unsigned", "unsigned")

	bin, state := filepath.Join(t.TempDir(), "bin"), filepath.Join(t.TempDir(), "state")
	c := containerd.Start(t, containerd.Options{Verifiers: bin})
	g.install(t, c, bin, state)
	pulls := func(c *containerd.Daemon, tag, reason string) {
		t.Helper()
		for way, pull := range map[string]func(testing.TB, string) error{"ctr": c.Pull, "kubelet": c.PullCRI} {
			if err := pull(t, g.signed+":"+tag); (err == nil) != (reason == "") || err != nil &&
				!strings.Contains(err.Error(), reason) {
				t.Errorf("%s pulls %s: %v, wanted %q", way, tag, err, reason)
			}
		}
	}
	pulls(c, "v1", "")
	pulls(c, "unsigned", "tag unsigned is not signed")

	now := g.push(t, "v1", "new")
	pulls(c, "v1", fmt.Sprintf("the tag v1 is %s in the tag metadata (role tags), and not %s", old, now))
	g.tag(t, "sign", g.signed+":v1", "--key", keyURI("targets"))
	pulls(c, "v1", "")
	newMetadata := g.manifest(t, "tuf-metadata")
	g.serve(t, "v1", oldImage)
	pulls(c, "v1", fmt.Sprintf("the tag v1 is %s in the tag metadata (role tags), and not %s", now, old))
	g.serve(t, "tuf-metadata", oldMetadata)
	pulls(c, "v1", "it went back to an older version")

	// After a reboot the node has what its state directory has.
	again := containerd.Start(t, containerd.Options{Verifiers: bin})
	g.install(t, again, bin, state)
	pulls(again, "v1", "it went back to an older version")
	g.serve(t, "tuf-metadata", newMetadata)
	pulls(again, "v1", "the tag v1 is "+now.String())
	if err := os.RemoveAll(filepath.Join(state, gate.TagsFolder)); err != nil {
		t.Fatal(err)
	}
	g.serve(t, "tuf-metadata", oldMetadata)
	pulls(again, "v1", "") // which is why the folder must stay
	last := decisions(t, gate.Node{StateDir: state}.LogFile())
	if d := last[len(last)-1]; d["verdict"] != gate.Pass || d["tagRole"] != "tags" || d["digest"] != old.String() {
		t.Errorf("the log says %v", d)
	}
}

// TestVerifyTags has a delegation sign a tag, for which the trust manifest has a signer of its own.
func TestVerifyTags(t *testing.T) {
	softhsmtest.Parallel(t)
	g := newTaggedGate(t)
	v1, release := g.push(t, "v1", "v1"), g.push(t, "release-1", "release-1")
	g.tag(t, "sign", g.signed+":v1", "--key", keyURI("targets"))
	g.tag(t, "delegate", "add", g.signed, "alice", "--paths", "release-*", "--key", keyURI("alice"), "--targets",
		keyURI("targets"))
	g.tag(t, "sign", g.signed+":release-1", "--key", keyURI("alice"))
	state := filepath.Join(t.TempDir(), "state")
	verify := func(image string) (result, map[string]any) {
		t.Helper()
		stdout, stderr, _ := softhsmtest.Try(t, "", g.image, "verify", "--json", "--plain-http", "--trust-dir", g.trust,
			"--state-dir", state, g.signed+image)
		var results []result
		var tags []struct{ Tag map[string]any }
		if json.Unmarshal([]byte(stdout), &results) != nil || json.Unmarshal([]byte(stdout), &tags) != nil {
			t.Fatalf("%s: %s%s", image, stdout, stderr)
		}
		return results[0], tags[0].Tag
	}
	if r, tag := verify(":v1"); r.Verdict != gate.Pass || r.Digest != v1.String() || tag["role"] != "tags" {
		t.Errorf("%+v, %v", r, tag)
	}
	if r, tag := verify(":release-1"); r.Verdict != gate.Pass || r.Digest != release.String() || tag["role"] != "alice" {
		t.Errorf("%+v, %v", r, tag)
	}

	// The signer of the images may sign releases alone.
	softhsmtest.Run(t, g.Plugin, "trust", "signer", "remove", "release")
	pem := filepath.Join(t.TempDir(), "release.pem")
	softhsmtest.Write(t, pem, softhsmtest.Run(t, g.Plugin, "cert", "export", g.key))
	softhsmtest.Run(t, g.Plugin, "trust", "signer", "add", "release", "--scope", g.signed, "--cert", pem, "--paths",
		"release-*")
	softhsmtest.Run(t, g.Plugin, "trust", "export", "--to", g.trust)
	if r, _ := verify(":release-1"); r.Verdict != gate.Pass {
		t.Errorf("%+v", r)
	}
	if r, _ := verify(":v1"); r.Verdict != gate.Refuse ||
		!strings.Contains(r.Reason, `signer "release" may only sign the tags release-*`) {
		t.Errorf("%+v", r)
	}
	if r, tag := verify("@" + v1.String()); r.Verdict != gate.Pass || tag != nil {
		t.Errorf("%+v, %v", r, tag)
	}
	text := softhsmtest.Run(t, g.image, "verify", "--plain-http", "--trust-dir", g.trust, "--state-dir", state,
		g.signed+":release-1")
	if !strings.Contains(text, "  tag          release-1 (role alice, timestamp ") {
		t.Errorf("%s", text)
	}
	g.tag(t, "delegate", "remove", g.signed, "alice", "--targets", keyURI("targets"))
	if r, _ := verify(":release-1"); r.Verdict != gate.Refuse ||
		!strings.Contains(r.Reason, "is no longer signed: the delegation alice, which signed it, was removed") {
		t.Errorf("%+v", r)
	}
}
