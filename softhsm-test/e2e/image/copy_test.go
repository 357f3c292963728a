// Package image tests, end to end, encrypted images: how hsm-image and skopeo copy them, and how containerd opens them.
package image

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestImageCopy has images encrypted by hsm-image and as skopeo does it, through the key provider and with a public key
// or a certificate alone, and opened by either with the key on the token. What comes out is what went in.
func TestImageCopy(t *testing.T) {
	softhsmtest.Parallel(t)
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256", "EC-384", "EC-521", "RSA-3072")
	softhsmtest.Setenv(t, "OCICRYPT_OAEP_HASHALG", "sha1") // for pkcs11:, which asks for SHA-256 else
	ec, ec384, ec521, rsa := u.Keys["EC-256"], u.Keys["EC-384"], u.Keys["EC-521"], u.Keys["RSA-3072"]
	u.RoundTrips(t, []oci.RoundTrip{
		{Name: "our own, to a key", Program: "hsm-image", Recipients: []string{ec.URI}, Keys: []oci.Key{ec},
			Provider: true},
		{Name: "our own, to all", Program: "hsm-image", Recipients: []string{"pubkey:" + ec384.Public, "pubkey:" +
			ec521.Public,
			"cert:" + ec.Certificate, rsa.URI + "?oaep=sha1"}, Keys: []oci.Key{ec, ec384, ec521, rsa}, Provider: true},
		{Name: "key provider, to a key", Program: "skopeo", Recipients: []string{"provider:hsm:" + ec.URI},
			Keys: []oci.Key{ec}, Provider: true},
		{Name: "key provider, OAEP with SHA-1", Program: "skopeo", Recipients: []string{"provider:hsm:pubkey:" +
			rsa.Public + "?oaep=sha1"},
			Keys: []oci.Key{rsa}, Provider: true},
		{Name: "key provider, to two", Program: "skopeo", Recipients: []string{"provider:hsm:pubkey:" + ec384.Public,
			"provider:hsm:cert:" + rsa.Certificate + "?oaep=sha1"}, Keys: []oci.Key{ec384, rsa}, Provider: true},
		{Name: "jwe, EC", Program: "skopeo", Recipients: []string{"jwe:" + ec.Public}, Keys: []oci.Key{ec},
			Provider: false},
		{Name: "jwe, RSA", Program: "skopeo", Recipients: []string{"jwe:" + rsa.Public}, Keys: []oci.Key{rsa},
			Provider: false},
		{Name: "jwe, both", Program: "skopeo", Recipients: []string{"jwe:" + rsa.Public, "jwe:" + ec521.Public},
			Keys: []oci.Key{rsa, ec521}, Provider: false},
		{Name: "pkcs7", Program: "skopeo", Recipients: []string{"pkcs7:" + rsa.Certificate}, Keys: []oci.Key{rsa},
			Provider: false},
		{Name: "pkcs11", Program: "skopeo", Recipients: []string{"pkcs11:" + rsa.Public}, Keys: []oci.Key{rsa},
			Provider: false},
	})
}

// TestImageCopyOpenCryptoki does the same with a module that knows OAEP with SHA-256.
func TestImageCopyOpenCryptoki(t *testing.T) {
	softhsmtest.Parallel(t)
	u := oci.NewUser(t, softhsmtest.OpenCryptoki(t), "RSA-2048") // its token makes no EC keys
	rsa := u.Keys["RSA-2048"]
	u.RoundTrips(t, []oci.RoundTrip{
		{Name: "our own", Program: "hsm-image", Recipients: []string{"pubkey:" + rsa.Public}, Keys: []oci.Key{rsa},
			Provider: true},
		{Name: "key provider, OAEP with SHA-256", Program: "skopeo", Recipients: []string{"provider:hsm:pubkey:" +
			rsa.Public}, Keys: []oci.Key{rsa}, Provider: true},
		{Name: "jwe", Program: "skopeo", Recipients: []string{"jwe:" + rsa.Public}, Keys: []oci.Key{rsa}, Provider: false},
		{Name: "pkcs7", Program: "skopeo", Recipients: []string{"pkcs7:" + rsa.Certificate}, Keys: []oci.Key{rsa},
			Provider: false},
	})
}

// TestImageRegistry encrypts and decrypts from one registry's repository to another, one platform of an index too.
func TestImageRegistry(t *testing.T) {
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256")
	key, registry := u.Keys["EC-256"], "docker://"+oci.StartRegistry(t)
	t.Chdir(t.TempDir())
	oci.WriteImage(t, "source", "index", 1000, "linux/amd64", "linux/arm64")
	softhsmtest.Run(t, u.Skopeo, "oci:source:index", registry+"/source:1")
	tls := []string{"--src-tls-verify=false", "--dest-tls-verify=false"}
	layers := func(image string) string {
		return softhsmtest.Run(t, u.HSMImage, "layers", image, "--tls-verify=false")
	}
	for platform, args := range map[string][]string{"": tls, "linux/arm64": append(tls, "--platform", "linux/arm64")} {
		name := strings.TrimSpace(softhsmtest.Run(t, u.HSMImage,
			append([]string{"encrypt", registry + "/source:1", registry + "/app:1", "--recipient", "pubkey:" + key.Public},
				args...)...))
		if !regexp.MustCompile(`^127\.0\.0\.1:\d+/app@sha256:[0-9a-f]{64}$`).MatchString(name) {
			t.Errorf("it printed %q", name)
		}
		if got := layers("docker://" + name); got != layers(registry+"/app:1") ||
			strings.Contains(got, "linux/amd64") == (platform != "") || !strings.Contains(got, "linux/arm64") {
			t.Errorf("%q: the layers are\n%s", platform, got)
		}
		softhsmtest.Run(t, u.HSMImage, append([]string{"decrypt", "docker://" + name, registry + "/plain:1", "--key",
			key.URI},
			args...)...)
		if got, want := u.Digests(t, registry+"/plain:1", "linux/arm64"),
			u.Digests(t, registry+"/source:1", "linux/arm64"); !slices.Equal(got, want) {
			t.Errorf("the layers are %s, not %s", got, want)
		}
	}

	// Somebody who can write to the registry changes a layer: the copy gets no tag.
	oci.WriteImage(t, "source", "app", 1000, "linux/amd64")
	softhsmtest.Run(t, u.HSMImage, "encrypt", "oci:source:app", "oci:changed:app", "--recipient", "pubkey:"+key.Public)
	m := oci.ReadManifest(t, "changed", "app")
	data, err := os.ReadFile(oci.BlobPath("changed", m.Layers[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	layer := oci.WriteBlob(t, "changed", m.Layers[0].MediaType, data)
	m.Layers[0].Digest = layer.Digest
	oci.ReplaceManifest(t, "changed", "app", m)
	softhsmtest.Run(t, u.Skopeo, "oci:changed:app", registry+"/changed:1")
	_, stderr, err := u.Try(t, append([]string{"decrypt", registry + "/changed:1", registry + "/plain:changed", "--key",
		key.URI}, tls...)...)
	if err == nil || !strings.Contains(stderr,
		"does not match its HMAC\nhint: get the image again from where it was published; its tag was not written, but the "+
			"registry may have") {
		t.Errorf("a changed layer: %v\n%s", err, stderr)
	}
	if _, stderr, err := u.Try(t, "layers", registry+"/plain:changed", "--tls-verify=false"); err == nil ||
		!strings.Contains(stderr, "manifest unknown") {
		t.Errorf("it was tagged: %v\n%s", err, stderr)
	}
}

// TestImageCalls counts logins: one for all layers of an index, and none for encrypting.
func TestImageCalls(t *testing.T) {
	token := softhsmtest.NewToken(t, "node")
	u := oci.NewUser(t, token, "EC-256", "RSA-3072")
	key, other := u.Keys["EC-256"], u.Keys["RSA-3072"]
	t.Chdir(t.TempDir())
	oci.WriteImage(t, "source", "app", 1000, "linux/amd64", "linux/arm64")
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", softhsmtest.Spy(t))
	softhsmtest.Setenv(t, "PKCS11SPY", token.Module)
	for i, c := range []struct {
		args          []string
		logins, opens int
	}{
		{[]string{"encrypt", "oci:source:app", "oci:a:app", "--recipient", "pubkey:" + key.Public}, 0, 0},
		{[]string{"encrypt", "oci:source:app", "oci:app:app", "--recipient", key.URI}, 0, 0},
		{[]string{"recipients", "add", "oci:app:app", "--recipient", other.URI + "?oaep=sha1", "--key", key.URI}, 1, 4},
		{[]string{"recipients", "remove", "oci:app:app", "--recipient", key.URI}, 0, 0},
		{[]string{"decrypt", "oci:app:app", "oci:plain:app", "--key", other.URI}, 1, 4},
		{[]string{"decrypt", "oci:app:app", "oci:plain:arm64", "--key", other.URI, "--platform", "linux/arm64"}, 1, 2},
	} {
		log := filepath.Join(t.TempDir(), "calls")
		softhsmtest.Setenv(t, "PKCS11SPY_OUTPUT", log)
		softhsmtest.Run(t, u.HSMImage, c.args...)
		calls := softhsmtest.Calls(t, log)
		opens := softhsmtest.Count(calls, "C_Decrypt") + softhsmtest.Count(calls, "C_DeriveKey")
		if logins := softhsmtest.Count(calls, "C_Login"); logins != c.logins || opens != c.opens || i == 0 &&
			len(calls) > 0 {
			t.Errorf("hsm-image %s: %d logins and %d private operations, not %d and %d: %s", c.args, logins, opens, c.logins,
				c.opens, calls)
		}
	}
}
