package docs

import (
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// TestBundleFields verifies that the page on bundles explains each field of a bundle and of what is signed in it.
func TestBundleFields(t *testing.T) {
	t.Parallel()
	page := read(t, "bundle.md")
	if !strings.Contains(page, "`"+proof.MediaType+"`") || !strings.Contains(page, "`"+proof.AnnotationPayload+"`") {
		t.Error("the page does not have the media type and the annotation")
	}
	for prefix, of := range map[string]reflect.Type{"": reflect.TypeFor[proof.Bundle](),
		"entries[].": reflect.TypeFor[proof.Entry](), " ": reflect.TypeFor[approval.Envelope](),
		"  ": reflect.TypeFor[approval.Credential]()} {
		for field := range of.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			name = regexp.QuoteMeta(strings.TrimSpace(prefix) + name)
			if !regexp.MustCompile("(?m)^\\| [^|]*`" + name + "`").MatchString(page) {
				t.Errorf("the page does not explain %s", name)
			}
		}
	}
}
