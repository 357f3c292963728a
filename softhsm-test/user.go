package softhsmtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
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

type roundTrip struct {
	name, program string
	recipients    []string
	keys          []imageKey // those that open it
	provider      bool       // whether the key provider opens it as well: ocicrypt shows it only its own annotations
}

func (u *imageUser) roundTrips(t *testing.T, trips []roundTrip) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	writeImage(t, source, "app", 100_000, "linux/amd64")
	want := layerDigests(t, source, "app")
	for _, trip := range trips {
		t.Run(trip.name, func(t *testing.T) {
			dir := t.TempDir()
			from, encrypted := "oci:"+source+":app", filepath.Join(dir, "encrypted")
			args := []string{"encrypt", from, "oci:" + encrypted + ":app"}
			flag, program := "--recipient", u.hsmImage
			if trip.program == "skopeo" {
				args, flag, program = nil, "--encryption-key", u.skopeo
			}
			for _, r := range trip.recipients {
				args = append(args, flag, r)
			}
			if trip.program == "skopeo" {
				args = append(args, from, "oci:"+encrypted+":app")
			}
			Run(t, program, args...)
			if found := plainText(t, encrypted); len(found) > 0 {
				t.Fatalf("the encrypted image has plain text in %s", found)
			}
			for i, k := range trip.keys {
				plain := filepath.Join(dir, "plain"+strings.Repeat("x", i))
				Run(t, u.hsmImage, "decrypt", "oci:"+encrypted+":app", "oci:"+plain+":app", "--key", k.uri)
				if got := layerDigests(t, plain, "app"); !slices.Equal(got, want) {
					t.Errorf("hsm-image: the layers are %s, not %s", got, want)
				}
				if trip.provider {
					Run(t, u.skopeo, "--decryption-key", "provider:hsm:"+k.uri, "oci:"+encrypted+":app", "oci:"+plain+":app")
					if got := layerDigests(t, plain, "app"); !slices.Equal(got, want) {
						t.Errorf("skopeo: the layers are %s, not %s", got, want)
					}
				}
			}
		})
	}
}

// digests returns those of an image's layers.
func (u *imageUser) digests(t *testing.T, image, platform string) (digests []string) {
	t.Helper()
	for line := range strings.Lines(Run(t, u.hsmImage, "layers", image, "--tls-verify=false")) {
		if fields := strings.Fields(line); fields[0] == platform {
			digests = append(digests, fields[2])
		}
	}
	if len(digests) == 0 {
		t.Fatalf("%s has no layers for %s", image, platform)
	}
	return digests
}

// testUsage encrypts an image to each of the recipients, which open it, and to those that are refused with the words
// given.
func testUsage(t *testing.T, hsmImage string, recipients []string, refused map[string]string) {
	t.Helper()
	t.Chdir(t.TempDir())
	writeImage(t, "source", "app", 1000, "linux/amd64")
	u := &imageUser{hsmImage: hsmImage}
	for _, uri := range recipients {
		name := "oci:" + strings.NewReplacer(":", "-", "=", "-", ";", "-").Replace(uri)
		_, stderr, err := u.try(t, "encrypt", "oci:source:app", name+":app", "--recipient", uri)
		if err != nil || strings.Contains(stderr, "warning:") {
			t.Fatalf("encrypting to %s: %v\n%s", uri, err, stderr)
		}
		Run(t, hsmImage, "decrypt", name+":app", name+"-plain:app", "--key", uri)
		for bad, words := range refused {
			for _, args := range [][]string{
				{"encrypt", "oci:source:app", "oci:none:app", "--recipient", uri, "--recipient", bad},
				{"recipients", "add", name + ":app", "--recipient", bad, "--key", uri},
			} {
				_, stderr, err := u.try(t, args...)
				if err == nil || !strings.Contains(stderr, "cannot open what is encrypted to it") ||
					!strings.Contains(stderr, words) || !strings.Contains(stderr, "hint: ") {
					t.Errorf("hsm-image %s: %v\n%s", args, err, stderr)
				}
			}
			if list := Run(t, hsmImage, "recipients", "list", name+":app", "--recipient", bad); strings.Contains(list, bad) {
				t.Errorf("%s was added:\n%s", bad, list)
			}
		}
	}
	if _, _, err := u.try(t, "layers", "oci:none:app"); err == nil {
		t.Error("a refused recipient's image was written")
	}
}
