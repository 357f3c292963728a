package custody

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"
	"filippo.io/age/armor"
	"golang.org/x/crypto/ssh"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// custodian is the recipient of a share, and the identity that decrypts it.
type custodian struct{ to, identity string }

// newCustodians makes one of every kind. Those with a module have a recipient's key on a token of their own.
func newCustodians(t *testing.T, token *softhsmtest.Token, n *softhsmtest.Notation, dir string) (custodians []custodian,
	inAge *age.X25519Identity) {
	t.Helper()
	inAge, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Write(t, filepath.Join(dir, "age.txt"), inAge.String()+"\n")
	custodians = append(custodians, custodian{inAge.Recipient().String(), filepath.Join(dir, "age.txt")})
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for i, private := range []crypto.Signer{ed, rsaKey} {
		path := filepath.Join(dir, fmt.Sprintf("ssh-%d", i))
		block, err := ssh.MarshalPrivateKey(private, "")
		if err != nil {
			t.Fatal(err)
		}
		public, err := ssh.NewPublicKey(private.Public())
		if err != nil {
			t.Fatal(err)
		}
		softhsmtest.Write(t, path, string(pem.EncodeToMemory(block)))
		custodians = append(custodians, custodian{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public))), path})
	}
	ca := softhsmtest.NewCA(t, "Custodians", nil)
	for _, c := range []struct {
		label, spec, more string
		usage             x509.KeyUsage
	}{
		{"carol", "RSA-2048", "?oaep=sha1", x509.KeyUsageKeyEncipherment}, // SoftHSM knows no other hash
		{"dave", "EC-384", "", x509.KeyUsageKeyAgreement},
	} {
		token.Init(t, c.label)
		uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", c.label, "--label", "share",
			"--usage", "decrypt", "--spec", c.spec))
		block, _ := pem.Decode([]byte(softhsmtest.Run(t, n.Plugin, "cert", "export", "--public", uri)))
		public, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		template := softhsmtest.Template(c.label)
		template.KeyUsage, template.ExtKeyUsage = c.usage, nil
		path := filepath.Join(dir, c.label+".pem")
		softhsmtest.Write(t, path, softhsmtest.PEM(ca.Issue(t, template, public)))
		custodians = append(custodians, custodian{"cert:" + path + c.more, uri})
	}
	return custodians, inAge
}

var (
	clearShare = regexp.MustCompile(`"value"\s*:\s*"[0-9a-f]{64}"`)
	clearInB64 = []byte("ewogICJ2ZXJzaW9uIjog") // how a share begins in base64
)

// noClearShare fails if a file below one of the folders has a share in the clear, or one of the values in hex or in
// binary.
func noClearShare(t *testing.T, when string, values []string, dirs ...string) {
	t.Helper()
	files := 0
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			files++
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found := clearShare.Match(data) || bytes.Contains(data, clearInB64)
			for _, value := range values {
				binary, _ := hex.DecodeString(value)
				found = found || bytes.Contains(data, []byte(value)) || bytes.Contains(data, binary)
			}
			if found {
				t.Errorf("%s: a share is in the clear in %s", when, path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files == 0 {
		t.Fatal("there are no files")
	}
}

// TestSharesEncrypted encrypts shares to custodians of every kind, and opens all of them again, with keys in files and
// in modules. No share is ever in a file in the clear, wherever the command is killed.
func TestSharesEncrypted(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	token.Init(t, "spare")
	n := softhsmtest.NewNotation(t, token)
	dir := t.TempDir()
	folder, temporary := filepath.Join(dir, "shares"), filepath.Join(dir, "tmp")
	custodians, inAge := newCustodians(t, token, n, dir)
	if err := os.Mkdir(temporary, 0o700); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Setenv(t, "TMPDIR", temporary)
	softhsmtest.Setenv(t, "SOPIN", softhsmtest.SOPIN)
	generate := []string{"key", "backup-key", "generate", "--token", "signing", "--label", "backup", "--threshold", "5",
		"--folder", folder, "--so-pin-source", "env:SOPIN"}
	for _, c := range custodians {
		generate = append(generate, "--to", c.to)
	}
	watched := []string{dir, token.Dir, softhsmtest.Getenv(t, "XDG_CONFIG_HOME")}
	tokens, saved := filepath.Join(token.Dir, "tokens"), filepath.Join(t.TempDir(), "tokens")
	softhsmtest.Run(t, "cp", "-a", tokens, saved)
	written := func() int {
		found, _ := filepath.Glob(filepath.Join(folder, "*-of-5.*"))
		return len(found)
	}
	kills := 0
	for written() < len(custodians) { // the shares are written before anything else
		softhsmtest.Run(t, "rm", "-rf", tokens, folder)
		softhsmtest.Run(t, "cp", "-a", saved, tokens)
		at, killed := killAt(t, kills+1, "token.object", n.Plugin, generate...)
		if !killed {
			t.Fatalf("it ended with %d shares, after %d kills", written(), kills)
		}
		kills++
		noClearShare(t, "killed at "+at, nil, watched...)
	}
	if kills < 10 { // five files, each written and renamed
		t.Errorf("%d kills are too few", kills)
	}
	softhsmtest.Run(t, "rm", "-rf", tokens, folder)
	softhsmtest.Run(t, "cp", "-a", saved, tokens)
	softhsmtest.Setenv(t, "NOTATION_HSM_LOG", filepath.Join(dir, "log"))
	softhsmtest.Run(t, n.Plugin, generate...)

	var names, files, values []string
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		names, files = append(names, entry.Name()), append(files, filepath.Join(folder, entry.Name()))
		if info, err := entry.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", entry.Name(), info.Mode(), err)
		}
	}
	want := []string{"backup-share-1-of-5.age", "backup-share-2-of-5.age", "backup-share-3-of-5.age",
		"backup-share-4-of-5.jwe", "backup-share-5-of-5.jwe"}
	if !slices.Equal(names, want) {
		t.Fatalf("the files are %v", names)
	}
	// The first opens as with any tool for age. Then it is in the clear, and can still be used.
	plain, err := age.Decrypt(armor.NewReader(strings.NewReader(softhsmtest.Read(t, files[0]))), inAge)
	if err != nil {
		t.Fatal(err)
	}
	var first bytes.Buffer
	if _, err := first.ReadFrom(plain); err != nil {
		t.Fatal(err)
	}
	opened := filepath.Join(t.TempDir(), "first.json")
	softhsmtest.Write(t, opened, first.String())
	values = append(values, shareValue(t, opened))
	noClearShare(t, "generated", values, watched...)

	restore := func(token string, files []string, identities ...string) (string, error) {
		args := []string{"key", "backup-key", "restore", "--token", token, "--so-pin-source", "env:SOPIN", "--shares",
			strings.Join(files, ",")}
		for _, identity := range identities {
			args = append(args, "--identity", identity)
		}
		_, stderr, err := softhsmtest.Try(t, "", n.Plugin, args...)
		return stderr, err
	}
	var identities []string
	for _, c := range custodians {
		identities = append(identities, c.identity)
	}
	objects, err := filepath.Glob(filepath.Join(tokens, "*", "*.object"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range custodians {
		stderr, err := restore("spare", files, slices.Delete(slices.Clone(identities), i, i+1)...)
		if err == nil || !strings.Contains(stderr, fmt.Sprintf("no identity can decrypt the share %s", files[i])) {
			t.Errorf("without identity %d: %v: %s", i+1, err, stderr)
		}
	}
	if stderr, err := restore("spare", files); err == nil ||
		!strings.Contains(stderr, "cannot decrypt the share ") {
		t.Errorf("without identities: %v: %s", err, stderr)
	}
	if now, err := filepath.Glob(filepath.Join(tokens, "*", "*.object")); err != nil || !slices.Equal(now, objects) {
		t.Errorf("the objects were %v, and are %v", objects, now)
	}
	if stderr, err := restore("spare", files, identities...); err != nil ||
		!strings.Contains(stderr, `the wrapping key "backup" with id`) {
		t.Errorf("with all identities: %v: %s", err, stderr)
	}
	noClearShare(t, "restored", values, watched...)
	token.Init(t, "third")
	if stderr, err := restore("third", append([]string{opened}, files[1:]...), identities[1:]...); err != nil {
		t.Errorf("with one in the clear: %v: %s", err, stderr)
	}
}
