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

// TestPinned holds that deploy/ uses nothing of others by a name that can come to mean something else.
func TestPinned(t *testing.T) {
	softhsmtest.Parallel(t)
	found := map[string]int{}
	err := filepath.WalkDir(filepath.Join(softhsmtest.Root(), "deploy"), func(path string, entry fs.DirEntry,
		err error) error {
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
	if err != nil || found["uses"] == 0 || found["image"] < 8 {
		t.Errorf("%v, %v", found, err)
	}
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
