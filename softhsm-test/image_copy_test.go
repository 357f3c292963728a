package softhsmtest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestImageCopy has images encrypted by hsm-image and as skopeo does it, through the key provider and with a public key
// or a certificate alone, and opened by either with the key on the token. What comes out is what went in.
func TestImageCopy(t *testing.T) {
	u := newImageUser(t, NewToken(t, "node"), "EC-256", "EC-384", "EC-521", "RSA-3072")
	t.Setenv("OCICRYPT_OAEP_HASHALG", "sha1") // for pkcs11:, which asks for SHA-256 else
	ec, ec384, ec521, rsa := u.keys["EC-256"], u.keys["EC-384"], u.keys["EC-521"], u.keys["RSA-3072"]
	u.roundTrips(t, []roundTrip{
		{"our own, to a key", "hsm-image", []string{ec.uri}, []imageKey{ec}, true},
		{"our own, to all", "hsm-image", []string{"pubkey:" + ec384.public, "pubkey:" + ec521.public,
			"cert:" + ec.certificate, rsa.uri + "?oaep=sha1"}, []imageKey{ec, ec384, ec521, rsa}, true},
		{"key provider, to a key", "skopeo", []string{"provider:hsm:" + ec.uri}, []imageKey{ec}, true},
		{"key provider, OAEP with SHA-1", "skopeo", []string{"provider:hsm:pubkey:" + rsa.public + "?oaep=sha1"},
			[]imageKey{rsa}, true},
		{"key provider, to two", "skopeo", []string{"provider:hsm:pubkey:" + ec384.public,
			"provider:hsm:cert:" + rsa.certificate + "?oaep=sha1"}, []imageKey{ec384, rsa}, true},
		{"jwe, EC", "skopeo", []string{"jwe:" + ec.public}, []imageKey{ec}, false},
		{"jwe, RSA", "skopeo", []string{"jwe:" + rsa.public}, []imageKey{rsa}, false},
		{"jwe, both", "skopeo", []string{"jwe:" + rsa.public, "jwe:" + ec521.public}, []imageKey{rsa, ec521}, false},
		{"pkcs7", "skopeo", []string{"pkcs7:" + rsa.certificate}, []imageKey{rsa}, false},
		{"pkcs11", "skopeo", []string{"pkcs11:" + rsa.public}, []imageKey{rsa}, false},
	})
}

// TestImageCopyOpenCryptoki does the same with a module that knows OAEP with SHA-256.
func TestImageCopyOpenCryptoki(t *testing.T) {
	u := newImageUser(t, OpenCryptoki(t), "RSA-2048") // its token makes no EC keys
	rsa := u.keys["RSA-2048"]
	u.roundTrips(t, []roundTrip{
		{"our own", "hsm-image", []string{"pubkey:" + rsa.public}, []imageKey{rsa}, true},
		{"key provider, OAEP with SHA-256", "skopeo", []string{"provider:hsm:pubkey:" + rsa.public}, []imageKey{rsa}, true},
		{"jwe", "skopeo", []string{"jwe:" + rsa.public}, []imageKey{rsa}, false},
		{"pkcs7", "skopeo", []string{"pkcs7:" + rsa.certificate}, []imageKey{rsa}, false},
	})
}

// TestImageRegistry encrypts and decrypts from one registry's repository to another, one platform of an index too.
func TestImageRegistry(t *testing.T) {
	u := newImageUser(t, NewToken(t, "node"), "EC-256")
	key, registry := u.keys["EC-256"], "docker://"+StartRegistry(t)
	t.Chdir(t.TempDir())
	writeImage(t, "source", "index", 1000, "linux/amd64", "linux/arm64")
	Run(t, u.skopeo, "oci:source:index", registry+"/source:1")
	tls := []string{"--src-tls-verify=false", "--dest-tls-verify=false"}
	layers := func(image string) string { return Run(t, u.hsmImage, "layers", image, "--tls-verify=false") }
	for platform, args := range map[string][]string{"": tls, "linux/arm64": append(tls, "--platform", "linux/arm64")} {
		name := strings.TrimSpace(Run(t, u.hsmImage,
			append([]string{"encrypt", registry + "/source:1", registry + "/app:1", "--recipient", "pubkey:" + key.public},
				args...)...))
		if !regexp.MustCompile(`^127\.0\.0\.1:\d+/app@sha256:[0-9a-f]{64}$`).MatchString(name) {
			t.Errorf("it printed %q", name)
		}
		if got := layers("docker://" + name); got != layers(registry+"/app:1") ||
			strings.Contains(got, "linux/amd64") == (platform != "") || !strings.Contains(got, "linux/arm64") {
			t.Errorf("%q: the layers are\n%s", platform, got)
		}
		Run(t, u.hsmImage, append([]string{"decrypt", "docker://" + name, registry + "/plain:1", "--key", key.uri},
			args...)...)
		if got, want := u.digests(t, registry+"/plain:1", "linux/arm64"),
			u.digests(t, registry+"/source:1", "linux/arm64"); !slices.Equal(got, want) {
			t.Errorf("the layers are %s, not %s", got, want)
		}
	}

	// Somebody who can write to the registry changes a layer: the copy gets no tag.
	writeImage(t, "source", "app", 1000, "linux/amd64")
	Run(t, u.hsmImage, "encrypt", "oci:source:app", "oci:changed:app", "--recipient", "pubkey:"+key.public)
	m := readManifest(t, "changed", "app")
	data, err := os.ReadFile(blobPath("changed", m.Layers[0].Digest))
	if err != nil {
		t.Fatal(err)
	}
	data[100] ^= 1
	layer := writeBlob(t, "changed", m.Layers[0].MediaType, data)
	m.Layers[0].Digest = layer.Digest
	replaceManifest(t, "changed", "app", m)
	Run(t, u.skopeo, "oci:changed:app", registry+"/changed:1")
	_, stderr, err := u.try(t, append([]string{"decrypt", registry + "/changed:1", registry + "/plain:changed", "--key",
		key.uri}, tls...)...)
	if err == nil || !strings.Contains(stderr,
		"does not match its HMAC\nhint: get the image again from where it was published; its tag was not written, but the "+
			"registry may have") {
		t.Errorf("a changed layer: %v\n%s", err, stderr)
	}
	if _, stderr, err := u.try(t, "layers", registry+"/plain:changed", "--tls-verify=false"); err == nil ||
		!strings.Contains(stderr, "manifest unknown") {
		t.Errorf("it was tagged: %v\n%s", err, stderr)
	}
}

// TestImageCalls counts logins: one for all layers of an index, and none for encrypting.
func TestImageCalls(t *testing.T) {
	token := NewToken(t, "node")
	u := newImageUser(t, token, "EC-256", "RSA-3072")
	key, other := u.keys["EC-256"], u.keys["RSA-3072"]
	t.Chdir(t.TempDir())
	writeImage(t, "source", "app", 1000, "linux/amd64", "linux/arm64")
	t.Setenv("NOTATION_HSM_MODULE_PATH", Spy(t))
	t.Setenv("PKCS11SPY", token.Module)
	for i, c := range []struct {
		args          []string
		logins, opens int
	}{
		{[]string{"encrypt", "oci:source:app", "oci:a:app", "--recipient", "pubkey:" + key.public}, 0, 0},
		{[]string{"encrypt", "oci:source:app", "oci:app:app", "--recipient", key.uri}, 0, 0},
		{[]string{"recipients", "add", "oci:app:app", "--recipient", other.uri + "?oaep=sha1", "--key", key.uri}, 1, 4},
		{[]string{"recipients", "remove", "oci:app:app", "--recipient", key.uri}, 0, 0},
		{[]string{"decrypt", "oci:app:app", "oci:plain:app", "--key", other.uri}, 1, 4},
		{[]string{"decrypt", "oci:app:app", "oci:plain:arm64", "--key", other.uri, "--platform", "linux/arm64"}, 1, 2},
	} {
		log := filepath.Join(t.TempDir(), "calls")
		t.Setenv("PKCS11SPY_OUTPUT", log)
		Run(t, u.hsmImage, c.args...)
		calls := Calls(t, log)
		opens := Count(calls, "C_Decrypt") + Count(calls, "C_DeriveKey")
		if logins := Count(calls, "C_Login"); logins != c.logins || opens != c.opens || i == 0 && len(calls) > 0 {
			t.Errorf("hsm-image %s: %d logins and %d private operations, not %d and %d: %s", c.args, logins, opens, c.logins,
				c.opens, calls)
		}
	}
}
