package image

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// diffIDs are the digests of layers, as the configuration of an image has them: what decrypts to them is the layer.
func diffIDs(t testing.TB, names ...string) (ids []digest.Digest) {
	t.Helper()
	for _, name := range names {
		ids = append(ids, digest.FromString(tarOf(t, name)))
	}
	return ids
}

// TestRoundTrip encrypts an image, and decrypts it to each kind of place: its layers are what they were.
func TestRoundTrip(t *testing.T) {
	m, dir := newModule(t), t.TempDir()
	_, encrypted := encryptedFolder(t, m, "one", "two")
	server := newRegistry(t)
	for _, to := range []string{"oci:" + dir + "/layout:app", "dir:" + dir + "/dir", "oci-archive:" + dir + "/oci.tar:app",
		"docker-archive:" + dir + "/docker.tar:app:1", "docker://" + server.host + "/app:plain"} {
		t.Run(to[:strings.Index(to, ":")], func(t *testing.T) {
			c := Copy{From: encrypted, To: mustParse(t, to), ToRegistry: plainHTTP}
			made, err := Decrypt(t.Context(), m.Keystore(), c, []string{imagesKey})
			if err != nil {
				t.Fatal(err)
			}
			images, err := Layers(t.Context(), c.To, plainHTTP)
			if err != nil {
				t.Fatal(err)
			}
			if images[0].encrypted() || len(images[0].Layers) != 2 {
				t.Errorf("the layers are %v", images[0].Layers)
			}
			for i, l := range images[0].Layers {
				got := l.Digest // docker-archive has plain layers
				if c.To.transport() == "oci" {
					got = digest.FromString(gunzip(t, filepath.Join(dir, "layout", "blobs", "sha256", l.Digest.Encoded())))
				} else if c.To.transport() != "docker-archive" {
					continue
				}
				if got != diffIDs(t, "one", "two")[i] {
					t.Errorf("%s has another content", l)
				}
			}
			if c.To.transport() == "docker" != (made.Name == server.host+"/app@"+made.Digest.String()) {
				t.Errorf("the copy is %+v", made)
			}
		})
	}
	if m.OpenStores() != 0 || m.Calls("ECDH") != 10 || m.Calls("Login") != 5 {
		t.Errorf("five times two layers: %d keys unwrapped, %d logins, %d stores open", m.Calls("ECDH"), m.Calls("Login"),
			m.OpenStores())
	}
	for _, path := range filesIn(t, dir) {
		if strings.Contains(path, ".hsm-image-") {
			t.Errorf("%s was left", path)
		}
	}
}

func gunzip(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// TestIndex copies the images of an index that are asked for, without BuildKit's attestations.
func TestIndex(t *testing.T) {
	m, source := newModule(t), newOCIFolder(t)
	attestation := source.plainImage("unknown/unknown", "attestation")
	from := source.finish(source.index(source.plainImage("linux/amd64", "one"), source.plainImage("linux/arm64", "two"),
		attestation), 0)
	to := mustParse(t, "oci:"+t.TempDir()+"/all:app")
	made, err := Encrypt(t.Context(), m.Keystore(), Copy{From: from, To: to}, []string{imagesKey}, []int{-1})
	if err != nil || made.Skipped != 1 || len(made.Warnings) != 0 {
		t.Fatalf("%+v, %v", made, err)
	}
	images, err := Layers(t.Context(), to, Registry{})
	if err != nil || len(images) != 2 || !images[0].encrypted() || !images[1].encrypted() {
		t.Fatalf("%+v, %v", images, err)
	}
	arm := Platform{OS: "linux", Architecture: "arm64"}
	plain := mustParse(t, "docker-archive:"+t.TempDir()+"/arm.tar:app:1")
	c := Copy{From: to, To: plain, Platforms: []Platform{arm, arm}}
	if _, err := Decrypt(t.Context(), m.Keystore(), c, nil); err != nil {
		t.Fatal(err)
	}
	images, err = Layers(t.Context(), plain, Registry{})
	if err != nil || images[0].Platform != arm || images[0].Layers[0].Digest != diffIDs(t, "two")[0] {
		t.Errorf("%+v, %v", images, err)
	}
	c = Copy{From: to, To: mustParse(t, "docker-archive:"+t.TempDir()+"/both.tar:app:1")}
	_, err = Decrypt(t.Context(), m.Keystore(), c, nil)
	mustFailWith(t, err, failure.Invalid, "holds one image, and "+to.String()+" lists 2")
	c.Platforms = []Platform{{OS: "linux", Architecture: "s390x"}}
	_, err = Decrypt(t.Context(), m.Keystore(), c, nil)
	mustFailWith(t, err, failure.NotFound, "has no image for linux/s390x")
	if hint := failure.From(err).Hint; hint != "use one of its platforms: linux/amd64, linux/arm64" {
		t.Error(hint)
	}
}

// TestRefusedCopies writes nothing when a copy is refused.
func TestRefusedCopies(t *testing.T) {
	m, dir := newModule(t), t.TempDir()
	_, encrypted := encryptedFolder(t, m, "one")
	source := newOCIFolder(t)
	plain := source.finish(source.plainImage("linux/amd64", "one", "two"), 0)
	precious := filepath.Join(dir, "precious")
	if err := os.WriteFile(precious, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		from       Reference
		to         string
		recipients []string // nil decrypts
		layers     []int
		kind       failure.Kind
		words      string
	}{
		"no recipient":      {plain, "oci:DIR/x", []string{}, nil, failure.Invalid, "no recipient"},
		"a recipient twice": {plain, "oci:DIR/x", []string{imagesKey, imagesKey}, nil, failure.Invalid, "are the same key"},
		"no such layer":     {plain, "oci:DIR/x", []string{imagesKey}, []int{2}, failure.Invalid, "none with the index 2"},
		"encrypted already": {encrypted, "oci:DIR/x", []string{imagesKey}, nil, failure.Conflict, "is encrypted already"},
		"no wrapped keys": {plain, "docker-archive:DIR/x", []string{imagesKey}, nil, failure.Invalid,
			"no place for wrapped keys"},
		"no encrypted layer": {plain, "oci:DIR/x", nil, nil, failure.Invalid, "has no encrypted layer"},
		"no such image":      {mustParse(t, "oci:"+dir+"/none"), "oci:DIR/x", nil, nil, failure.NotFound, "cannot read"},
		"no archive to add to": {encrypted, "oci-archive:DIR/precious", nil, nil, failure.Conflict,
			"nothing can be added to an archive"},
		"a file for a folder": {encrypted, "oci:DIR/precious", nil, nil, failure.Conflict, "it is not a folder"},
		"a folder for a file": {encrypted, "oci-archive:DIR", nil, nil, failure.Conflict, "it is not a file"},
		"a folder of another kind": {encrypted, "dir:DIR", nil, nil, failure.Conflict,
			"the folder holds something else than an image"},
		"a digest": {encrypted, "docker://127.0.0.1:1/x@" + string(digest.FromString("x")), nil, nil, failure.Invalid,
			"the digest follows from the content"},
	} {
		t.Run(name, func(t *testing.T) {
			copying := Copy{From: c.from, To: mustParse(t, strings.Replace(c.to, "DIR", dir, 1))}
			var err error
			if c.recipients != nil {
				_, err = Encrypt(t.Context(), m.Keystore(), copying, c.recipients, c.layers)
			} else {
				_, err = Decrypt(t.Context(), m.Keystore(), copying, nil)
			}
			mustFailWith(t, err, c.kind, c.words)
			if files := filesIn(t, dir); !slices.Equal(files, []string{"precious"}) {
				t.Errorf("it has left %v", files)
			}
		})
	}
	if data, err := os.ReadFile(precious); err != nil || string(data) != "precious" {
		t.Errorf("the file became %q, %v", data, err)
	}
}

// TestKeysBeforeCopy reads no layer and writes nothing before all keys are unwrapped.
func TestKeysBeforeCopy(t *testing.T) {
	m, dir := newModule(t), t.TempDir()
	folder, encrypted := encryptedFolder(t, m, "one", "two")
	var manifest ocispec.Manifest
	folder.readManifest(encrypted, &manifest)
	for _, l := range manifest.Layers { // whoever reads a layer fails with another error
		if err := os.Remove(folder.file(l.Digest)); err != nil {
			t.Fatal(err)
		}
	}
	c := Copy{From: encrypted, To: mustParse(t, "oci:"+dir+"/x")}
	_, err := Decrypt(t.Context(), m.Keystore(), c, []string{otherKey})
	mustFailWith(t, err, failure.Invalid, "layer 0 ("+manifest.Layers[0].Digest.String()+")")
	t.Setenv("NOTATION_HSM_PIN", "0000")
	if _, err = Decrypt(t.Context(), m.Keystore(), c, nil); failure.From(err).CKR != "CKR_PIN_INCORRECT" {
		t.Errorf("with a wrong PIN: %v", err)
	}
	if files := filesIn(t, dir); len(files) != 0 {
		t.Errorf("it has left %v", files)
	}
}

// tamper changes the last byte of a layer, and the digests that lead to it.
func (f *ociFolder) tamper(ref Reference, layer int) Reference {
	f.t.Helper()
	var m ocispec.Manifest
	f.readManifest(ref, &m)
	l := &m.Layers[layer]
	changed := []byte(f.read(l.Digest))
	changed[len(changed)-1] ^= 1
	l.Digest = f.add(l.MediaType, string(changed)).Digest
	return f.finish(f.addJSON(ocispec.MediaTypeImageManifest, m), 0)
}

// TestTamperedLayer says which layer was changed, and leaves nothing of the copy on this machine, and no tag in a
// registry.
func TestTamperedLayer(t *testing.T) {
	m, dir, server := newModule(t), t.TempDir(), newRegistry(t)
	folder, encrypted := encryptedFolder(t, m, "one", "two")
	tampered := folder.tamper(encrypted, 1)
	for _, to := range []Reference{mustParse(t, "oci:"+dir+"/x"), server.image(t, "plain")} {
		_, err := Decrypt(t.Context(), m.Keystore(), Copy{From: tampered, To: to, ToRegistry: plainHTTP}, nil)
		mustFailWith(t, err, failure.Denied, "was changed or truncated: it does not match its HMAC")
		if !strings.HasPrefix(err.Error(), "layer 1 ") {
			t.Error(err)
		}
	}
	var manifest ocispec.Manifest
	folder.readManifest(tampered, &manifest)
	if err := os.WriteFile(folder.file(manifest.Layers[0].Digest), []byte("other"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Decrypt(t.Context(), m.Keystore(), Copy{From: tampered, To: mustParse(t, "oci:"+dir+"/x")}, nil)
	mustFailWith(t, err, failure.Denied, "it does not match its digest")
	if files := filesIn(t, dir); len(files) != 0 || len(server.puts) != 0 {
		t.Errorf("it has left %v and %v", files, server.puts)
	}
}

// TestPublicNonce refuses a nonce in the public options, with which the layer would decrypt to noise.
func TestPublicNonce(t *testing.T) {
	t.Parallel()
	const private = `{"symkey":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",` +
		`"cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}`
	hmac := strings.Repeat("A", 43) + "="
	for public, want := range map[string]string{
		`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + hmac + `","cipheroptions":{}}`: "",
		`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + hmac + `","cipheroptions":{"nonce":"AA=="}}`: "it has a nonce of " +
			"its own",
		`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"AAAA","cipheroptions":{}}`: "the HMAC has 3 bytes instead of 32",
		`{"cipher":"ROT13","hmac":"` + hmac + `"}`:                              `the cipher "ROT13" is unknown`,
	} {
		err := checkOptions(map[string]string{pubopts: base64Of(public)}, []byte(private))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", public, err)
		}
	}
	public := map[string]string{pubopts: base64Of(
		`{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":"` + hmac + `","cipheroptions":{}}`)}
	for _, wrong := range []string{"{}", `{"symkey":"AAAA","cipheroptions":{"nonce":"AAAAAAAAAAAAAAAAAAAAAA=="}}`,
		`{"symkey":"secret`} {
		err := checkOptions(public, []byte(wrong))
		mustFailWith(t, err, failure.Invalid, "is not one of ocicrypt's")
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("the error shows the key: %v", err)
		}
	}
}

// TestCopyInterrupted leaves nothing behind when the user interrupts.
func TestCopyInterrupted(t *testing.T) {
	m, dir, server := newModule(t), t.TempDir(), newRegistry(t)
	_, encrypted := encryptedFolder(t, m, "one")
	pushed := server.image(t, "app")
	c := Copy{From: encrypted, To: pushed, ToRegistry: plainHTTP}
	if _, err := Decrypt(t.Context(), m.Keystore(), c, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	server.onPut = func(string) int { cancel(); return http.StatusServiceUnavailable }
	if _, err := Decrypt(ctx, m.Keystore(), Copy{From: encrypted, To: server.image(t, "other"), ToRegistry: plainHTTP},
		nil); err == nil || !strings.Contains(err.Error(), "interrupted: decrypting") {
		t.Errorf("interrupted, it fails with %v", err)
	}
	if _, err := Decrypt(ctx, m.Keystore(), Copy{From: encrypted, To: mustParse(t, "oci:"+dir+"/x")}, nil); err == nil {
		t.Error("it was not interrupted")
	}
	if files := filesIn(t, dir); len(files) != 0 {
		t.Errorf("it has left %v", files)
	}
}

// TestCopyExplained says what to do when the destination's registry refuses.
func TestCopyExplained(t *testing.T) {
	m, server := newModule(t), newRegistry(t)
	_, encrypted := encryptedFolder(t, m, "one")
	server.onPut = func(string) int { return http.StatusUnauthorized }
	c := Copy{From: encrypted, To: server.image(t, "app"), ToRegistry: plainHTTP}
	_, err := Decrypt(t.Context(), m.Keystore(), c, nil)
	if failure.From(err).Hint == "" || !strings.Contains(err.Error(), "decrypting "+encrypted.String()+" failed") {
		t.Errorf("%v", err)
	}
	c.ToRegistry = Registry{}
	if _, err := Decrypt(t.Context(), m.Keystore(), c, nil); err == nil ||
		!strings.Contains(failure.From(err).Hint, "--dest-tls-verify") {
		t.Errorf("without HTTPS: %v, %s", err, failure.From(err).Hint)
	}
}

// TestLeavesPlain notices that the copy is in the folder of the plain image.
func TestLeavesPlain(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for to, want := range map[string]bool{
		"oci:" + dir + ":x": true, "oci:" + dir + "/./:y": true, "oci:" + dir + "/z": false, "dir:" + dir: false,
	} {
		if got := (Copy{From: mustParse(t, "oci:"+dir+":a"), To: mustParse(t, to)}).LeavesPlain(); got != want {
			t.Errorf("%s: %v", to, got)
		}
	}
	if (Copy{From: mustParse(t, "oci:"+dir+"/none"), To: mustParse(t, "oci:"+dir)}).LeavesPlain() {
		t.Error("a folder that does not exist is the same")
	}
}

// BenchmarkDecrypt decrypts an image with one layer of 10 MiB, with a key in memory.
func BenchmarkDecrypt(b *testing.B) {
	m := newModule(b)
	_, encrypted := encryptedFolder(b, m, strings.Repeat("x", 10<<10))
	dir := b.TempDir()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		c := Copy{From: encrypted, To: mustParse(b, fmt.Sprintf("oci:%s/%d", dir, i))}
		if _, err := Decrypt(b.Context(), m.Keystore(), c, nil); err != nil {
			b.Fatal(err)
		}
	}
}
