package image

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// TestMain gives the tests no settings but the PIN of the module in memory, whatever this machine has.
func TestMain(m *testing.M) {
	err := errors.Join(os.Setenv("NOTATION_HSM_CONFIG", "/dev/null"), os.Setenv("NOTATION_HSM_PIN", keystoretest.PIN))
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// The keys of newModule. ocicrypt has one table of keys for the process, so tests that copy do not run in parallel.
const imagesKey, otherKey = "pkcs11:object=images", "pkcs11:object=other"

// newModule returns a module in memory with keys for images.
func newModule(t testing.TB) *keystoretest.Module {
	t.Helper()
	m := keystoretest.New("recipients")
	spec, _ := key.ParseSpec("EC-256")
	for _, label := range []string{"images", "other"} {
		private, err := keystoretest.NewKey(spec)
		if err != nil {
			t.Fatal(err)
		}
		m.Key(t, "recipients", label, private, key.Decrypt)
	}
	return m
}

// plainImage adds an image for a platform, with layers that have one file each.
func (f *ociFolder) plainImage(platform string, names ...string) ocispec.Descriptor {
	f.t.Helper()
	p, err := ParsePlatform(platform)
	if err != nil {
		f.t.Fatal(err)
	}
	config := ocispec.Image{Platform: ocispec.Platform{OS: p.OS, Architecture: p.Architecture}}
	config.RootFS.Type = "layers"
	m := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	m.SchemaVersion = 2
	for _, name := range names {
		content := tarOf(f.t, name)
		m.Layers = append(m.Layers, f.add(ocispec.MediaTypeImageLayer, content))
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromString(content))
	}
	m.Config = f.addJSON(ocispec.MediaTypeImageConfig, config)
	d := f.addJSON(m.MediaType, m)
	d.Platform = &config.Platform
	return d
}

// tarOf is an archive with one file.
func tarOf(t testing.TB, name string) string {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	content := strings.Repeat(name, 1000)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// encryptedFolder returns an OCI layout with an image that is encrypted to imagesKey.
func encryptedFolder(t testing.TB, m *keystoretest.Module, names ...string) (*ociFolder, Reference) {
	t.Helper()
	plain := newOCIFolder(t)
	from := plain.finish(plain.plainImage("linux/amd64", names...), 0)
	folder := &ociFolder{t: t, dir: filepath.Join(t.TempDir(), "encrypted")}
	to := mustParse(t, "oci:"+folder.dir)
	if _, err := Encrypt(t.Context(), m.Keystore(), Copy{From: from, To: to}, []string{imagesKey}, nil); err != nil {
		t.Fatal(err)
	}
	return folder, to
}

func base64Of(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }

// mustFailWith fails the test unless err is a failure of a kind that says some words, and what to do.
func mustFailWith(t testing.TB, err error, kind failure.Kind, words string) {
	t.Helper()
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), words) || failure.From(err).Hint == "" {
		t.Errorf("%v (%v) is not a failure of kind %v with %q and a hint", err, failure.From(err).Kind, kind, words)
	}
}

// filesIn returns the paths of all files below a folder.
func filesIn(t testing.TB, dir string) (paths []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && path != dir {
			paths = append(paths, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(paths)
	return paths
}
