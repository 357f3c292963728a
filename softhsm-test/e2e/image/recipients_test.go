package image

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestImageRecipients adds and removes recipients of an index in a registry and in a layout, counts what goes over the
// wire, and has each recipient open what they should, and nothing else.
func TestImageRecipients(t *testing.T) {
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256", "EC-384", "RSA-3072")
	a, b, c := u.Keys["EC-256"], u.Keys["EC-384"], u.Keys["RSA-3072"]
	t.Chdir(t.TempDir())
	temporary := softhsmtest.Getenv(t, "TMPDIR")
	registry, transferred := oci.CountingProxy(t, oci.StartRegistry(t))
	const size = 8 << 20 // bytes, of each of four layers
	oci.WriteImage(t, "source", "app", size, "linux/amd64", "linux/arm64")
	plain := map[string][]string{}
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		plain[platform] = u.Digests(t, "oci:source:app", platform)
	}
	for _, place := range []struct {
		image string
		flags []string
	}{
		{"docker://" + registry + "/app:1", []string{"--tls-verify=false"}},
		{"oci:layout:app", nil},
	} {
		remote := len(place.flags) > 0
		source := place.flags
		if remote {
			source = []string{"--src-tls-verify=false"}
			softhsmtest.Run(t, u.HSMImage, "encrypt", "oci:source:app", place.image, "--dest-tls-verify=false", "--recipient",
				"pubkey:"+a.Public, "--recipient", "pubkey:"+b.Public)
		} else {
			softhsmtest.Run(t, u.HSMImage, "encrypt", "oci:source:app", place.image, "--recipient", "pubkey:"+a.Public,
				"--recipient", "pubkey:"+b.Public)
		}
		recipients := func(want string, args ...string) string {
			t.Helper()
			transferred.Store(0)
			args = append([]string{"recipients", args[0], place.image}, append(args[1:], place.flags...)...)
			softhsmtest.Setenv(t, "TMPDIR", "/nonexistent") // as nothing is written there
			stdout, stderr, err := u.Try(t, args...)
			softhsmtest.Setenv(t, "TMPDIR", temporary)
			if failed := strings.HasPrefix(want, "error:"); failed != (err != nil) ||
				!regexp.MustCompile(want).MatchString(stderr) {
				t.Fatalf("hsm-image %v: %v\n%s, not %s", args, err, stderr, want)
			}
			if n := transferred.Load(); n > 100_000 {
				t.Errorf("hsm-image %v moved %d bytes", args, n)
			}
			return strings.TrimSpace(stdout)
		}
		// opens has one key open the image, and compares what comes out.
		opens := func(image string, k oci.Key, want bool) {
			t.Helper()
			out := filepath.Join(t.TempDir(), "plain")
			_, stderr, err := u.Try(t, append([]string{"decrypt", image, "oci:" + out + ":app", "--key", k.URI},
				source...)...)
			if opened := err == nil; opened != want || !want && !strings.Contains(stderr, "no key here opens the layer") {
				t.Fatalf("%s opens %s: %v\n%s", k.URI, image, opened, stderr)
			}
			if !want {
				return
			}
			for platform, digests := range plain {
				if got := u.Digests(t, "oci:"+out+":app", platform); !slices.Equal(got, digests) {
					t.Errorf("%s: the layers are %s, not %s", platform, got, digests)
				}
			}
		}
		opens(place.image, c, false)

		recipients("error: .*no key here opens the layer", "add", "--recipient", "pubkey:"+c.Public+"?oaep=sha1", "--key",
			c.URI)
		name := recipients("changed .*; layers with other recipients: 4", "add", "--recipient",
			"pubkey:"+c.Public+"?oaep=sha1", "--key", a.URI)
		for _, k := range []oci.Key{a, b, c} {
			opens(place.image, k, true)
		}
		if remote { // the new name is that of the new index, and an image that is named so gets another one
			opens("docker://"+name, c, true)
			before := softhsmtest.Run(t, u.HSMImage, "layers", "--json", "--tls-verify=false", place.image)
			other := strings.TrimSpace(softhsmtest.Run(t, u.HSMImage, "recipients", "remove", "--tls-verify=false",
				"docker://"+name, "--recipient", "pubkey:"+b.Public))
			opens("docker://"+other, b, false)
			opens("docker://"+other, a, true)
			if after := softhsmtest.Run(t, u.HSMImage, "layers", "--json", "--tls-verify=false",
				place.image); other == name ||
				after != before {
				t.Errorf("%s became %s, and the tag changed as well: %t", name, other, after != before)
			}
		}
		recipients("was not changed", "add", "--recipient", "pubkey:"+b.Public,
			"--recipient", "pubkey:"+c.Public+"?oaep=sha1")

		recipients("changed .*; layers with other recipients: 4", "remove", "--recipient", "pubkey:"+a.Public)
		recipients("error: pubkey:.* is no recipient of", "remove", "--recipient", "pubkey:"+a.Public)
		opens(place.image, a, false)
		opens(place.image, b, true)
		opens(place.image, c, true)
		list := recipients("", "list", "--recipient", "pubkey:"+b.Public)
		kid := regexp.MustCompile(`(?m)^(\S{43}) +provider\.hsm +RSA-OAEP +4 of 4$`).FindStringSubmatch(list)
		if kid == nil || !regexp.MustCompile(`(?m)^pubkey:\S+ +provider\.hsm +ECDH-ES\+A256KW +4 of 4$`).MatchString(list) {
			t.Fatalf("recipients list printed\n%s", list)
		}
		recipients("changed .*; layers with other recipients: 4", "remove", "--recipient", kid[1])
		recipients("error: .*it would have no recipient left", "remove", "--recipient", b.URI)
		opens(place.image, b, true)
		opens(place.image, c, false)
	}
}

// TestImageRecipientsAlgorithm mends what was encrypted to an RSA key with a hash that its token does not know.
func TestImageRecipientsAlgorithm(t *testing.T) {
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256", "RSA-2048")
	ec, rsa := u.Keys["EC-256"], u.Keys["RSA-2048"]
	t.Chdir(t.TempDir())
	oci.WriteImage(t, "source", "app", 1000, "linux/amd64")
	softhsmtest.Run(t, u.HSMImage, "encrypt", "oci:source:app", "oci:app:app", "--recipient", "pubkey:"+ec.Public,
		"--recipient", "pubkey:"+rsa.Public)
	if _, stderr, err := u.Try(t, "decrypt", "oci:app:app", "oci:plain:app", "--key", rsa.URI); err == nil ||
		!strings.Contains(stderr, "oaep=sha1") {
		t.Fatalf("%v\n%s", err, stderr)
	}
	softhsmtest.Run(t, u.HSMImage, "recipients", "add", "oci:app:app", "--recipient", "pubkey:"+rsa.Public+"?oaep=sha1",
		"--key", ec.URI)
	softhsmtest.Run(t, u.HSMImage, "decrypt", "oci:app:app", "oci:plain:app", "--key", rsa.URI)
	for _, more := range []string{"", "?oaep=sha1"} { // and once more adds nothing
		if _, stderr, err := u.Try(t, "recipients", "add", "oci:app:app", "--recipient", "pubkey:"+rsa.Public+more, "--key",
			ec.URI); err != nil || !strings.Contains(stderr, "was not changed") {
			t.Errorf("%v\n%s", err, stderr)
		}
	}
	softhsmtest.Run(t, u.HSMImage, "recipients", "remove", "oci:app:app", "--recipient", "pubkey:"+rsa.Public)
	if list := softhsmtest.Run(t, u.HSMImage, "recipients", "list", "oci:app:app"); strings.Contains(list, "RSA") {
		t.Errorf("the key is still in\n%s", list)
	}
}

// TestImageRecipientsForeign adds ours to what ocicrypt wrapped, which stays, and can be the only one left.
func TestImageRecipientsForeign(t *testing.T) {
	u := oci.NewUser(t, softhsmtest.NewToken(t, "node"), "EC-256", "EC-384")
	a, b := u.Keys["EC-256"], u.Keys["EC-384"]
	t.Chdir(t.TempDir())
	oci.WriteImage(t, "source", "app", 1000, "linux/amd64")
	softhsmtest.Run(t, u.Skopeo, "--encryption-key", "jwe:"+a.Public, "oci:source:app", "oci:app:app")
	softhsmtest.Run(t, u.HSMImage, "recipients", "add", "oci:app:app", "--recipient", "pubkey:"+b.Public, "--key", a.URI)
	list := softhsmtest.Run(t, u.HSMImage, "recipients", "list", "oci:app:app")
	if strings.Count(list, " 2 of 2") != 2 || !strings.Contains(list, " jwe ") {
		t.Errorf("recipients list printed\n%s", list)
	}
	for i, k := range []oci.Key{a, b} {
		softhsmtest.Run(t, u.HSMImage, "decrypt", "oci:app:app", "oci:plain:app"+strings.Repeat("x", i), "--key", k.URI)
	}
	softhsmtest.Run(t, u.Skopeo, "--decryption-key", "provider:hsm:"+b.URI, "oci:app:app", "oci:plain:skopeo")
	softhsmtest.Run(t, u.HSMImage, "recipients", "remove", "oci:app:app", "--recipient", "pubkey:"+b.Public)
	softhsmtest.Run(t, u.HSMImage, "decrypt", "oci:app:app", "oci:plain:foreign", "--key", a.URI)
}
