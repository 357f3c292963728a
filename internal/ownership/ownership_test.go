package ownership_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// place makes a folder with a file in it, below a folder that is the user's alone.
func place(t *testing.T) (folder, file string) {
	t.Helper()
	folder = filepath.Join(t.TempDir(), "folder")
	file = filepath.Join(folder, "file")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	return folder, file
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, target, path string) string {
	t.Helper()
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestCheck(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(t *testing.T, folder, file string) (path string)
		want   string // in the error; "" if there is none
	}{
		"the user's file": {func(_ *testing.T, _, file string) string { return file }, ""},
		"below a sticky folder": {func(t *testing.T, folder, file string) string {
			chmod(t, folder, 0o777|os.ModeSticky)
			return file
		}, ""},
		"a sticky folder itself": {func(t *testing.T, folder, _ string) string {
			chmod(t, folder, 0o777|os.ModeSticky)
			return folder
		}, "can write to"},
		"a file that its group can write to": {func(t *testing.T, _, file string) string {
			chmod(t, file, 0o620)
			return file
		}, "mode 0620"},
		"below a folder that all can write to": {func(t *testing.T, folder, file string) string {
			chmod(t, folder, 0o777)
			return file
		}, "folder (mode 0777)"},
		"a link to a file below such a folder": {func(t *testing.T, folder, file string) string {
			chmod(t, folder, 0o777)
			return link(t, file, filepath.Join(t.TempDir(), "link"))
		}, "folder (mode 0777)"},
		"a relative link with ..": {func(t *testing.T, folder, _ string) string {
			return link(t, "../folder/./file", filepath.Join(folder, "link"))
		}, ""},
		"a link to itself": {func(t *testing.T, folder, _ string) string {
			return link(t, "link", filepath.Join(folder, "link"))
		}, "too many levels"},
		"a relative path":  {func(*testing.T, string, string) string { return "file" }, "not a full path"},
		"a missing file":   {func(_ *testing.T, _, file string) string { return file + "s" }, "no such file"},
		"a file in a file": {func(_ *testing.T, _, file string) string { return file + "/file" }, "not a directory"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			folder, file := place(t)
			err := ownership.Check(test.change(t, folder, file), os.Getuid())
			if test.want == "" && err != nil {
				t.Fatalf("error %v, want none", err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Fatalf("error %v, want one with %q", err, test.want)
			}
		})
	}
}

// TestCheckKind verifies that callers can tell a missing path, and what others can change, from a path that is wrong.
func TestCheckKind(t *testing.T) {
	t.Parallel()
	_, file := place(t)
	if err := ownership.Check(file+"s", os.Getuid()); !failure.Is(err, failure.NotFound) ||
		!errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
	if err := ownership.Check("file", os.Getuid()); !failure.Is(err, failure.Invalid) {
		t.Errorf("a relative path: %v", err)
	}
	chmod(t, file, 0o602)
	if err := ownership.Check(file, os.Getuid()); !failure.Is(err, failure.Denied) {
		t.Errorf("a file that others can write to: %v", err)
	}
}

// TestCheckOwner verifies that another user may own neither the file, nor a folder or link on the path.
func TestCheckOwner(t *testing.T) {
	t.Parallel()
	softhsmtest.NeedRoot(t)
	for _, which := range []string{"folder", "file", "link"} {
		t.Run(which, func(t *testing.T) {
			folder, file := place(t)
			path := link(t, file, filepath.Join(filepath.Dir(folder), "link"))
			owned := map[string]string{"folder": folder, "file": file, "link": path}[which]
			if err := os.Lchown(owned, 4242, 4242); err != nil {
				t.Fatal(err)
			}
			if err := ownership.Check(path); !failure.Is(err, failure.Denied) ||
				!strings.Contains(err.Error(), "user 4242 owns "+owned) {
				t.Errorf("error %v, want one that names user 4242 and %s", err, owned)
			}
			if err := ownership.Check(path, 4242); err != nil {
				t.Errorf("error %v for a user who may own it", err)
			}
		})
	}
}

// TestCheckTree verifies that every file below a folder counts, and what a link there leads to.
func TestCheckTree(t *testing.T) {
	t.Parallel()
	folder, file := place(t)
	if err := ownership.CheckTree(folder, os.Getuid()); err != nil {
		t.Fatal(err)
	}
	chmod(t, file, 0o606)
	if err := ownership.CheckTree(folder, os.Getuid()); err == nil || !strings.Contains(err.Error(), file) {
		t.Fatalf("error %v, want one that names %s", err, file)
	}
	chmod(t, file, 0o600)
	sticky := filepath.Join(folder, "sticky")
	if err := os.Mkdir(sticky, 0o700); err != nil {
		t.Fatal(err)
	}
	chmod(t, sticky, 0o777|os.ModeSticky) // others could add files
	if err := ownership.CheckTree(folder, os.Getuid()); err == nil || !strings.Contains(err.Error(), sticky) {
		t.Fatalf("error %v, want one that names %s", err, sticky)
	}
	chmod(t, sticky, 0o700)
	link(t, "/tmp", filepath.Join(folder, "link"))
	if err := ownership.CheckTree(folder, os.Getuid()); err == nil || !strings.Contains(err.Error(), "/tmp") {
		t.Fatalf("error %v, want one that names what the link leads to", err)
	}
}

// TestCheckTreeLinks verifies that every file counts in a folder to which a link leads, and that a link back is no
// loop.
func TestCheckTreeLinks(t *testing.T) {
	t.Parallel()
	folder, _ := place(t)
	other, file := place(t)
	link(t, other, filepath.Join(folder, "other"))
	link(t, folder, filepath.Join(other, "back"))
	if err := ownership.CheckTree(folder, os.Getuid()); err != nil {
		t.Fatal(err)
	}
	chmod(t, file, 0o620)
	if err := ownership.CheckTree(folder, os.Getuid()); !failure.Is(err, failure.Denied) ||
		!strings.Contains(err.Error(), file) {
		t.Errorf("error %v, want one that names %s", err, file)
	}
}
