package tags

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/tags"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// patience is how long commands wait for the publisher: no machine is too slow for it.
const patience = "1h"

// scene is a repository in a registry, and people who sign its tags with keys on SoftHSM tokens. Keys are on the token
// "signing" unless a test makes others.
type scene struct {
	*softhsmtest.Notation
	t        testing.TB
	image    string // bin/hsm-image
	token    *softhsmtest.Token
	registry string // its address
	name     string // of the repository
	root     string // file with the first root
	dir      string
}

func newScene(t *testing.T) *scene {
	t.Helper()
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	s := &scene{Notation: softhsmtest.NewNotation(t, token), t: t, image: softhsmtest.Build(t, "hsm-image"), token: token,
		registry: oci.StartRegistry(t), dir: t.TempDir()}
	s.root = filepath.Join(s.dir, "root.json")
	s.name = s.registry + "/" + repository
	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(s.dir, "trust.yaml"))
	return s
}

// key makes a key on a token, and returns its URI.
func (s *scene) key(token, spec, label string) string {
	s.t.Helper()
	return softhsmtest.NewCAKey(s.t, s.Plugin, token, spec, label)
}

// keys makes keys on the token "signing".
func (s *scene) keys(labels ...string) {
	s.t.Helper()
	for _, label := range labels {
		s.key(s.token.Label, "EC-256", label)
	}
}

// uri returns the URI of a key on the token "signing".
func (s *scene) uri(label string) string {
	return fmt.Sprintf("pkcs11:token=%s;object=%s", s.token.Label, label)
}

// public writes the public half of a key to a file, and returns how commands name it.
func (s *scene) public(uri string) string {
	s.t.Helper()
	file := filepath.Join(s.t.TempDir(), "public.pem")
	softhsmtest.Write(s.t, file, softhsmtest.Run(s.t, s.Plugin, "cert", "export", "--public", uri))
	return "pubkey:" + file
}

// tag runs a command of hsm-image tag, and returns what it prints.
func (s *scene) tag(args ...string) string {
	s.t.Helper()
	return softhsmtest.Run(s.t, s.image, s.args(args)...)
}

func (s *scene) args(args []string) []string {
	return slices.Concat([]string{"tag"}, args, []string{"--plain-http"})
}

// fails verifies that a command of hsm-image tag fails, with words in its error.
func (s *scene) fails(words string, args ...string) {
	s.t.Helper()
	stdout, stderr, err := softhsmtest.Try(s.t, "", s.image, s.args(args)...)
	if err == nil || !strings.Contains(strings.Join(strings.Fields(stderr), " "), words) {
		s.t.Errorf("hsm-image tag %s: %v, without %q:\n%s%s", strings.Join(args, " "), err, words, stdout, stderr)
	}
}

// online are the flags of the publisher's keys.
func (s *scene) online() []string {
	return []string{"--snapshot", s.uri("snapshot"), "--timestamp", s.uri("timestamp")}
}

// init begins to sign the tags of the repository, with a key of each role on the token "signing".
func (s *scene) init() {
	s.t.Helper()
	s.keys("root", "targets", "snapshot", "timestamp")
	s.tag(slices.Concat([]string{"init", s.name, "--root", s.uri("root"), "--targets", s.uri("targets"), "--to", s.root},
		s.online())...)
}

// push pushes an image under a tag.
func (s *scene) push(tag string) digest.Digest {
	s.t.Helper()
	return s.pushAs(tag, tag)
}

// pushAs pushes an image that holds text under a tag.
func (s *scene) pushAs(tag, text string) digest.Digest {
	s.t.Helper()
	sum, err := oci.PushImage(s.t.Context(), s.name+":"+tag, text)
	if err != nil {
		s.t.Fatal(err)
	}
	return sum
}

// forget has commands run for a user who has seen nothing of the repository yet.
func (s *scene) forget() {
	s.t.Helper()
	softhsmtest.Setenv(s.t, "XDG_CONFIG_HOME", s.t.TempDir())
}

// sign pushes an image under a tag and signs the tag, which is published at once.
func (s *scene) sign(tag, key string) digest.Digest {
	s.t.Helper()
	sum := s.push(tag)
	s.tag(slices.Concat([]string{"sign", s.name + ":" + tag, "--key", key, "--wait", patience}, s.online())...)
	return sum
}

// refresh is one round of the publisher.
func (s *scene) refresh() {
	s.t.Helper()
	s.tag(append([]string{"refresh", s.name}, s.online()...)...)
}

// publisher starts the publisher, which ends with the test.
func (s *scene) publisher() *softhsmtest.Service {
	s.t.Helper()
	return softhsmtest.Start(s.t, s.image, s.args(append([]string{"refresh", s.name, "--every", "1s"}, s.online()...))...)
}

// resolves verifies that a tag is an image, by the signature of a role.
func (s *scene) resolves(tag string, sum digest.Digest, role string) {
	s.t.Helper()
	var target tuf.Target
	text := s.tag("show", s.name+":"+tag, "--json")
	if err := json.Unmarshal([]byte(text), &target); err != nil || target.Digest != sum || target.Role != role {
		s.t.Errorf("%s is %s, not %s by %s: %v", tag, text, sum, role, err)
	}
}

// list returns the signed tags, with the first role that signed each.
func (s *scene) list() map[string]tuf.Target {
	s.t.Helper()
	var list []tuf.Target
	if err := json.Unmarshal([]byte(s.tag("list", s.name, "--json")), &list); err != nil {
		s.t.Fatal(err)
	}
	all := map[string]tuf.Target{}
	for _, target := range list {
		if _, ok := all[target.Tag]; !ok {
			all[target.Tag] = target
		}
	}
	return all
}

// status returns what hsm-image tag status says.
func (s *scene) status() (status tags.Status) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.tag("status", s.name, "--json")), &status); err != nil {
		s.t.Fatal(err)
	}
	return status
}

// role returns what hsm-image tag status says of a role.
func (s *scene) role(name string) tuf.RoleInfo {
	s.t.Helper()
	for _, r := range s.status().Roles {
		if r.Name == name {
			return r
		}
	}
	s.t.Fatalf("there is no role %s", name)
	return tuf.RoleInfo{}
}

// deleteTag deletes a tag in the registry.
func (s *scene) deleteTag(tag string) {
	s.t.Helper()
	request, err := http.NewRequestWithContext(s.t.Context(), http.MethodDelete,
		"http://"+s.registry+"/v2/"+repository+"/manifests/"+tag, http.NoBody)
	if err != nil {
		s.t.Fatal(err)
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		s.t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusAccepted {
		s.t.Fatalf("deleting the tag %s: %s", tag, response.Status)
	}
}
