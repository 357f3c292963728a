package softhsmtest

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestImageRecipients adds and removes recipients of an index in a registry and in a layout, counts what goes over the
// wire, and has each recipient open what they should, and nothing else.
func TestImageRecipients(t *testing.T) {
	u := newImageUser(t, NewToken(t, "node"), "EC-256", "EC-384", "RSA-3072")
	a, b, c := u.keys["EC-256"], u.keys["EC-384"], u.keys["RSA-3072"]
	t.Chdir(t.TempDir())
	temporary := os.Getenv("TMPDIR")
	registry, transferred := CountingProxy(t, StartRegistry(t))
	const size = 8 << 20 // bytes, of each of four layers
	writeImage(t, "source", "app", size, "linux/amd64", "linux/arm64")
	plain := map[string][]string{}
	for _, platform := range []string{"linux/amd64", "linux/arm64"} {
		plain[platform] = u.digests(t, "oci:source:app", platform)
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
			Run(t, u.hsmImage, "encrypt", "oci:source:app", place.image, "--dest-tls-verify=false", "--recipient",
				"pubkey:"+a.public, "--recipient", "pubkey:"+b.public)
		} else {
			Run(t, u.hsmImage, "encrypt", "oci:source:app", place.image, "--recipient", "pubkey:"+a.public, "--recipient",
				"pubkey:"+b.public)
		}
		recipients := func(want string, args ...string) string {
			t.Helper()
			transferred.Store(0)
			args = append([]string{"recipients", args[0], place.image}, append(args[1:], place.flags...)...)
			t.Setenv("TMPDIR", "/nonexistent") // as nothing is written there
			stdout, stderr, err := u.try(t, args...)
			t.Setenv("TMPDIR", temporary)
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
		opens := func(image string, k imageKey, want bool) {
			t.Helper()
			out := filepath.Join(t.TempDir(), "plain")
			_, stderr, err := u.try(t, append([]string{"decrypt", image, "oci:" + out + ":app", "--key", k.uri}, source...)...)
			if opened := err == nil; opened != want || !want && !strings.Contains(stderr, "no key here opens the layer") {
				t.Fatalf("%s opens %s: %v\n%s", k.uri, image, opened, stderr)
			}
			if !want {
				return
			}
			for platform, digests := range plain {
				if got := u.digests(t, "oci:"+out+":app", platform); !slices.Equal(got, digests) {
					t.Errorf("%s: the layers are %s, not %s", platform, got, digests)
				}
			}
		}
		opens(place.image, c, false)

		recipients("error: .*no key here opens the layer", "add", "--recipient", "pubkey:"+c.public+"?oaep=sha1", "--key",
			c.uri)
		name := recipients("changed .*; layers with other recipients: 4", "add", "--recipient",
			"pubkey:"+c.public+"?oaep=sha1", "--key", a.uri)
		for _, k := range []imageKey{a, b, c} {
			opens(place.image, k, true)
		}
		if remote { // the new name is that of the new index, and an image that is named so gets another one
			opens("docker://"+name, c, true)
			before := Run(t, u.hsmImage, "layers", "--json", "--tls-verify=false", place.image)
			other := strings.TrimSpace(Run(t, u.hsmImage, "recipients", "remove", "--tls-verify=false", "docker://"+name,
				"--recipient", "pubkey:"+b.public))
			opens("docker://"+other, b, false)
			opens("docker://"+other, a, true)
			if after := Run(t, u.hsmImage, "layers", "--json", "--tls-verify=false", place.image); other == name ||
				after != before {
				t.Errorf("%s became %s, and the tag changed as well: %t", name, other, after != before)
			}
		}
		recipients("is as it was", "add", "--recipient", "pubkey:"+b.public, "--recipient", "pubkey:"+c.public+"?oaep=sha1")

		recipients("changed .*; layers with other recipients: 4", "remove", "--recipient", "pubkey:"+a.public)
		recipients("error: pubkey:.* is no recipient of", "remove", "--recipient", "pubkey:"+a.public)
		opens(place.image, a, false)
		opens(place.image, b, true)
		opens(place.image, c, true)
		list := recipients("", "list", "--recipient", "pubkey:"+b.public)
		kid := regexp.MustCompile(`(?m)^(\S{43}) +provider\.hsm +RSA-OAEP +4 of 4$`).FindStringSubmatch(list)
		if kid == nil || !regexp.MustCompile(`(?m)^pubkey:\S+ +provider\.hsm +ECDH-ES\+A256KW +4 of 4$`).MatchString(list) {
			t.Fatalf("recipients list printed\n%s", list)
		}
		recipients("changed .*; layers with other recipients: 4", "remove", "--recipient", kid[1])
		recipients("error: .*nobody could open it any more", "remove", "--recipient", b.uri)
		opens(place.image, b, true)
		opens(place.image, c, false)
	}
}

// TestImageRecipientsAlgorithm mends what was encrypted to an RSA key with a hash that its token does not know.
func TestImageRecipientsAlgorithm(t *testing.T) {
	u := newImageUser(t, NewToken(t, "node"), "EC-256", "RSA-2048")
	ec, rsa := u.keys["EC-256"], u.keys["RSA-2048"]
	t.Chdir(t.TempDir())
	writeImage(t, "source", "app", 1000, "linux/amd64")
	Run(t, u.hsmImage, "encrypt", "oci:source:app", "oci:app:app", "--recipient", "pubkey:"+ec.public, "--recipient",
		"pubkey:"+rsa.public)
	if _, stderr, err := u.try(t, "decrypt", "oci:app:app", "oci:plain:app", "--key", rsa.uri); err == nil ||
		!strings.Contains(stderr, "oaep=sha1") {
		t.Fatalf("%v\n%s", err, stderr)
	}
	Run(t, u.hsmImage, "recipients", "add", "oci:app:app", "--recipient", "pubkey:"+rsa.public+"?oaep=sha1", "--key",
		ec.uri)
	Run(t, u.hsmImage, "decrypt", "oci:app:app", "oci:plain:app", "--key", rsa.uri)
	for _, more := range []string{"", "?oaep=sha1"} { // and once more adds nothing
		if _, stderr, err := u.try(t, "recipients", "add", "oci:app:app", "--recipient", "pubkey:"+rsa.public+more, "--key",
			ec.uri); err != nil || !strings.Contains(stderr, "is as it was") {
			t.Errorf("%v\n%s", err, stderr)
		}
	}
	Run(t, u.hsmImage, "recipients", "remove", "oci:app:app", "--recipient", "pubkey:"+rsa.public)
	if list := Run(t, u.hsmImage, "recipients", "list", "oci:app:app"); strings.Contains(list, "RSA") {
		t.Errorf("the key is still in\n%s", list)
	}
}

// TestImageRecipientsForeign adds ours to what ocicrypt wrapped, which stays, and can be the only one left.
func TestImageRecipientsForeign(t *testing.T) {
	u := newImageUser(t, NewToken(t, "node"), "EC-256", "EC-384")
	a, b := u.keys["EC-256"], u.keys["EC-384"]
	t.Chdir(t.TempDir())
	writeImage(t, "source", "app", 1000, "linux/amd64")
	Run(t, u.skopeo, "--encryption-key", "jwe:"+a.public, "oci:source:app", "oci:app:app")
	Run(t, u.hsmImage, "recipients", "add", "oci:app:app", "--recipient", "pubkey:"+b.public, "--key", a.uri)
	list := Run(t, u.hsmImage, "recipients", "list", "oci:app:app")
	if strings.Count(list, " 2 of 2") != 2 || !strings.Contains(list, " jwe ") {
		t.Errorf("recipients list printed\n%s", list)
	}
	for i, k := range []imageKey{a, b} {
		Run(t, u.hsmImage, "decrypt", "oci:app:app", "oci:plain:app"+strings.Repeat("x", i), "--key", k.uri)
	}
	Run(t, u.skopeo, "--decryption-key", "provider:hsm:"+b.uri, "oci:app:app", "oci:plain:skopeo")
	Run(t, u.hsmImage, "recipients", "remove", "oci:app:app", "--recipient", "pubkey:"+b.public)
	Run(t, u.hsmImage, "decrypt", "oci:app:app", "oci:plain:foreign", "--key", a.uri)
}
