package image

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestReplaceFolder puts the new image in the place of the old one, and the old one back when the new one cannot be
// moved there.
func TestReplaceFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	stage, path, old := filepath.Join(dir, "stage"), filepath.Join(dir, "image"), filepath.Join(dir, "old")
	if err := os.MkdirAll(filepath.Join(path, "first"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := replaceFolder(stage, path, old); err == nil {
		t.Error("a folder that does not exist was moved")
	}
	if files := filesIn(t, dir); !slices.Equal(files, []string{"image", "image/first"}) {
		t.Errorf("after a failure there are %v", files)
	}
	if err := os.MkdirAll(filepath.Join(stage, "second"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := replaceFolder(stage, path, old); err != nil {
		t.Fatal(err)
	}
	if files := filesIn(t, dir); !slices.Equal(files, []string{"image", "image/second", "old", "old/first"}) {
		t.Errorf("there are %v", files)
	}
}

// TestMergeFails takes the blobs away again that it moved into a layout, when its index cannot be written.
func TestMergeFails(t *testing.T) {
	t.Parallel()
	stage, into := newOCIFolder(t), newOCIFolder(t)
	into.finish(into.plainImage("linux/amd64", "one"), 0)
	before := filesIn(t, into.dir)
	index := filepath.Join(into.dir, ocispec.ImageIndexFile)
	stage.finish(stage.plainImage("linux/amd64", "one", "two"), 0)
	for name, damage := range map[string]func() error{
		"the layout's index is not JSON": func() error { return os.WriteFile(index, []byte("{"), 0o600) },
		"the stage has no index":         func() error { return os.Remove(filepath.Join(stage.dir, ocispec.ImageIndexFile)) },
	} {
		if err := damage(); err != nil {
			t.Fatal(err)
		}
		if err := mergeLayout(stage.dir, into.dir, "app"); err == nil {
			t.Errorf("%s: it succeeds", name)
		}
		if after := filesIn(t, into.dir); !slices.Equal(before, after) {
			t.Errorf("%s: there are %v, and were %v", name, after, before)
		}
	}
}

// TestCommit writes beside other images of a layout, over an image of the same kind, and over empty folders.
func TestCommit(t *testing.T) {
	m, dir := newModule(t), t.TempDir()
	_, encrypted := encryptedFolder(t, m, "one")
	if err := os.MkdirAll(filepath.Join(dir, "empty"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{"oci:DIR/layout:a", "oci:DIR/layout:b", "oci:DIR/layout:a", "dir:DIR/dir", "dir:DIR/dir",
		"dir:DIR/empty"} {
		c := Copy{From: encrypted, To: mustParse(t, strings.Replace(to, "DIR", dir, 1))}
		if _, err := Decrypt(t.Context(), m.Keystore(), c, nil); err != nil {
			t.Fatalf("%s: %v", to, err)
		}
	}
	for _, name := range []string{"oci:DIR/layout:a", "oci:DIR/layout:b", "dir:DIR/dir", "dir:DIR/empty"} {
		images, err := Layers(t.Context(), mustParse(t, strings.Replace(name, "DIR", dir, 1)), Registry{})
		if err != nil || len(images) != 1 || images[0].encrypted() {
			t.Errorf("%s: %v, %v", name, images, err)
		}
	}
	for _, path := range filesIn(t, dir) {
		if strings.Contains(path, ".hsm-image-") {
			t.Errorf("%s was left", path)
		}
	}
}

// TestNoScratch fails where no temporary folder can be made.
func TestNoScratch(t *testing.T) {
	t.Setenv("TMPDIR", filepath.Join(t.TempDir(), "none"))
	_, err := newTarget(mustParse(t, "docker://registry.example.com/app:1"))
	mustFailWith(t, err, failure.Invalid, "cannot make a temporary folder")
}
