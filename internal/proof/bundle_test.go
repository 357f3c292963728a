package proof_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/proof/prooftest"
)

// TestDecode reads what Encode writes, and nothing else.
func TestDecode(t *testing.T) {
	t.Parallel()
	good := prooftest.Encode(t, newScene(t).good().Bundle())
	b, err := proof.Decode(good)
	if err != nil || !bytes.Equal(prooftest.Encode(t, b), good) {
		t.Fatal(err)
	}
	empty := prooftest.Encode(t, &proof.Bundle{Entries: []proof.Entry{{}}})
	if b, err = proof.Decode(empty); err != nil || len(b.Entries) != 1 {
		t.Errorf("%s: %v", empty, err)
	}
	list := func(name, element string, count int) string {
		old := map[string]string{"hashes": `"hashes":[]`, "approvals": `"approvals":[]`, "rules": `"rules":[]`,
			"entries": `"entries":[{"entry":null,"hashes":[],"index":0}]`}[name]
		return strings.Replace(string(empty), old, `"`+name+`":[`+strings.Repeat(element+",", count-1)+element+"]", 1)
	}
	for name, count := range map[string]int{"approvals": 256, "rules": 64, "entries": 512, "hashes": 64} {
		element := `""`
		if name == "entries" {
			element = `{"entry":"","hashes":[],"index":0}`
		}
		if _, err := proof.Decode([]byte(list(name, element, count))); err != nil {
			t.Errorf("%d %s: %v", count, name, err)
		}
		_, err := proof.Decode([]byte(list(name, element, count+1)))
		denies(t, name, err, "more than")
	}
	for name, text := range map[string]string{
		"white space":    string(good) + "\n",
		"another type":   strings.Replace(string(good), "approvals/v1", "approvals/v2", 1),
		"null for []":    strings.Replace(string(empty), `"rules":[]`, `"rules":null`, 1),
		"null for proof": strings.Replace(string(empty), `"hashes":[]`, `"hashes":null`, 1),
		"another field":  strings.Replace(string(good), `"type"`, `"a":1,"type"`, 1),
		"another case":   strings.Replace(string(good), `"statement"`, `"Statement"`, 1),
		"a field less":   strings.Replace(string(empty), `"rules":[],`, "", 1),
		"a field twice":  strings.Replace(string(empty), `"rules":[],`, `"rules":[],"rules":[],`, 1),
		"a fraction":     strings.Replace(string(empty), `"index":0`, `"index":0.0`, 1),
		"deep":           strings.Repeat("[", 1<<19) + strings.Repeat("]", 1<<19),
		"too long":       `{"approvals":[],"checkpoint":"` + strings.Repeat("a", 1<<20) + `"}`,
		"one byte more":  strings.Repeat(" ", proof.MaxBundle+1-len(good)) + string(good),
		"nothing":        "",
		"no object":      "[]",
	} {
		_, err := proof.Decode([]byte(text))
		denies(t, name, err, "cannot read the bundle of approvals")
	}
}

// TestLargest makes no bundle that nobody would read.
func TestLargest(t *testing.T) {
	t.Parallel()
	b := &proof.Bundle{}
	size := len(prooftest.Encode(t, b))
	b.Checkpoint = strings.Repeat("a", proof.MaxBundle-size)
	if _, err := proof.Decode(prooftest.Encode(t, b)); err != nil {
		t.Error(err)
	}
	b.Checkpoint += "a"
	if _, err := b.Encode(); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
}
