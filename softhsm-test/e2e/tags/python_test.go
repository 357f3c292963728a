package tags

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/tuf"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestPython reads exported metadata with python-tuf, which is the reference implementation of TUF: signed with each
// kind of key, over rotations of the root, of roles that are split and of those that are not.
func TestPython(t *testing.T) {
	python := filepath.Join(softhsmtest.Root(), "bin", "tools", "python", "bin", "python")
	if _, err := os.Stat(python); err != nil {
		softhsmtest.Missing(t, "python-tuf")
	}
	for _, spec := range []string{"RSA-2048", "EC-256", "EC-384"} {
		t.Run(spec, func(t *testing.T) { testPython(t, python, spec) })
	}
}

func testPython(t *testing.T, python, spec string) {
	s := newScene(t)
	for _, label := range []string{"root", "targets", "snapshot", "timestamp", "alice", "root-2"} {
		s.key(s.token.Label, spec, label)
	}
	s.tag(slices.Concat([]string{"init", s.name, "--root", s.uri("root"), "--targets", s.uri("targets"), "--to", s.root},
		s.online())...)
	s.tag(slices.Concat([]string{"delegate", "add", s.name, "alice", "--paths", "release-*", "--key", s.uri("alice"),
		"--targets", s.uri("targets"), "--wait", patience}, s.online())...)
	want := map[string]string{"unsigned": "unsigned"}
	add := func(sum digest.Digest, tag string) {
		t.Helper()
		size := s.list()[tag].Size
		want[tag] = fmt.Sprintf("%s %s %d", tag, sum.Encoded(), size)
	}
	add(s.sign("v1", s.uri("targets")), "v1")
	add(s.sign("release-1", s.uri("alice")), "release-1")

	site, memory := t.TempDir(), t.TempDir()
	server := httptest.NewServer(http.FileServer(http.Dir(site)))
	t.Cleanup(server.Close)
	read := func(memory string) {
		t.Helper()
		s.tag("export", s.name, "--to", site)
		arguments := []string{filepath.Join(softhsmtest.Root(), "softhsm-test", "e2e", "tags", "testdata", "resolve.py"),
			s.root,
			server.URL + "/metadata", memory}
		for tag := range want {
			arguments = append(arguments, tag)
		}
		lines := strings.Split(strings.TrimSpace(softhsmtest.Run(t, python, arguments...)), "\n")
		for _, line := range lines {
			if tag, _, _ := strings.Cut(line, " "); line != want[tag] {
				t.Errorf("python-tuf says %q, not %q", line, want[tag])
			}
		}
		if len(lines) != len(want) {
			t.Errorf("python-tuf says %q", lines)
		}
	}
	read(memory)

	s.tag(slices.Concat([]string{"rotate", s.name, "root", "--new", s.uri("root-2"), "--root", s.uri("root"), "--wait",
		patience}, s.online())...)
	// some tags more than fit into one file
	many := func(key, pattern string) {
		t.Helper()
		all := tuf.Change{}
		for i := range 600 {
			target := tuf.Target{Tag: fmt.Sprintf(pattern, i), Digest: digest.FromString(fmt.Sprint(i)), Size: int64(i + 1)}
			all.Set = append(all.Set, target)
			want[target.Tag] = fmt.Sprintf("%s %s %d", target.Tag, target.Digest.Encoded(), target.Size)
		}
		s.withSigners([]string{key, "snapshot", "timestamp"}, func(signers []*tuf.Signer) {
			result, err := s.repositoryAt(s.registry).Change(t.Context(), all, signers, time.Hour)
			if err != nil || !result.Published {
				t.Fatalf("%+v: %v", result, err)
			}
		})
	}
	many("alice", "release-2.%d")
	add(s.sign("release-2", s.uri("alice")), "release-2")
	add(s.sign("v3", s.uri("targets")), "v3")
	read(memory)
	read(t.TempDir())

	// TUF's search ends in the bins of a role. So other clients do not find what is behind those of the targets keys.
	many("targets", "v2.%d")
	add(s.sign("v4", s.uri("targets")), "v4")
	for tag := range want {
		if strings.HasPrefix(tag, "release-") {
			want[tag] = tag
		}
	}
	read(memory)
	files := s.published()
	if files["1.tags-bin-00.json"] == nil || files["1.alice-bin-00.json"] == nil {
		t.Error("the roles were not split")
	}
}
