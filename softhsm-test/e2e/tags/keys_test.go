package tags

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"

	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// TestKeys signs with a key of each kind that TUF has a scheme for, in every role, and with none of the others. All
// that is signed is what a broker or an agent reads as TUF metadata, so that they sign it.
func TestKeys(t *testing.T) {
	schemes := map[string]string{"RSA-2048": "rsassa-pss-sha256", "EC-256": "ecdsa-sha2-nistp256",
		"EC-384": "ecdsa-sha2-nistp384"}
	for spec, scheme := range schemes {
		t.Run(spec, func(t *testing.T) {
			s := newScene(t)
			for _, label := range []string{"root", "targets", "snapshot", "timestamp", "alice"} {
				s.key(s.token.Label, spec, label)
			}
			s.tag(slices.Concat([]string{"init", s.name, "--root", s.uri("root"), "--targets", s.uri("targets"), "--to", s.root},
				s.online())...)
			s.tag(slices.Concat([]string{"delegate", "add", s.name, "alice", "--paths", "release-*", "--key", s.uri("alice"),
				"--targets", s.uri("targets"), "--wait", patience}, s.online())...)
			v1, release := s.sign("v1", s.uri("targets")), s.sign("release-1", s.uri("alice"))
			s.resolves("v1", v1, "tags")
			s.resolves("release-1", release, "alice")
			files := s.published()
			for _, name := range []string{"1.root.json", "2.targets.json"} {
				if !bytes.Contains(files[name], fmt.Appendf(nil, "%q", scheme)) {
					t.Errorf("%s has no key of the scheme %s:\n%s", name, scheme, files[name])
				}
			}
			readable(t, files)
		})
	}
	t.Run("others", func(t *testing.T) {
		s := newScene(t)
		s.init()
		s.key(s.token.Label, "EC-521", "alice")
		const refused = "cannot sign tag metadata with a key on P-521"
		for _, key := range []string{s.uri("alice"), s.public(s.uri("alice"))} {
			s.fails(refused, "delegate", "add", s.name, "alice", "--paths", "*", "--key", key, "--targets", s.uri("targets"))
			s.fails(refused, "rotate", s.name, "targets", "--new", key, "--root", s.uri("root"))
		}
		s.push("v1")
		s.fails(refused, "sign", s.name+":v1", "--key", s.uri("alice"))
	})
}

// readable verifies that what is signed of each file is read as TUF metadata.
func readable(t testing.TB, files map[string][]byte) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		var file struct{ Signed map[string]any }
		decoder := json.NewDecoder(bytes.NewReader(files[name]))
		decoder.UseNumber()
		if err := decoder.Decode(&file); err != nil {
			t.Fatal(err)
		}
		signed, err := cjson.EncodeCanonical(file.Signed)
		if err != nil {
			t.Fatal(err)
		}
		a, err := payload.Read(signed)
		if err != nil || a.Format != payload.TUF || a.Name != file.Signed["_type"] || !strings.Contains(name, a.Name) &&
			a.Name != "targets" {
			t.Errorf("%s is read as %+v: %v", name, a, err)
		}
	}
}
