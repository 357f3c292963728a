package image

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestCostlyArchives unpacks no archive that needs many times the space of its file, and reads others.
func TestCostlyArchives(t *testing.T) {
	m, dir := newModule(t), t.TempDir()
	_, encrypted := encryptedFolder(t, m, "one")
	archive := filepath.Join(dir, "app.tar")
	c := Copy{From: encrypted, To: mustParse(t, "oci-archive:"+archive)}
	if _, err := Decrypt(t.Context(), m.Keystore(), c, nil); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, content ...func(io.Writer) error) string {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		w := gzip.NewWriter(f)
		for _, write := range content {
			if err := write(w); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(w.Close(), f.Close()); err != nil {
			t.Fatal(err)
		}
		return f.Name()
	}
	original := func(w io.Writer) error { _, err := w.Write(data); return err }
	zeros := func(w io.Writer) error {
		_, err := io.CopyN(w, zeroReader{}, unpackedSlack+1<<20)
		return err
	}
	bomb := func(w io.Writer) error {
		archive := tar.NewWriter(w)
		header := &tar.Header{Name: "bomb", Mode: 0o600, Size: unpackedSlack + 1<<20}
		if err := archive.WriteHeader(header); err != nil {
			return err
		}
		_, err := io.CopyN(archive, zeroReader{}, header.Size)
		return err
	}
	if _, err := Layers(t.Context(), mustParse(t, "oci-archive:"+write("good.tar.gz", original)), Registry{}); err != nil {
		t.Errorf("a compressed archive: %v", err)
	}
	for name, path := range map[string]string{
		"a large file": write("bomb.tar.gz", bomb), "much after the archive": write("tail.tar.gz", original, zeros),
	} {
		for _, transport := range []string{"oci-archive:", "docker-archive:"} {
			_, err := Layers(t.Context(), mustParse(t, transport+path), Registry{})
			t.Log(name)
			mustFailWith(t, err, failure.Invalid, "unpacks to more than 10 times its size")
		}
	}
	_, err = Layers(t.Context(), mustParse(t, "oci-archive:"+filepath.Join(dir, "none.tar")), Registry{})
	mustFailWith(t, err, failure.NotFound, "cannot read")
}

type zeroReader struct{}

func (zeroReader) Read(p []byte) (int, error) { clear(p); return len(p), nil }
