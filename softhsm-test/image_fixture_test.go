package softhsmtest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// An imageUser has keys for encrypted images on a token, and the programs: hsm-image, and one that copies images as
// skopeo does, which is told to use the key provider of notation-hsm.
type imageUser struct {
	hsmImage, skopeo string
	token            *Token
	keys             map[string]imageKey
}

// An imageKey is a key of an imageUser, and files with its public half.
type imageKey struct{ uri, public, certificate string }

func newImageUser(t *testing.T, token *Token, specs ...string) *imageUser {
	t.Helper()
	u := &imageUser{hsmImage: Build(t, "hsm-image"), skopeo: buildSkopeo(t), token: token, keys: map[string]imageKey{}}
	plugin, dir, temporary := Build(t, "notation-hsm"), t.TempDir(), t.TempDir()
	t.Setenv("TMPDIR", temporary)
	t.Cleanup(func() {
		if left, err := filepath.Glob(filepath.Join(temporary, ".hsm-image-*")); err != nil || len(left) > 0 {
			t.Errorf("there still is %s: %v", left, err)
		}
	})
	for _, name := range []string{"CONFIG", "LOG", "TOKEN", "SLOT_ID", "PIN_SOURCE", "CERTIFICATE_CHAIN", "TIMEOUT"} {
		t.Setenv("NOTATION_HSM_"+name, "")
	}
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	t.Setenv("NOTATION_HSM_MODULE_PATH", token.Module)
	t.Setenv("NOTATION_HSM_PIN", PIN)
	provider := filepath.Join(dir, "ocicrypt.json")
	writeJSON(t, provider, map[string]any{"key-providers": map[string]any{
		"hsm": map[string]any{"cmd": map[string]any{"path": plugin, "args": []string{"keyprovider"}}}}})
	t.Setenv("OCICRYPT_KEYPROVIDER_CONFIG", provider)
	t.Setenv("OCICRYPT_CONFIG", "internal") // for pkcs11:
	for _, spec := range specs {
		k := imageKey{public: filepath.Join(dir, spec+".pem"), certificate: filepath.Join(dir, spec+".crt")}
		k.uri = strings.TrimSpace(Run(t, plugin, "key", "generate", "--token", token.Label, "--label", spec, "--spec", spec,
			"--usage", "decrypt"))
		text := Run(t, plugin, "cert", "export", "--public", k.uri)
		writeFile(t, k.public, []byte(text))
		writeFile(t, k.certificate, certificateFor(t, text))
		u.keys[spec] = k
	}
	return u
}

// certificateFor has a CA issue a certificate for a public key, whose own private key can't sign.
func certificateFor(t *testing.T, publicPEM string) []byte {
	t.Helper()
	block, _ := pem.Decode([]byte(publicPEM))
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "node"},
		NotAfter: time.Now().Add(time.Hour)}
	issuer := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, public, ca)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// buildSkopeo builds the program that copies images as skopeo does, and returns its path.
func buildSkopeo(t testing.TB) string {
	t.Helper()
	path, err := skopeo()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

var skopeo = sync.OnceValues(func() (path string, err error) {
	path = filepath.Join(root(), "bin", "tools", "skopeo")
	cmd := exec.Command("go", "build", "-tags", Tags, "-o", path, "./softhsm-test/skopeo")
	cmd.Dir, cmd.Env = root(), environment
	if output, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building skopeo: %w\n%s", err, output)
	}
	return path, nil
})

// try runs hsm-image and returns what it printed, and its error.
func (u *imageUser) try(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return try(t, "", u.hsmImage, args...)
}

// marker is in each layer of a test image, so that it can be looked for.
const marker = "this is the plain text of a layer"

// writeImage adds an image, or for several platforms an index, to an OCI layout. Each image has two layers of a size in
// bytes that are "compressed" without being made smaller, so that the marker can be found in them.
func writeImage(t testing.TB, dir, tag string, size int, platforms ...string) {
	t.Helper()
	var index ocispec.Index
	if data, err := os.ReadFile(filepath.Join(dir, ocispec.ImageIndexFile)); err == nil {
		if err := json.Unmarshal(data, &index); err != nil {
			t.Fatal(err)
		}
	}
	index.Versioned = specs.Versioned{SchemaVersion: 2}
	var images []ocispec.Descriptor
	for _, platform := range platforms {
		images = append(images, writeOne(t, dir, tag, size, platform))
	}
	top := images[0]
	top.Platform = nil
	if len(images) > 1 {
		top = writeBlobJSON(t, dir, ocispec.MediaTypeImageIndex, ocispec.Index{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: images,
		})
	}
	top.Annotations = map[string]string{ocispec.AnnotationRefName: tag}
	index.Manifests = append(index.Manifests, top)
	writeJSON(t, filepath.Join(dir, ocispec.ImageIndexFile), index)
	writeJSON(t, filepath.Join(dir, ocispec.ImageLayoutFile), ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
}

func writeOne(t testing.TB, dir, tag string, size int, platform string) ocispec.Descriptor {
	t.Helper()
	system, architecture, _ := strings.Cut(platform, "/")
	p := ocispec.Platform{OS: system, Architecture: architecture}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest}
	var plain []digest.Digest
	for _, name := range []string{"lower", "upper"} {
		text := []byte(strings.Join([]string{marker, name, tag, platform}, " ") + "\n")
		text = bytes.Repeat(text, size/len(text)+1)
		var archive, layer bytes.Buffer
		w := tar.NewWriter(&archive)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(text))}); err != nil {
			t.Fatal(err)
		}
		_, _ = w.Write(text)
		_ = w.Close()
		z, _ := gzip.NewWriterLevel(&layer, gzip.NoCompression)
		_, _ = z.Write(archive.Bytes())
		_ = z.Close()
		plain = append(plain, digest.FromBytes(archive.Bytes()))
		m.Layers = append(m.Layers, writeBlob(t, dir, ocispec.MediaTypeImageLayerGzip, layer.Bytes()))
	}
	m.Config = writeBlobJSON(t, dir, ocispec.MediaTypeImageConfig,
		ocispec.Image{Platform: p, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: plain}})
	d := writeBlobJSON(t, dir, ocispec.MediaTypeImageManifest, m)
	d.Platform = &p
	return d
}

func writeBlobJSON(t testing.TB, dir, mediaType string, value any) ocispec.Descriptor {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return writeBlob(t, dir, mediaType, data)
}

func writeBlob(t testing.TB, dir, mediaType string, data []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	writeFile(t, blobPath(dir, d.Digest), data)
	return d
}

func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

func writeJSON(t testing.TB, path string, value any) {
	t.Helper()
	data, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, path, data)
}

func writeFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// readManifest returns the manifest of the image with a tag in an OCI layout.
func readManifest(t testing.TB, dir, tag string) (m ocispec.Manifest) {
	t.Helper()
	var index ocispec.Index
	readJSON(t, filepath.Join(dir, ocispec.ImageIndexFile), &index)
	for _, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			readJSON(t, blobPath(dir, d.Digest), &m)
			return m
		}
	}
	t.Fatalf("%s has no image %s", dir, tag)
	return m
}

// replaceManifest gives a tag of an OCI layout another manifest.
func replaceManifest(t testing.TB, dir, tag string, m ocispec.Manifest) {
	t.Helper()
	var index ocispec.Index
	file := filepath.Join(dir, ocispec.ImageIndexFile)
	readJSON(t, file, &index)
	for i, d := range index.Manifests {
		if d.Annotations[ocispec.AnnotationRefName] == tag {
			index.Manifests[i] = writeBlobJSON(t, dir, d.MediaType, m)
			index.Manifests[i].Annotations = d.Annotations
		}
	}
	writeJSON(t, file, index)
}

func readJSON(t testing.TB, path string, into any) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, into); err != nil {
		t.Fatal(err)
	}
}

// layerDigests returns those of an image in an OCI layout, whose files have to be there.
func layerDigests(t testing.TB, dir, tag string) (digests []digest.Digest) {
	t.Helper()
	for _, l := range readManifest(t, dir, tag).Layers {
		data, err := os.ReadFile(blobPath(dir, l.Digest))
		if err != nil {
			t.Fatal(err)
		}
		digests = append(digests, digest.FromBytes(data))
	}
	return digests
}

// plainText returns the files below a folder that hold the marker.
func plainText(t testing.TB, dir string) (found []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type().IsRegular() { // else it has gone meanwhile
			if data, err := os.ReadFile(path); err == nil && bytes.Contains(data, []byte(marker)) {
				found = append(found, path)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// tree lists all that is below a folder.
func tree(t testing.TB, dir string) string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		all = append(all, path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(all, "\n")
}
