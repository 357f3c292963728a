package oci

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// User has keys for encrypted images on a token, and the programs: hsm-image, and one that copies images as
// skopeo does, which is told to use the key provider of notation-hsm.
type User struct {
	HSMImage, Skopeo string
	Token            *softhsmtest.Token
	Keys             map[string]Key
}

// Key is a key of an imageUser, and files with its public half.
type Key struct{ URI, Public, Certificate string }

// NewUser makes a key of each spec on a token, and a certificate for it. The token and the key provider are set for the
// programs that the test starts.
func NewUser(t *testing.T, token *softhsmtest.Token, specs ...string) *User {
	t.Helper()
	u := &User{HSMImage: softhsmtest.Build(t, "hsm-image"), Skopeo: softhsmtest.Build(t, "skopeo"), Token: token,
		Keys: map[string]Key{}}
	plugin, dir, temporary := softhsmtest.Build(t, "notation-hsm"), t.TempDir(), t.TempDir()
	softhsmtest.Setenv(t, "TMPDIR", temporary)
	t.Cleanup(func() {
		if left, err := filepath.Glob(filepath.Join(temporary, ".hsm-image-*")); err != nil || len(left) > 0 {
			t.Errorf("there still is %s: %v", left, err)
		}
	})
	for _, name := range []string{"CONFIG", "LOG", "TOKEN", "SLOT_ID", "PIN_SOURCE", "CERTIFICATE_CHAIN"} {
		softhsmtest.Setenv(t, "NOTATION_HSM_"+name, "")
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_TIMEOUT", softhsmtest.Patience)
	softhsmtest.Setenv(t, "XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	softhsmtest.Setenv(t, "NOTATION_HSM_MODULE_PATH", token.Module)
	softhsmtest.Setenv(t, "NOTATION_HSM_PIN", softhsmtest.PIN)
	provider := filepath.Join(dir, "ocicrypt.json")
	softhsmtest.WriteJSON(t, provider, map[string]any{"key-providers": map[string]any{
		"hsm": map[string]any{"cmd": map[string]any{"path": plugin, "args": []string{"keyprovider"}}}}})
	softhsmtest.Setenv(t, "OCICRYPT_KEYPROVIDER_CONFIG", provider)
	softhsmtest.Setenv(t, "OCICRYPT_CONFIG", "internal") // for pkcs11:
	for _, spec := range specs {
		k := Key{Public: filepath.Join(dir, spec+".pem"), Certificate: filepath.Join(dir, spec+".crt")}
		k.URI = strings.TrimSpace(softhsmtest.Run(t, plugin, "key", "generate", "--token", token.Label, "--label", spec,
			"--spec", spec, "--usage", "decrypt"))
		text := softhsmtest.Run(t, plugin, "cert", "export", "--public", k.URI)
		softhsmtest.WriteFile(t, k.Public, []byte(text))
		softhsmtest.WriteFile(t, k.Certificate, certificateFor(t, text))
		u.Keys[spec] = k
	}
	return u
}

// certificateFor has a CA issue a certificate for a public key, whose own private key cannot sign.
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

// Try runs hsm-image and returns what it printed, and its error.
func (u *User) Try(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	return softhsmtest.Try(t, "", u.HSMImage, args...)
}

// A RoundTrip is an image that one program encrypts to recipients and hsm-image decrypts with keys.
type RoundTrip struct {
	Name, Program string
	Recipients    []string
	Keys          []Key // those that open it
	Provider      bool  // whether the key provider opens it as well: ocicrypt shows it only its own annotations
}

// RoundTrips encrypts and decrypts an image, in a test of its own each, and compares the layers.
func (u *User) RoundTrips(t *testing.T, trips []RoundTrip) {
	dir := t.TempDir()
	source := filepath.Join(dir, "source")
	WriteImage(t, source, "app", 100_000, "linux/amd64")
	want := LayerDigests(t, source, "app")
	for _, trip := range trips {
		t.Run(trip.Name, func(t *testing.T) {
			dir := t.TempDir()
			from, encrypted := "oci:"+source+":app", filepath.Join(dir, "encrypted")
			args := []string{"encrypt", from, "oci:" + encrypted + ":app"}
			flag, program := "--recipient", u.HSMImage
			if trip.Program == "skopeo" {
				args, flag, program = nil, "--encryption-key", u.Skopeo
			}
			for _, r := range trip.Recipients {
				args = append(args, flag, r)
			}
			if trip.Program == "skopeo" {
				args = append(args, from, "oci:"+encrypted+":app")
			}
			softhsmtest.Run(t, program, args...)
			if found := PlainText(t, encrypted); len(found) > 0 {
				t.Fatalf("the encrypted image has plain text in %s", found)
			}
			for i, k := range trip.Keys {
				plain := filepath.Join(dir, "plain"+strings.Repeat("x", i))
				softhsmtest.Run(t, u.HSMImage, "decrypt", "oci:"+encrypted+":app", "oci:"+plain+":app", "--key", k.URI)
				if got := LayerDigests(t, plain, "app"); !slices.Equal(got, want) {
					t.Errorf("hsm-image: the layers are %s, not %s", got, want)
				}
				if trip.Provider {
					softhsmtest.Run(t, u.Skopeo, "--decryption-key", "provider:hsm:"+k.URI, "oci:"+encrypted+":app", "oci:"+plain+
						":app")
					if got := LayerDigests(t, plain, "app"); !slices.Equal(got, want) {
						t.Errorf("skopeo: the layers are %s, not %s", got, want)
					}
				}
			}
		})
	}
}

// Digests returns those of an image's layers.
func (u *User) Digests(t *testing.T, image, platform string) (digests []string) {
	t.Helper()
	for line := range strings.Lines(softhsmtest.Run(t, u.HSMImage, "layers", image, "--tls-verify=false")) {
		if fields := strings.Fields(line); fields[0] == platform {
			digests = append(digests, fields[2])
		}
	}
	if len(digests) == 0 {
		t.Fatalf("%s has no layers for %s", image, platform)
	}
	return digests
}

// CheckUsage encrypts an image to each of the recipients, which open it, and to those that are refused with the words
// given.
func CheckUsage(t *testing.T, hsmImage string, recipients []string, refused map[string]string) {
	t.Helper()
	dir := t.TempDir() + "/"
	WriteImage(t, dir+"source", "app", 1000, "linux/amd64")
	u := &User{HSMImage: hsmImage}
	for _, uri := range recipients {
		name := "oci:" + dir + strings.NewReplacer(":", "-", "=", "-", ";", "-").Replace(uri)
		_, stderr, err := u.Try(t, "encrypt", "oci:"+dir+"source:app", name+":app", "--recipient", uri)
		if err != nil || strings.Contains(stderr, "warning:") {
			t.Fatalf("encrypting to %s: %v\n%s", uri, err, stderr)
		}
		softhsmtest.Run(t, hsmImage, "decrypt", name+":app", name+"-plain:app", "--key", uri)
		for bad, words := range refused {
			for _, args := range [][]string{
				{"encrypt", "oci:" + dir + "source:app", "oci:" + dir + "none:app", "--recipient", uri, "--recipient", bad},
				{"recipients", "add", name + ":app", "--recipient", bad, "--key", uri},
			} {
				_, stderr, err := u.Try(t, args...)
				if err == nil || !strings.Contains(stderr, "cannot decrypt what is encrypted to it") ||
					!strings.Contains(stderr, words) || !strings.Contains(stderr, "hint: ") {
					t.Errorf("hsm-image %s: %v\n%s", args, err, stderr)
				}
			}
			if list := softhsmtest.Run(t, hsmImage, "recipients", "list", name+":app", "--recipient",
				bad); strings.Contains(list, bad) {
				t.Errorf("%s was added:\n%s", bad, list)
			}
		}
	}
	if _, _, err := u.Try(t, "layers", "oci:"+dir+"none:app"); err == nil {
		t.Error("a refused recipient's image was written")
	}
}
