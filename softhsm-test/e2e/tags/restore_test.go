package tags

import (
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/tuf"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestRestore verifies that the publisher restores what it has published when someone else who can write to the
// repository overwrites or deletes the reserved tag.
func TestRestore(t *testing.T) {
	s := newScene(t)
	s.init()
	s.sign("v1", s.uri("targets"))
	registry, err := oci.Open(s.name)
	if err != nil {
		t.Fatal(err)
	}
	const reserved = "tuf-metadata"
	old, err := registry.Resolve(t.Context(), reserved)
	if err != nil {
		t.Fatal(err)
	}
	sum := s.sign("v2", s.uri("targets"))
	for what, harm := range map[string]func(){
		"an older state": func() {
			if err := registry.Tag(t.Context(), old, reserved); err != nil {
				t.Fatal(err)
			}
		},
		"an image": func() { s.pushAs(reserved, "an image") },
		"nothing":  func() { s.deleteTag(reserved) },
	} {
		harm()
		if _, stderr, err := softhsmtest.Try(t, "", s.image, s.args([]string{"show", s.name + ":v2"})...); err == nil {
			t.Errorf("%s: the tag resolves: %s", what, stderr)
		}
		s.refresh()
		s.resolves("v2", sum, tuf.Tags)
	}
}
