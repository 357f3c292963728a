package sign

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// pinned are the ways in which something of others may be named: an action by its commit, an image by its digest, or by
// one that whoever uses the file has to give.
var pinned = map[string]*regexp.Regexp{
	"uses":  regexp.MustCompile(`^[a-z0-9-]+/[a-z0-9-]+@[0-9a-f]{40}$`),
	"image": regexp.MustCompile(`@(sha256:[0-9a-f]{64}|\$\{[A-Z]+_DIGEST:\?[^}]+\}|\$\(params\.[a-z]+-digest\))$`),
}

// TestPinned checks that deploy/ and .github/ use nothing of others by a name that can come to mean something else.
func TestPinned(t *testing.T) {
	softhsmtest.Parallel(t)
	for folder, least := range map[string]map[string]int{
		"deploy": {"uses": 1, "image": 8}, ".github": {"uses": 10, "image": 1},
	} {
		found, err := countPinned(t, filepath.Join(softhsmtest.Root(), folder))
		if err != nil || found["uses"] < least["uses"] || found["image"] < least["image"] {
			t.Errorf("%s: %v, %v", folder, err, found)
		}
	}
}

// countPinned fails the test for each name in a folder's YAML files that is not pinned, and returns how many names
// there are.
func countPinned(t *testing.T, folder string) (map[string]int, error) {
	found := map[string]int{}
	return found, filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".yaml" && filepath.Ext(path) != ".yml" {
			return err
		}
		for _, document := range softhsmtest.Documents(t, path) {
			everyValue(document, func(name, value string) {
				if form := pinned[name]; form != nil {
					found[name]++
					if !form.MatchString(value) {
						t.Errorf("%s: %s: %s is not pinned", path, name, value)
					}
				}
			})
		}
		return nil
	})
}

// everyValue calls do for each text in a YAML document that has a name.
func everyValue(node any, do func(name, value string)) {
	switch node := node.(type) {
	case map[string]any:
		for name, value := range node {
			if text, ok := value.(string); ok {
				do(name, text)
			}
			everyValue(value, do)
		}
	case []any:
		for _, value := range node {
			everyValue(value, do)
		}
	}
}
