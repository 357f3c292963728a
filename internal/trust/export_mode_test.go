package trust

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestExportForNode writes a folder that a verifier can read which is neither root nor who wrote it, and that nobody
// else can write.
func TestExportForNode(t *testing.T) {
	defer unix.Umask(unix.Umask(0o022))
	to := filepath.Join(t.TempDir(), "notation")
	if _, err := Export(t.Context(), manifest(t), to); err != nil {
		t.Fatal(err)
	}
	files := 0
	if err := filepath.WalkDir(to, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		want := fs.FileMode(0o644)
		if entry.IsDir() {
			want = 0o755
		} else {
			files++
		}
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, %v", path, info.Mode(), err)
		}
		return nil
	}); err != nil || files < 2 {
		t.Errorf("%d files, %v", files, err)
	}
}
