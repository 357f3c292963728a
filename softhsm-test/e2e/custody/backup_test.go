package custody

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/miekg/pkcs11"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// backedUp is a token with a wrapping key, backups of some of its keys, and a second token that has the wrapping key
// alone.
type backedUp struct {
	token *softhsmtest.Token
	n     *softhsmtest.Notation
	dir   string
}

func newBackedUp(t *testing.T, keys map[string][]string) *backedUp {
	t.Helper()
	token := softhsmtest.NewToken(t, "signing")
	token.Init(t, "spare")
	b := &backedUp{token: token, n: softhsmtest.NewNotation(t, token), dir: t.TempDir()}
	softhsmtest.Setenv(t, "SOPIN", softhsmtest.SOPIN)
	b.run(t, "key", "backup-key", "generate", "--token", "signing", "--label", "backup", "--shares", "2", "--threshold",
		"2", "--folder", b.dir, "--so-pin-source", "env:SOPIN")
	for label, flags := range keys {
		uri := strings.TrimSpace(b.run(t, append(
			[]string{"key", "generate", "--token", "signing", "--label", label, "--backup-key", "backup"}, flags...)...))
		if !slices.Contains(flags, "decrypt") {
			softhsmtest.Write(t, filepath.Join(b.dir, label+".pem"),
				b.run(t, "cert", "self-sign", uri, "--subject", "CN=release,O=Example,C=CH,ST=Zurich"))
			b.run(t, "cert", "import", uri, filepath.Join(b.dir, label+".pem"))
		}
		b.run(t, "key", "backup", uri, "--to", b.file(label))
	}
	b.run(t, "key", "backup-key", "restore", "--token", "spare", "--shares", b.share(1)+","+b.share(2), "--so-pin-source",
		"env:SOPIN")
	return b
}

func (b *backedUp) run(t *testing.T, args ...string) string {
	t.Helper()
	return softhsmtest.Run(t, b.n.Plugin, args...)
}

func (b *backedUp) file(label string) string { return filepath.Join(b.dir, label+".json") }

func (b *backedUp) share(i int) string {
	return filepath.Join(b.dir, fmt.Sprintf("backup-share-%d-of-2.json", i))
}

// objects are the files of all objects on SoftHSM's tokens.
func (b *backedUp) objects(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(b.token.Dir, "tokens", "*", "*.object"))
	if err != nil || len(found) == 0 {
		t.Fatalf("%v, %v", found, err)
	}
	return found
}

// signed gives an edited backup the checksum of its contents, as anyone can.
func signed(t *testing.T, text string) string {
	t.Helper()
	var compact bytes.Buffer
	if err := json.Compact(&compact, []byte(text)); err != nil {
		t.Fatal(err)
	}
	whole := compact.String()
	at := strings.Index(whole, `"sha256":"`) + len(`"sha256":"`)
	old := whole[at : at+64]
	sum := sha256.Sum256([]byte(whole[:at] + `"}`))
	return strings.Replace(text, old, hex.EncodeToString(sum[:]), 1)
}

// field returns a field of a backup as it is written.
func field(t *testing.T, text, name string) string {
	t.Helper()
	at := strings.Index(text, `"`+name+`": `)
	if at < 0 {
		t.Fatalf("there is no %s in %s", name, text)
	}
	line, _, _ := strings.Cut(text[at:], "\n")
	return strings.TrimSuffix(line, ",")
}

// exchange returns a backup with fields of another.
func exchange(t *testing.T, text, other string, names ...string) string {
	t.Helper()
	for _, name := range names {
		text = strings.Replace(text, field(t, text, name), field(t, other, name), 1)
	}
	return text
}

// downgrade makes a backup of version 1 of one of version 2.
func downgrade(t *testing.T, text string) string {
	t.Helper()
	text, _, _ = strings.Cut(text, `,`+"\n"+`  "mac": {`)
	return signed(t, strings.Replace(text, `"version": 2`, `"version": 1`, 1)+"\n}\n")
}

// TestBackupChanged changes a backup in every way that its writer could have meant, with a new checksum. Nothing is
// made on the token.
func TestBackupChanged(t *testing.T) {
	softhsmtest.Parallel(t)
	b := newBackedUp(t, map[string][]string{"release": nil, "other": nil, "nodes": {"--usage", "decrypt"}})
	release, other := softhsmtest.Read(t, b.file("release")), softhsmtest.Read(t, b.file("other"))
	// Another certificate of the same key: only the MAC tells that it was not there.
	softhsmtest.Write(t, filepath.Join(b.dir, "second.pem"),
		b.run(t, "cert", "self-sign", "pkcs11:token=signing;object=release", "--subject",
			"CN=other,O=Example,C=CH,ST=Zurich"))
	second, err := json.Marshal(softhsmtest.Read(t, filepath.Join(b.dir, "second.pem")))
	if err != nil {
		t.Fatal(err)
	}
	replace := func(old, with string) string {
		if !strings.Contains(release, old) {
			t.Fatalf("there is no %s in %s", old, release)
		}
		return strings.Replace(release, old, with, 1)
	}
	const mac, key, damaged = "its MAC does not verify", "its MAC key has", "is damaged"
	before := b.objects(t)
	for name, c := range map[string]struct{ text, words string }{
		"usage": {signed(t, replace(`"sign": true`, `"sign": false`)), mac},
		"usage of a recipient": {signed(t, strings.Replace(softhsmtest.Read(t, b.file("nodes")), `"sign": false`,
			`"sign": true`, 1)),
			mac},
		"label":            {signed(t, replace(`"label": "release"`, `"label": "trusted"`)), mac},
		"id":               {signed(t, exchange(t, release, other, "id")), mac},
		"sensitive":        {signed(t, replace(`"sensitive": true`, `"sensitive": false`)), mac},
		"trusted wrapping": {signed(t, replace(`"wrapWithTrusted": true`, `"wrapWithTrusted": false`)), mac},
		"time":             {signed(t, replace(`"made": "2`, `"made": "1`)), mac},
		"certificate":      {signed(t, replace(field(t, release, "certificates"), `"certificates": `+string(second))), mac},
		"no certificate":   {signed(t, replace(field(t, release, "certificates"), `"certificates": ""`)), mac},
		"public key":       {signed(t, exchange(t, release, other, "publicKey", "certificates")), mac},
		"wrapped":          {signed(t, exchange(t, release, other, "wrapped")), mac},
		"another key":      {signed(t, exchange(t, release, other, "wrapped", "publicKey", "certificates")), mac},
		"another MAC":      {exchange(t, release, other, "hmacSHA256"), mac},
		"another MAC key":  {exchange(t, release, other, "key"), mac},
		"MAC and its key":  {exchange(t, release, other, "key", "hmacSHA256"), mac},
		"private as MAC key": {replace(field(t, release, "key"),
			strings.Replace(field(t, release, "wrapped"), "wrapped", "key", 1)), key},
		"no MAC key": {replace(field(t, release, "key"), `"key": ""`), key},
		"random MAC key": {replace(field(t, release, "key"),
			`"key": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=="`), "did not unwrap its MAC key"},
		"certificate's key": {signed(t, exchange(t, release, other, "certificates")),
			"its certificate belongs to another key"},
		"no checksum": {replace(`"sign": true`, `"sign": false`), damaged},
		"second name": {signed(t, replace(`"label": "release"`, "\"label\": \"trusted\",\n  \"label\": \"release\"")),
			damaged},
		"name in capitals": {signed(t, replace(`"label": "release"`, `"Label": "release"`)), damaged},
		"unknown name": {signed(t, replace(`"label": "release"`, "\"label\": \"release\",\n  \"use\": \"all\"")),
			damaged},
		"cut short":     {release[:len(release)/2], damaged},
		"longer":        {release + "{}", damaged},
		"huge":          {release + strings.Repeat(" ", 1<<18), "is larger than 262144 bytes"},
		"no MAC":        {strings.Replace(downgrade(t, release), `"version": 1`, `"version": 2`, 1), damaged},
		"older version": {downgrade(t, release), "version 1 has no MAC"},
		"newer version": {replace(`"version": 2`, `"version": 3`), "this program does not know version 3"},
	} {
		path := filepath.Join(t.TempDir(), "changed.json")
		softhsmtest.Write(t, path, c.text)
		flags := [][]string{nil}
		if name != "older version" {
			flags = append(flags, []string{"--unauthenticated"}) // it is for version 1 alone
		}
		for _, more := range flags {
			stdout, stderr, err := softhsmtest.Try(t, "", b.n.Plugin,
				append([]string{"key", "restore", path, "--token", "spare"}, more...)...)
			if err == nil || !strings.Contains(stderr, c.words) || strings.Contains(stderr, "test signature") ||
				stdout != "" {
				t.Errorf("%s %v: %v\n%s%s", name, more, err, stdout, stderr)
			}
			if after := b.objects(t); !slices.Equal(after, before) {
				t.Fatalf("%s %v: the objects were %v, and are %v", name, more, before, after)
			}
		}
	}
}

// TestBackupUsage restores keys of both kinds and usages. Each has the attributes that it had, and the command says
// what was proved of it.
func TestBackupUsage(t *testing.T) {
	softhsmtest.Parallel(t)
	keys := map[string][]string{
		"sign-ec": nil, "sign-rsa": {"--spec", "RSA-2048"}, "decrypt-ec": {"--usage", "decrypt"},
		"decrypt-rsa": {"--usage", "decrypt", "--spec", "RSA-2048"},
	}
	b := newBackedUp(t, keys)
	for label := range keys {
		_, stderr, err := softhsmtest.Try(t, "", b.n.Plugin, "key", "restore", b.file(label), "--token", "spare")
		signs := strings.HasPrefix(label, "sign")
		if err != nil || strings.Contains(stderr, "test signature verifies") != signs ||
			strings.Contains(stderr, "it decrypts what is encrypted") == signs {
			t.Errorf("%s: %v: %s", label, err, stderr)
		}
		was, is := usageOf(t, b.token, "signing", label), usageOf(t, b.token, "spare", label)
		if !slices.Equal(was, is) || is[0] != 1 {
			t.Errorf("%s: the attributes were %v, and are %v", label, was, is)
		}
	}
}

// TestRestoreKilled kills 'key restore' at one write of twelve, its own and the module's. What it leaves is no key, or
// one that is as narrow as it was; when that is deleted, the same command makes the key. (All 181 writes take minutes;
// they were tried once.)
func TestRestoreKilled(t *testing.T) {
	softhsmtest.Parallel(t)
	b := newBackedUp(t, map[string][]string{"release": nil})
	want := usageOf(t, b.token, "signing", "release")
	tokens, saved := filepath.Join(b.token.Dir, "tokens"), filepath.Join(t.TempDir(), "tokens")
	softhsmtest.Run(t, "cp", "-a", tokens, saved)
	restore := []string{"key", "restore", b.file("release"), "--token", "spare"}
	kills, left := 0, 0
	for n := 5; ; n += 12 {
		softhsmtest.Run(t, "rm", "-rf", tokens)
		softhsmtest.Run(t, "cp", "-a", saved, tokens)
		at, killed := killAt(t, n, "token.object", b.n.Plugin, restore...) // as in TestRotateKilled
		if !killed {
			break
		}
		kills++
		_, stderr, err := softhsmtest.Try(t, "", b.n.Plugin, restore...)
		if err != nil {
			if left++; !strings.Contains(stderr, "already has a key") {
				t.Errorf("killed at %s: %s", at, stderr)
			}
			if got := usageOf(t, b.token, "spare", "release"); !slices.Equal(got, want) {
				t.Errorf("killed at %s: the attributes are %v instead of %v", at, got, want)
			}
			b.run(t, "key", "delete", "pkcs11:token=spare;object=release", "--yes")
			b.run(t, restore...)
		}
		if got := usageOf(t, b.token, "spare", "release"); !slices.Equal(got, want) {
			t.Errorf("killed at %s, and restored: the attributes are %v instead of %v", at, got, want)
		}
	}
	t.Logf("killed %d times, and a key was left %d times", kills, left)
	if kills < 10 {
		t.Errorf("%d kills are too few", kills)
	}
}

// usageOf reads the attributes that say what a private key may be used for.
func usageOf(t *testing.T, token *softhsmtest.Token, tokenLabel, label string) (values []byte) {
	t.Helper()
	softhsmtest.InProcess(t, func() { values = readUsage(t, token, tokenLabel, label) })
	return values
}

func readUsage(t *testing.T, token *softhsmtest.Token, tokenLabel, label string) (values []byte) {
	t.Helper()
	module := pkcs11.New(token.Module)
	if module == nil {
		t.Fatalf("cannot load %s", token.Module)
	}
	defer module.Destroy()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(module.Initialize())
	defer func() { _ = module.Finalize() }()
	slots, err := module.GetSlotList(true)
	must(err)
	for _, slot := range slots {
		info, err := module.GetTokenInfo(slot)
		must(err)
		if info.Label != tokenLabel {
			continue
		}
		session, err := module.OpenSession(slot, pkcs11.CKF_SERIAL_SESSION)
		must(err)
		must(module.Login(session, pkcs11.CKU_USER, softhsmtest.PIN))
		must(module.FindObjectsInit(session, []*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_PRIVATE_KEY), pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		}))
		found, _, err := module.FindObjects(session, 2)
		must(err)
		must(module.FindObjectsFinal(session))
		if len(found) != 1 {
			t.Fatalf("%d private keys on %s have the label %s", len(found), tokenLabel, label)
		}
		for _, attribute := range []uint{ // the first is looked at by itself
			pkcs11.CKA_WRAP_WITH_TRUSTED, pkcs11.CKA_SENSITIVE, pkcs11.CKA_EXTRACTABLE, pkcs11.CKA_PRIVATE, pkcs11.CKA_SIGN,
			pkcs11.CKA_DECRYPT,
			pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE, pkcs11.CKA_SIGN_RECOVER,
		} {
			got, err := module.GetAttributeValue(session, found[0], []*pkcs11.Attribute{pkcs11.NewAttribute(attribute, nil)})
			must(err)
			values = append(values, got[0].Value...)
		}
		return values
	}
	t.Fatalf("there is no token %s", tokenLabel)
	return nil
}

// TestBackupUnauthenticated restores backups of version 1, which have no MAC, when that is asked for. What is shown is
// what is made.
func TestBackupUnauthenticated(t *testing.T) {
	softhsmtest.Parallel(t)
	b := newBackedUp(t, map[string][]string{"release": nil})
	release := softhsmtest.Read(t, b.file("release"))
	path := filepath.Join(b.dir, "old.json")
	softhsmtest.Write(t, path, downgrade(t, strings.Replace(release, `"sign": true`, `"sign": false`, 1)))
	_, stderr, err := softhsmtest.Try(t, "", b.n.Plugin, "key", "restore", path, "--token", "spare", "--unauthenticated")
	if err != nil || !strings.Contains(stderr, `label "release"`) || !strings.Contains(stderr, "usage decrypt") ||
		strings.Contains(stderr, "test signature") {
		t.Errorf("%v: %s", err, stderr)
	}
	b.run(t, "key", "delete", "pkcs11:token=spare;object=release", "--yes")
	softhsmtest.Write(t, path, downgrade(t, release))
	_, stderr, err = softhsmtest.Try(t, "", b.n.Plugin, "key", "restore", path, "--token", "spare", "--unauthenticated")
	if err != nil || !strings.Contains(stderr, "usage sign") || !strings.Contains(stderr, "test signature verifies") {
		t.Errorf("%v: %s", err, stderr)
	}
	// A wrapped key that is not that of the public key is found out when it is there, and goes.
	b.run(t, "key", "delete", "pkcs11:token=spare;object=release", "--yes")
	b.run(t, "key", "generate", "--token", "signing", "--label", "other", "--backup-key", "backup")
	b.run(t, "key", "backup", "pkcs11:token=signing;object=other", "--to", b.file("other"))
	softhsmtest.Write(t, path, downgrade(t, exchange(t, release, softhsmtest.Read(t, b.file("other")), "wrapped")))
	before := b.objects(t)
	_, stderr, err = softhsmtest.Try(t, "", b.n.Plugin, "key", "restore", path, "--token", "spare", "--unauthenticated")
	if err == nil || !strings.Contains(stderr, "a test signature does not verify") || !slices.Equal(before,
		b.objects(t)) {
		t.Errorf("%v: %s", err, stderr)
	}
}
