package layerkey

import (
	"crypto"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// options is what ocicrypt wraps: 32 bytes of key, a nonce, and the digest of the layer.
const options = `{"symkey":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",` +
	`"digest":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",` +
	`"cipheroptions":{"nonce":"AAECAwQFBgcICQoLDA0ODw=="}}`

// TestMain gives the tests no settings but the PIN of a module in memory, whatever this machine has.
func TestMain(m *testing.M) {
	err := errors.Join(os.Setenv("NOTATION_HSM_CONFIG", "/dev/null"), os.Setenv("NOTATION_HSM_PIN", keystoretest.PIN))
	if err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// A fixture is a keystore whose settings name one token.
type fixture struct {
	testing.TB
	ks *keystore.Keystore
}

// memory is a fixture with a module in memory.
type memory struct {
	fixture
	*keystoretest.Module
}

const token = "recipients"

func newMemory(t testing.TB) memory {
	m := keystoretest.New(token)
	return memory{fixture{t, m.Keystore()}, m}
}

// pool has private keys by name, since RSA keys take long to make.
var pool sync.Map

// private returns the private key of a spec with a name, which is the same one in all tests.
func private(t testing.TB, name, spec string) crypto.Signer {
	t.Helper()
	parsed, err := key.ParseSpec(spec)
	if err != nil {
		t.Fatal(err)
	}
	made, _ := pool.LoadOrStore(name+" "+spec, sync.OnceValues(func() (crypto.Signer, error) {
		return keystoretest.NewKey(parsed)
	}))
	k, err := made.(func() (crypto.Signer, error))()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// add puts a key on the token in memory, under the name of its spec, and returns its public half.
func (m memory) add(spec string, usage key.Usage) crypto.PublicKey {
	m.Helper()
	return m.addAs(strings.ToLower(spec), spec, usage)
}

func (m memory) addAs(label, spec string, usage key.Usage) crypto.PublicKey {
	m.Helper()
	k := private(m.TB, label, spec)
	m.Key(m.TB, token, label, k, usage)
	return k.Public()
}

// generate makes a key on the token of a real module, and returns its public half.
func (f fixture) generate(label, spec string, usage key.Usage) crypto.PublicKey {
	f.Helper()
	s, err := f.ks.Resolve("", nil, config.Flags)
	if err != nil {
		f.Fatal(err)
	}
	parsed, err := key.ParseSpec(spec)
	if err != nil {
		f.Fatal(err)
	}
	info, err := s.Generate(f.Context(), key.Request{Spec: parsed, Usage: usage, Label: label})
	if err != nil {
		f.Fatal(err)
	}
	return info.Public
}

func uri(label string) string { return "pkcs11:object=" + label }

// recipient parses the name of one recipient.
func (f fixture) recipient(name string) (Recipient, error) {
	parsed, err := ParseRecipients(f.Context(), f.ks, []string{name}, config.Flags)
	if err != nil {
		return Recipient{}, err
	}
	return parsed[0], nil
}

// identify returns the public key of a recipient, without checking what it can do.
func (f fixture) identify(name string) crypto.PublicKey {
	f.Helper()
	parsed, err := IdentifyRecipients(f.Context(), f.ks, []string{name}, config.Flags)
	if err != nil {
		f.Fatal(err)
	}
	return parsed[0].Public
}

// seal returns annotations with options for recipients.
func (f fixture) seal(recipients ...string) map[string]string {
	f.Helper()
	parsed, err := ParseRecipients(f.Context(), f.ks, recipients, config.Flags)
	if err != nil {
		f.Fatal(err)
	}
	jwe, err := Seal([]byte(options), parsed)
	if err != nil {
		f.Fatal(err)
	}
	return annotation(schemeHSM, jwe)
}

func annotation(scheme string, packets ...[]byte) map[string]string {
	var texts []string
	for _, p := range packets {
		texts = append(texts, base64.StdEncoding.EncodeToString(p))
	}
	return map[string]string{AnnotationPrefix + scheme: strings.Join(texts, ",")}
}

// packetOf returns the one packet that seal made.
func packetOf(t testing.TB, annotations map[string]string) []byte {
	t.Helper()
	packet, err := base64.StdEncoding.DecodeString(annotations[Annotation])
	if err != nil {
		t.Fatal(err)
	}
	return packet
}

// open opens annotations with keys, which are closed again.
func (f fixture) open(annotations map[string]string, references ...string) (string, error) {
	f.Helper()
	keys := OpenKeys(f.ks, references, config.Flags)
	opened, err := keys.Open(f.Context(), annotations)
	if err := keys.Close(); err != nil {
		f.Errorf("closing: %v", err)
	}
	return string(opened), err
}

func (f fixture) mustOpen(annotations map[string]string, references ...string) {
	f.Helper()
	if opened, err := f.open(annotations, references...); err != nil || opened != options {
		f.Errorf("opening with %q: %v, and got %q", references, err, opened)
	}
}

func (f fixture) mustFail(kind failure.Kind, words string, annotations map[string]string, references ...string) {
	f.Helper()
	opened, err := f.open(annotations, references...)
	if err == nil {
		f.Fatalf("it opened with %q: %q", references, opened)
	}
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), words) {
		f.Errorf("the failure is %q of kind %v, not one with %q", err, failure.From(err).Kind, words)
	}
}

// pemFile writes a public key or certificate to a file.
func pemFile(t testing.TB, kind string, der []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recipient.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func publicDER(t testing.TB, public crypto.PublicKey) []byte {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// publicFile returns a recipient by its public key in a file.
func publicFile(t testing.TB, public crypto.PublicKey) string {
	t.Helper()
	return "pubkey:" + pemFile(t, "PUBLIC KEY", publicDER(t, public))
}
