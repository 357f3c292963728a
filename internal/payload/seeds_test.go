package payload

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containers/ocicrypt/config"
	ocijwe "github.com/containers/ocicrypt/keywrap/jwe"
)

// seeds returns what clients send, by name, which begins with the format. In testdata there is:
//
//   - cosign-*: payload.Cosign of sigstore 1.10.11, as cosign 3.1.2 fills it in
//   - dsse-sign*: the statement of 'cosign sign' 3.1.2; dsse-in-toto-golang: that of in-toto-golang 0.11.0; the other
//     dsse-*: those of 'cosign attest' 3.1.2, by its --type
//   - tuf-*: go-tuf 2.4.2, encoded by go-securesystemslib 0.11.1
//   - x509-openssl-*: OpenSSL 3.0.19
func seeds(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*-*.*")
	if err != nil || len(files) < 20 {
		t.Fatalf("%d files, %v", len(files), err)
	}
	all := map[string][]byte{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimSuffix(filepath.Base(file), filepath.Ext(file))] = data
	}
	all["dsse-spaced"] = spaced(all["dsse-sign-annotations"])
	one, two := recipient(t, true), recipient(t, false)
	all["layer-key-rsa"] = wrap(t, one)
	all["layer-key-ec"] = wrap(t, two)
	all["layer-key-both"] = wrap(t, one, two)
	return all
}

// spaced writes a space after each comma between values, as protojson does in some builds.
func spaced(pae []byte) []byte {
	_, body, _ := bytes.Cut(pae, []byte("{"))
	return envelope("{" + strings.ReplaceAll(string(body), `,"`, `, "`))
}

// newRSA makes the RSA key of all tests.
var newRSA = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func rsaKey(t testing.TB) *rsa.PrivateKey {
	t.Helper()
	k, err := newRSA()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// recipient returns a public key in PEM.
func recipient(t testing.TB, isRSA bool) []byte {
	t.Helper()
	var public any
	if isRSA {
		public = rsaKey(t).Public()
	} else {
		k, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		public = k.Public()
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
}

// wrap returns the JWE that ocicrypt makes for recipients.
func wrap(t testing.TB, recipients ...[]byte) []byte {
	t.Helper()
	c := &config.EncryptConfig{Parameters: map[string][][]byte{"pubkeys": recipients}}
	data, err := ocijwe.NewKeyWrapper().WrapKeys(c, []byte(`{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}`))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// readersOf returns the names of the readers that read data, and of those whose shape it has.
func readersOf(data []byte) (read, shaped []string) {
	for _, r := range readers {
		_, err := r.read(data)
		if err == nil {
			read = append(read, r.name)
		}
		if err != errOther { //nolint:errorlint // a wrapped one is another error
			shaped = append(shaped, r.name)
		}
	}
	return read, shaped
}

// TestSeeds reads what clients send, each by its own format alone.
func TestSeeds(t *testing.T) {
	for name, data := range seeds(t) {
		artifact, err := Read(data)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !strings.HasPrefix(name, string(artifact.Format)) {
			t.Errorf("%s: the format is %s", name, artifact.Format)
		}
		if read, shaped := readersOf(data); len(read) != 1 || len(shaped) != 1 {
			t.Errorf("%s: %q read it, and it has the shape of %q", name, read, shaped)
		}
	}
}

// TestSeedsChanged verifies that no change of one byte goes unseen: that bytes are refused, or another artifact.
// layer-key is not signed, and shows no ciphertext. Of x509 no artifact shows the types of the strings in a name.
func TestSeedsChanged(t *testing.T) {
	t.Parallel()
	alike := []string{"dsse-link", "dsse-slsa1", "dsse-uri", "dsse-vuln", "x509-openssl-pss384-crt",
		"x509-openssl-pss-crt"}
	for name, data := range seeds(t) {
		if strings.HasPrefix(name, string(LayerKey)) || slices.Contains(alike, name) {
			continue
		}
		want, err := Read(data)
		if err != nil {
			t.Fatal(err)
		}
		for i := range data {
			for _, changed := range [][]byte{
				change(data, i, data[i]^0x20), // the other case
				change(data, i, data[i]^1), change(data, i, ' ', data[i]), change(data, i, data[i], 0),
				change(data, i), // without it
			} {
				if bytes.Equal(changed, data) {
					continue
				}
				got, err := Read(changed)
				if err == nil && reflect.DeepEqual(got, want) && !isStringType(data, changed) {
					t.Errorf("%s: %.40q at byte %d, for %.40q, makes the same artifact", name, changed[i:], i, data[i:])
				}
			}
		}
	}
}

// isStringType reports whether data and changed differ in the type of a string alone, of UTF8String, PrintableString
// and IA5String.
func isStringType(data, changed []byte) bool {
	if len(data) != len(changed) || data[0] != 0x30 {
		return false
	}
	types := []byte{0x0c, 0x13, 0x16}
	for i := range data {
		if data[i] != changed[i] && (!bytes.Contains(types, data[i:i+1]) || !bytes.Contains(types, changed[i:i+1])) {
			return false
		}
	}
	return true
}

// change returns a copy of data with other bytes in the place of one.
func change(data []byte, at int, others ...byte) []byte {
	return bytes.Join([][]byte{data[:at], others, data[at+1:]}, nil)
}

// A refusal is a text in a document, what replaces it once, and what the error must say.
type refusal struct{ text, replacement, words string }

// refusals verifies that changes of a document are refused, each with the place.
func refusals(t *testing.T, document string, build func(string) []byte, changes []refusal) {
	t.Helper()
	if _, err := Read(build(document)); err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		changed := strings.Replace(document, c.text, c.replacement, 1)
		if changed == document {
			t.Errorf("%q is not in the document", c.text)
			continue
		}
		artifact, err := Read(build(changed))
		if err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%q for %q: %+v, %v, which does not say %q", c.replacement, c.text, artifact, err, c.words)
		}
	}
}

func same(document string) []byte { return []byte(document) }
