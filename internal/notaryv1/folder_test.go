package notaryv1_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/notaryv1"
)

// TestHostileFiles refuses files of a folder that are no metadata.
func TestHostileFiles(t *testing.T) {
	t.Parallel()
	changes := map[string]func(path string) error{
		"too large":         func(path string) error { return os.Truncate(path, 100<<20) },
		"a folder":          func(path string) error { return swap(path, os.Mkdir(path+"~", 0o700)) },
		"a pipe":            func(path string) error { return swap(path, syscall.Mkfifo(path+"~", 0o600)) },
		"a link out":        func(path string) error { return swap(path, os.Symlink("/etc/passwd", path+"~")) },
		"an endless device": func(path string) error { return swap(path, os.Symlink("/dev/zero", path+"~")) },
	}
	for _, text := range []string{"", "text", "[]", `{"signatures":[]}`, `{"signed":null}`, `{"signed":{},"signed":{}}`,
		strings.Repeat(`{"a":`, 5000), `{"signed":{"version":1.5}}`, `{"signed":{"version":"1"}}`} {
		changes[fmt.Sprintf("%.30q", text)] = func(path string) error { return os.WriteFile(path, []byte(text), 0o600) }
	}
	for name, change := range changes {
		for _, file := range []string{"root", "timestamp", "snapshot", "targets"} {
			f := newForgery(t)
			f.make()
			dir := f.write()
			if err := change(filepath.Join(dir, "tuf", gun, "metadata", file+".json")); err != nil {
				t.Fatal(err)
			}
			if _, err := notaryv1.FromFolder(t.Context(), dir, gun, f.pin()); err == nil {
				t.Errorf("%s.json that is %s is accepted", file, name)
			}
		}
	}
	for _, name := range []string{"", "/", "..", "../x", "a/../../b", "a//b", "/etc", "a/", "a/.", "a\x00b", "a b", "ä",
		strings.Repeat("a", 256), ".", "a/%2e%2e"} {
		_, err := notaryv1.FromFolder(t.Context(), t.TempDir(), name, notaryv1.Pin{KeyIDs: []string{strings.Repeat("0", 64)}})
		refused(t, err, failure.Invalid, "REGISTRY/PATH")
	}
	_, err := notaryv1.FromFolder(t.Context(), "/nonexistent", gun, notaryv1.Pin{})
	refused(t, err, failure.NotFound, "cannot open trust folder")
}

// swap puts path~ in the place of path.
func swap(path string, err error) error {
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil {
		return err
	}
	return os.Rename(path+"~", path)
}
