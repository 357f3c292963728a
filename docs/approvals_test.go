package docs

import (
	"bytes"
	"encoding/json"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
)

// TestApprovalDocuments verifies that the examples of a statement and an approval can be read, belong together, and
// that the page explains each of their fields.
func TestApprovalDocuments(t *testing.T) {
	t.Parallel()
	page := read(t, "approvals.md")
	var examples [][]byte
	for _, match := range regexp.MustCompile("(?s)```json\n(.*?)```").FindAllStringSubmatch(page, -1) {
		var compact bytes.Buffer
		if err := json.Compact(&compact, []byte(match[1])); err != nil {
			t.Fatal(err)
		}
		examples = append(examples, compact.Bytes())
	}
	if len(examples) != 2 {
		t.Fatalf("the page has %d examples, not a statement and an approval", len(examples))
	}
	if _, err := approval.DecodeStatement(examples[0]); err != nil {
		t.Error(err)
	}
	a, err := approval.Decode(examples[1])
	if err != nil || a.Statement != approval.Hash(examples[0]) {
		t.Errorf("%+v, %v: the approval is not of the statement", a, err)
	}
	for field := range reflect.TypeFor[approval.Predicate]().Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if !regexp.MustCompile("(?m)^\\| [^|]*`" + name + "`").MatchString(page) {
			t.Errorf("the page does not explain %s", name)
		}
	}
}
