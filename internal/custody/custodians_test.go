package custody

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"github.com/go-jose/go-jose/v4"
	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func file(t *testing.T, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func newAge(t *testing.T) *age.X25519Identity {
	t.Helper()
	return must[*age.X25519Identity](t)(age.GenerateX25519Identity())
}

// newSSH makes an SSH key: its public line, and its file under a passphrase.
func newSSH(t *testing.T, passphrase string) (public string, path string) {
	t.Helper()
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block := must[*pem.Block](t)(ssh.MarshalPrivateKeyWithPassphrase(private, "comment", []byte(passphrase)))
	line := ssh.MarshalAuthorizedKey(must[ssh.PublicKey](t)(ssh.NewPublicKey(pub)))
	return strings.TrimSpace(string(line)) + " someone@example.com", file(t, pem.EncodeToMemory(block))
}

// TestPassphrases decrypts shares with identities that have passphrases. A passphrase is asked for only if it is
// needed.
func TestPassphrases(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	inner := newAge(t)
	scrypt := must[*age.ScryptRecipient](t)(age.NewScryptRecipient("horse"))
	scrypt.SetWorkFactor(10)
	var locked bytes.Buffer
	w, err := age.Encrypt(&locked, scrypt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(inner.String() + "\n")); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	public, sshPath := newSSH(t, "staple")
	for name, c := range map[string]struct{ to, identity, right, asked string }{
		"age":          {inner.Recipient().String(), file(t, locked.Bytes()), "horse", "asked"},
		"SSH":          {public, sshPath, "staple", "asked"},
		"SSH, another": {newAge(t).Recipient().String(), sshPath, "staple", "not asked"},
	} {
		t.Run(name, func(t *testing.T) {
			custodian := must[custodian](t)(parseCustodian(ctx, nil, c.to))
			sealed := must[[]byte](t)(custodian.encrypt([]byte("the share")))
			for _, passphrase := range []string{c.right, "wrong"} {
				asked := "not asked"
				ids, err := openIdentities(ctx, nil, []string{c.identity}, func(context.Context, string) ([]byte, error) {
					asked = "asked"
					return []byte(passphrase), nil
				})
				var plain []byte
				if err == nil {
					plain, err = ids.decrypt(ctx, "share", sealed)
				}
				opens := passphrase == c.right && c.asked == "asked"
				if opens != (err == nil) || opens != (string(plain) == "the share") || asked != c.asked || err != nil &&
					!failure.Is(err, failure.Denied) {
					t.Errorf("with %q (%s): %q, %v", passphrase, asked, plain, err)
				}
			}
			if c.asked == "asked" {
				ids, err := openIdentities(ctx, nil, []string{c.identity},
					func(context.Context, string) ([]byte, error) { return nil, errors.New("nobody is here") })
				if err == nil {
					_, err = ids.decrypt(ctx, "share", sealed)
				}
				if err == nil || !strings.Contains(err.Error(), "nobody is here") {
					t.Errorf("without an answer: %v", err)
				}
			}
		})
	}
}

// TestPostQuantum decrypts a share with one of age's post-quantum identities.
func TestPostQuantum(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	identity := must[*age.HybridIdentity](t)(age.GenerateHybridIdentity())
	c := must[custodian](t)(parseCustodian(ctx, nil, identity.Recipient().String()))
	sealed := must[[]byte](t)(c.encrypt([]byte("the share")))
	ids := must[*identities](t)(openIdentities(ctx, nil, []string{file(t, []byte(identity.String()))}, nil))
	if plain, err := ids.decrypt(ctx, "share", sealed); err != nil || string(plain) != "the share" {
		t.Errorf("%q, %v", plain, err)
	}
}

// TestPublicKeyFile decrypts a share that is encrypted to the key of a file with a JOSE library.
func TestPublicKeyFile(t *testing.T) {
	t.Parallel()
	private := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	der := must[[]byte](t)(x509.MarshalPKIXPublicKey(private.Public()))
	c := must[custodian](t)(parseCustodian(context.Background(), nil,
		"pubkey:"+file(t, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))))
	sealed := must[[]byte](t)(c.encrypt([]byte("the share")))
	jwe := must[*jose.JSONWebEncryption](t)(
		jose.ParseEncryptedJSON(string(sealed), []jose.KeyAlgorithm{jose.ECDH_ES_A256KW},
			[]jose.ContentEncryption{jose.A256GCM}))
	if _, _, plain, err := jwe.DecryptMulti(private); err != nil || string(plain) != "the share" {
		t.Errorf("%q, %v", plain, err)
	}
}

// TestCustodiansRefused refuses names that are no public key, and one key for two shares.
func TestCustodiansRefused(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	one, two := newAge(t).Recipient().String(), newAge(t).Recipient().String()
	public, _ := newSSH(t, "staple")
	_, key, _ := strings.Cut(public, " ")
	for name, c := range map[string]struct {
		names []string
		words string
	}{
		"a folder": {[]string{"shares", one}, "an unknown form"},
		"a plugin": {[]string{"age1yubikey1qwt50d05nh5vutpdzmlg5wn80xq5negm4uj9ghv0snvdd3yysf5yw3rhl3t", one},
			"cannot encrypt a share to"},
		"a typo":           {[]string{one[:len(one)-1] + "x", one}, "cannot encrypt a share to"},
		"a private key":    {[]string{newAge(t).String(), one}, "to a private key"},
		"ECDSA of SSH":     {[]string{"ssh-ecdsa AAAA", one}, "cannot encrypt a share to"},
		"no certificate":   {[]string{"cert:/does/not/exist", one}, "/does/not/exist"},
		"an empty name":    {[]string{"", one}, "an unknown form"},
		"too few":          {[]string{one}, "cannot encrypt 2 shares to 1 custodians"},
		"too many":         {[]string{one, two, public}, "cannot encrypt 2 shares to 3 custodians"},
		"one of age twice": {[]string{one, one}, "the custodians 1 and 2 have the same key"},
		"one of SSH twice": {[]string{public, "ssh-ed25519   " + strings.Fields(key)[0] + " other@example.com"},
			"the custodians 1 and 2 have the same key"},
	} {
		if _, err := parseCustodians(ctx, nil, c.names, 2); err == nil || !strings.Contains(err.Error(), c.words) ||
			strings.Contains(err.Error(), "AGE-SECRET") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestIdentitiesRefused refuses files without an identity, and quotes nothing from them.
func TestIdentitiesRefused(t *testing.T) {
	t.Parallel()
	secret := newAge(t).String()
	for name, data := range map[string]string{
		"nothing": "", "a damaged key": secret[:40], "more on the line": secret + " secret",
		"a PEM block": "-----BEGIN PRIVATE KEY-----\n" + secret + "\n",
		"large":       strings.Repeat(secret+"\n", 1000), "a plugin's": "AGE-PLUGIN-YUBIKEY-1QWT50D05NH5VUTPDZMLG5WN80XQ5",
	} {
		ids, err := openIdentities(context.Background(), nil, []string{file(t, []byte(data))}, nil)
		if err == nil || strings.Contains(err.Error(), secret[:20]) || strings.Contains(err.Error(), "AGE-PLUGIN") {
			t.Errorf("%s: %v, %v", name, ids, err)
		}
	}
}
