package approvals

import (
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// liar is what makes a broker that lies: changes of the product's source, by path in the repository.
type liar struct {
	changes map[string][]string // pairs of a text of the file and its replacement
	added   map[string]string   // files that the source does not have
}

// build builds the broker. The product's source stays as it is.
func (l liar) build(t *testing.T) (program string) {
	t.Helper()
	dir, overlay := t.TempDir(), map[string]string{}
	add := func(file, text string) {
		path := filepath.Join(softhsmtest.Root(), file)
		overlay[path] = filepath.Join(dir, strings.ReplaceAll(file, "/", "-"))
		softhsmtest.Write(t, overlay[path], text)
	}
	for file, changes := range l.changes {
		text := softhsmtest.Read(t, filepath.Join(softhsmtest.Root(), file))
		for i := 0; i < len(changes); i += 2 {
			if !strings.Contains(text, changes[i]) {
				t.Fatalf("%s has no %q to replace", file, changes[i])
			}
			text = strings.ReplaceAll(text, changes[i], changes[i+1])
		}
		add(file, text)
	}
	for file, text := range l.added {
		add(file, text)
	}
	softhsmtest.WriteJSON(t, filepath.Join(dir, "overlay.json"), map[string]any{"Replace": overlay})
	program = filepath.Join(dir, "hsm-broker")
	flags := append([]string{"build", "-tags", softhsmtest.Tags, "-overlay", filepath.Join(dir, "overlay.json"), "-o",
		program}, softhsmtest.Hardened...) // as Build, whose packages are in Go's cache
	cmd := softhsmtest.Go(softhsmtest.Root(), append(flags, "./cmd/hsm-broker")...)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	return program
}
