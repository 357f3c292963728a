package docs

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// TestApprovalDocuments verifies that the examples of a statement, a rule with its names, and an approval can be read,
// belong together, and that the page explains each of their fields; and that the file with the first approvers and the
// rule for emergencies can be read.
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
	if len(examples) != 4 {
		t.Fatalf("the page has %d examples, not a statement, a rule, names and an approval", len(examples))
	}
	statement, err := approval.DecodeStatement(examples[0])
	if err != nil || statement.Predicate.Needs[0].Rules[0].Digest != approval.Hash(examples[1]) {
		t.Errorf("%+v, %v: the rule is not that of the statement", statement, err)
	}
	document, _, err := approval.DecodeRule(examples[1])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := document.Open(examples[2]); err != nil {
		t.Error(err)
	}
	a, err := approval.Decode(examples[3])
	if err != nil || a.Statement != approval.Hash(examples[0]) {
		t.Errorf("%+v, %v: the approval is not of the statement", a, err)
	}
	first := regexp.MustCompile("(?s)```yaml\n(version: 1\napprovers:.*?)```").FindStringSubmatch(page)
	if first == nil {
		t.Fatal("the page has no example of a file with the first approvers")
	}
	path := filepath.Join(t.TempDir(), "approvers.yaml")
	if err := os.WriteFile(path, []byte(first[1]), 0o600); err != nil {
		t.Fatal(err)
	}
	if people, err := brokerfile.ReadApprovers(path); err != nil || len(people) != 3 {
		t.Errorf("%+v, %v", people, err)
	}
	rule := regexp.MustCompile("(?s)```yaml\n(- name: emergency.*?)```").FindStringSubmatch(page)
	if rule == nil {
		t.Fatal("the page has no example of a rule for emergencies")
	}
	policed := "version: 1\ngroups: {on-call: [erin]}\nkeys:\n  release:\n    key: pkcs11:token=t;object=o\n" +
		"    formats: [notation]\n    use:\n    " + strings.ReplaceAll(rule[1], "\n", "\n    ")
	if _, err := policy.Parse([]byte(policed)); err != nil {
		t.Errorf("%v\n%s", err, policed)
	}
	for _, of := range []reflect.Type{reflect.TypeFor[approval.Predicate](), reflect.TypeFor[approval.Rule]()} {
		for field := range of.Fields() {
			name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
			if name != "type" && !regexp.MustCompile("(?m)^\\| [^|]*`"+name+"`").MatchString(page) {
				t.Errorf("the page does not explain %s", name)
			}
		}
	}
}
