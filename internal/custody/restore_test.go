package custody

import (
	"crypto"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// wrappingTokens gives the tokens "a" and "b" one wrapping key and returns the paths of its shares.
func wrappingTokens(t *testing.T, m *keystoretest.Module) []string {
	t.Helper()
	_, paths, err := NewWrappingKey(t.Context(), m.Reference("a", ""), "env:SO",
		Sharing{Label: "backup", Shares: 3, Threshold: 2, Folder: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	_, err = RestoreWrappingKey(t.Context(), m.Reference("b", ""), "env:SO", ShareFiles{Files: paths[1:]})
	if err != nil {
		t.Fatal(err)
	}
	return paths
}

// backedUp generates a key on token "a" that can be backed up, with a certificate if it signs, and returns its backup.
func backedUp(t *testing.T, m *keystoretest.Module, spec, usage string) string {
	t.Helper()
	_, _, err := Generate(t.Context(), m.Reference("a", ""),
		KeyRequest{Spec: spec, Usage: usage, Label: spec + usage, ID: "0102", BackupKey: "backup"})
	if err != nil {
		t.Fatal(err)
	}
	s := m.Reference("a", spec+usage)
	if usage == "sign" {
		data, _, err := SelfSign(t.Context(), s, testSubject, 30)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := Import(t.Context(), s, file(t, data)); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "backup.json")
	if w, err := Backup(t.Context(), s, "pkcs11:token=a;object=backup", path); err != nil || w.Label != "backup" {
		t.Fatal(w, err)
	}
	return path
}

// TestBackupRestore restores keys of every kind on another token, with their certificates.
func TestBackupRestore(t *testing.T) {
	for _, spec := range []string{"EC-256", "RSA-2048"} {
		for _, usage := range []string{"sign", "decrypt"} {
			m := fixture(t, "a", "b")
			wrappingTokens(t, m)
			path := backedUp(t, m, spec, usage)
			if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
				t.Errorf("%v, %v", info.Mode(), err)
			}
			r, err := Restore(t.Context(), m.Reference("b", ""), path, nil)
			certificates := map[string]int{"sign": 1}[usage]
			if err != nil || string(r.Usage) != usage || r.Certificates != certificates ||
				!strings.Contains(r.URI, "token=b") {
				t.Errorf("%s %s: %+v, %v", spec, usage, r, err)
			}
			one, err1 := Show(t.Context(), m.Reference("a", spec+usage))
			other, err2 := Show(t.Context(), m.Reference("b", spec+usage))
			if err1 != nil || err2 != nil || one.ID != other.ID || (one.Certificate == nil) != (other.Certificate == nil) ||
				one.Usable != other.Usable {
				t.Errorf("%+v, %v became %+v, %v", one, err1, other, err2)
			}
			_, err = Restore(t.Context(), m.Reference("b", ""), path, nil)
			wantFailure(t, "a second time", err, failure.Conflict, "already has a key")
			_, err = Backup(t.Context(), m.Reference("a", spec+usage), "", path)
			wantFailure(t, "a file that exists", err, failure.Conflict, "it exists already")
		}
	}
}

// TestBackupRefused refuses keys that cannot leave the module, and wrapping keys that are not on its token.
func TestBackupRefused(t *testing.T) {
	m := fixture(t, "a", "b")
	wrappingTokens(t, m)
	s := generate(t, m, "a", "plain")
	path := filepath.Join(t.TempDir(), "backup.json")
	_, err := Backup(t.Context(), s, "", path)
	wantFailure(t, "not extractable", err, failure.Denied, "generated as not extractable")
	_, err = Backup(t.Context(), s, "pkcs11:token=b;object=backup", path)
	wantFailure(t, "wrapping key elsewhere", err, failure.Invalid, `is not on the token "a"`)
	backedUp(t, m, "EC-256", "sign")
	m.ShowInfo(func(i *key.Info) { i.Label = "\xff" })
	_, err = Backup(t.Context(), m.Reference("a", "EC-256sign"), "", path)
	wantFailure(t, "a label that JSON cannot hold", err, failure.Invalid, "no label in UTF-8")
	if exists(path) {
		t.Error("a backup was written")
	}
}

// change changes a backup and gives it the checksum and the MAC that the holder of the wrapping key could make.
func change(t *testing.T, m *keystoretest.Module, path string, edit func(*backupFile)) string {
	t.Helper()
	b := must[*backupFile](t)(readBackup(path))
	edit(b)
	b.Checksum = must[string](t)(b.checksum())
	store := must[keystore.Store](t)(m.Reference("a", "").Open(t.Context()))
	defer store.Close()
	w := must[key.WrappingKey](t)(wrappingKey(t, store))
	mac := must[key.MAC](t)(store.Authenticate(t.Context(), authenticatedText(b.Checksum), b.Mechanism, w))
	b.MAC = &backupMAC{mac.Key, mac.Value}
	return file(t, must[[]byte](t)(json.Marshal(b)))
}

func wrappingKey(t *testing.T, store keystore.Store) (key.WrappingKey, error) {
	t.Helper()
	reference, err := wrappingReference(nil, store, "backup")
	if err != nil {
		return key.WrappingKey{}, err
	}
	return store.WrappingKey(t.Context(), reference)
}

// TestRestoreNotProven deletes a restored key that does not sign, or decrypt, for the public key in the backup. The
// error says so, and whether the key is still on the token.
func TestRestoreNotProven(t *testing.T) {
	for usage, words := range map[string]string{
		"sign": "a test signature does not verify", "decrypt": "does not decrypt what is encrypted to its public half",
	} {
		m := fixture(t, "a", "b")
		wrappingTokens(t, m)
		path := backedUp(t, m, "EC-256", usage)
		spec, _ := key.ParseSpec("EC-256")
		other := must[crypto.Signer](t)(keystoretest.NewKey(spec))
		path = change(t, m, path, func(b *backupFile) {
			b.PublicKey, b.Certificates = publicPEM(t, other.Public()), ""
		})
		_, err := Restore(t.Context(), m.Reference("b", ""), path, nil)
		wantFailure(t, usage, err, failure.Internal, words)
		if m.Has("b", "EC-256"+usage) || strings.Contains(err.Error(), "still on the token") {
			t.Errorf("%s: the key is on the token: %v", usage, err)
		}
		discards := 0
		m.Before("Discard", func() error {
			if discards++; discards == 2 { // the first one is before the key is made
				return errInjected
			}
			return nil
		})
		_, err = Restore(t.Context(), m.Reference("b", ""), path, nil)
		wantFailure(t, usage+", not deleted", err, failure.Internal, "the key is still on the token")
	}
}

func publicPEM(t *testing.T, public crypto.PublicKey) string {
	t.Helper()
	return string(must[[]byte](t)(encodePublic(public)))
}

// TestRestoreAttributes deletes a restored key that the module gave attributes by which it could leave the module
// unprotected, another usage, or another name.
func TestRestoreAttributes(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		usage  string
		change func(*key.Info)
	}{
		"not sensitive":          {"sign", func(i *key.Info) { i.Sensitive = &no }},
		"sensitive not shown":    {"sign", func(i *key.Info) { i.Sensitive = nil }},
		"wrapped by any key":     {"sign", func(i *key.Info) { i.WrapWithTrusted = &no }},
		"wrapping not shown":     {"sign", func(i *key.Info) { i.WrapWithTrusted = nil }},
		"not extractable":        {"sign", func(i *key.Info) { i.Extractable = &no }},
		"does not sign":          {"sign", func(i *key.Info) { i.Sign = &no }},
		"decrypts as well":       {"sign", func(i *key.Info) { i.Decrypt = &yes }},
		"unwraps as well":        {"sign", func(i *key.Info) { i.Unwrap = &yes }},
		"derives as well":        {"sign", func(i *key.Info) { i.Derive = &yes }},
		"signs as well":          {"decrypt", func(i *key.Info) { i.Sign = &yes }},
		"another label":          {"sign", func(i *key.Info) { i.Label = "other" }},
		"another id":             {"sign", func(i *key.Info) { i.ID = []byte("other") }},
		"a recipient's key, not": {"decrypt", func(i *key.Info) { i.Derive = &no }},
	} {
		m := fixture(t, "a", "b")
		wrappingTokens(t, m)
		path := backedUp(t, m, "EC-256", c.usage)
		m.ShowInfo(c.change)
		_, err := Restore(t.Context(), m.Reference("b", ""), path, nil)
		wantFailure(t, name, err, failure.Internal, "cannot restore the key")
		if m.Has("b", "EC-256"+c.usage) {
			t.Errorf("%s: the key is kept", name)
		}
	}
}

// TestRestoreForged makes nothing from a backup whose MAC does not verify, or that has none.
func TestRestoreForged(t *testing.T) {
	m := fixture(t, "a", "b")
	wrappingTokens(t, m)
	path := backedUp(t, m, "EC-256", "sign")
	b := must[*backupFile](t)(readBackup(path))
	b.Label = "trusted"
	b.Checksum = must[string](t)(b.checksum())
	forged := file(t, must[[]byte](t)(json.Marshal(b)))
	_, err := Restore(t.Context(), m.Reference("b", ""), forged, nil)
	if err == nil || !strings.Contains(err.Error(), "cannot authenticate the backup") {
		t.Errorf("a forged backup: %v", err)
	}
	for name, edit := range map[string]func(*backupFile){
		"a new version without a MAC": func(b *backupFile) { b.MAC = nil },
		"an old version with a MAC":   func(b *backupFile) { b.Version = unauthenticatedVersion },
		"version 0":                   func(b *backupFile) { b.Version, b.MAC = 0, nil },
		"another checksum":            func(b *backupFile) { b.Label = "other" },
	} {
		changed := *b
		edit(&changed)
		if name != "another checksum" {
			changed.Checksum = must[string](t)(changed.checksum())
		}
		_, err := parseBackup("backup", must[[]byte](t)(json.Marshal(changed)))
		wantFailure(t, name, err, failure.Invalid, "is damaged")
	}
	b.Version, b.MAC = unauthenticatedVersion, nil
	b.Checksum = must[string](t)(b.checksum())
	older := file(t, must[[]byte](t)(json.Marshal(b)))
	_, err = Restore(t.Context(), m.Reference("b", ""), older, nil)
	wantFailure(t, "version 1", err, failure.Denied, "version 1 has no MAC")
	var shown Unauthenticated
	refuse := func(u Unauthenticated) error { shown = u; return errInjected }
	_, err = Restore(t.Context(), m.Reference("b", ""), older, refuse)
	if shown.Label != "trusted" || shown.Usage != key.Sign || !strings.Contains(shown.Certificate, "release") {
		t.Errorf("shown is %+v", shown)
	}
	if err == nil || m.Calls("Unwrap") != 0 {
		t.Errorf("%v, and %d keys were unwrapped", err, m.Calls("Unwrap"))
	}
	accept := func(Unauthenticated) error { return nil }
	if _, err := Restore(t.Context(), m.Reference("b", ""), older, accept); err != nil {
		t.Error(err)
	}
	_, err = Restore(t.Context(), m.Reference("b", ""), path+".none", nil)
	wantFailure(t, "no file", err, failure.NotFound, "cannot read "+path+".none: no such file")
}

// TestBackupContents refuses backups whose fields contradict each other.
func TestBackupContents(t *testing.T) {
	m := fixture(t, "a", "b")
	wrappingTokens(t, m)
	path := backedUp(t, m, "EC-256", "sign")
	spec, _ := key.ParseSpec("EC-384")
	other := must[crypto.Signer](t)(keystoretest.NewKey(spec))
	for name, edit := range map[string]func(*backupFile){
		"no public key": func(b *backupFile) { b.PublicKey = "none" },
		"a damaged public key": func(b *backupFile) {
			b.PublicKey = "-----BEGIN PUBLIC KEY-----\nAA==\n-----END PUBLIC KEY-----\n"
		},
		"another spec":              func(b *backupFile) { b.Spec = "EC-384" },
		"an id not in hex":          func(b *backupFile) { b.ID = "x" },
		"a wrapping id not in hex":  func(b *backupFile) { b.WrappingKey.ID = "x" },
		"no certificate":            func(b *backupFile) { b.Certificates = "none" },
		"another key's certificate": func(b *backupFile) { b.Spec, b.PublicKey = "EC-384", publicPEM(t, other.Public()) },
	} {
		_, err := Restore(t.Context(), m.Reference("b", ""), change(t, m, path, edit), nil)
		wantFailure(t, name, err, failure.Invalid, "is damaged")
	}
	if labels := keysOf(t, m, "b"); len(labels) != 0 {
		t.Errorf("the keys are %q", labels)
	}
}

// TestGenerateWrappable deletes a new key again if the module ignores CKA_WRAP_WITH_TRUSTED, and makes none if the
// token has no such wrapping key.
func TestGenerateWrappable(t *testing.T) {
	m := fixture(t, "a", "b")
	request := KeyRequest{Spec: "EC-256", Usage: "sign", Label: "release", BackupKey: "backup"}
	if _, _, err := Generate(t.Context(), m.Reference("a", ""), request); !failure.Is(err, failure.NotFound) {
		t.Errorf("no wrapping key: %v", err)
	}
	wrappingTokens(t, m)
	no := false
	for name, change := range map[string]func(*key.Info){
		"false": func(i *key.Info) { i.WrapWithTrusted = &no }, "not shown": func(i *key.Info) { i.WrapWithTrusted = nil },
	} {
		m.ShowInfo(change)
		_, _, err := Generate(t.Context(), m.Reference("a", ""), request)
		wantFailure(t, name, err, failure.Unsupported, "the new key was deleted again")
		if m.Has("a", "release") {
			t.Errorf("%s: the key is kept", name)
		}
	}
	m.ShowInfo(nil)
	if _, _, err := Generate(t.Context(), m.Reference("a", ""), request); err != nil || !m.Has("a", "release") {
		t.Error(err)
	}
}

// TestWrappingKeyShares puts a wrapping key on a token from enough of its shares, and nothing from others.
func TestWrappingKeyShares(t *testing.T) {
	m := fixture(t, "a", "b", "c")
	paths := wrappingTokens(t, m)
	other := fixture(t, "a", "b")
	others := wrappingTokens(t, other)
	imports := m.Calls("ImportWrapping")
	changed := must[Share](t)(parseShare("share", must[[]byte](t)(os.ReadFile(paths[0]))))
	changed.Value = must[Share](t)(parseShare("share", must[[]byte](t)(os.ReadFile(others[0])))).Value
	changedPath := file(t, must[[]byte](t)(json.Marshal(changed)))
	for name, c := range map[string]struct {
		files []string
		kind  failure.Kind
		text  string
	}{
		"none":          {nil, failure.Invalid, "without shares"},
		"too few":       {paths[:1], failure.Invalid, "it needs 2 shares, and 1 were given"},
		"one twice":     {[]string{paths[0], paths[0]}, failure.Invalid, "are the same share"},
		"changed":       {[]string{paths[1], changedPath}, failure.Invalid, changedPath + " is damaged: its value was"},
		"two keys'":     {[]string{paths[0], others[1]}, failure.Invalid, "do not belong together"},
		"no such file":  {[]string{paths[0], paths[0] + ".none"}, failure.NotFound, "cannot read"},
		"too many":      {slices.Repeat(paths[:1], sharesLimit+1), failure.Invalid, "at most 100"},
		"not a share":   {[]string{file(t, []byte("{}")), paths[0]}, failure.Invalid, "is damaged"},
		"newer version": {[]string{file(t, []byte(`{"version":3}`)), paths[0]}, failure.Unsupported, "version 3"},
	} {
		_, err := RestoreWrappingKey(t.Context(), m.Reference("c", ""), "env:SO", ShareFiles{Files: c.files})
		wantFailure(t, name, err, c.kind, c.text)
	}
	if m.Calls("ImportWrapping") != imports {
		t.Error("a wrapping key was put on the token")
	}
	for name, sharing := range map[string]Sharing{
		"no label":        {Shares: 3, Threshold: 2, Folder: t.TempDir()},
		"threshold 1":     {Label: "other", Shares: 3, Threshold: 1, Folder: t.TempDir()},
		"threshold 4":     {Label: "other", Shares: 3, Threshold: 4, Folder: t.TempDir()},
		"101 shares":      {Label: "other", Shares: 101, Threshold: 4, Folder: t.TempDir()},
		"one custodian":   {Label: "other", Shares: 2, Threshold: 2, Folder: t.TempDir(), Custodians: []string{"age1"}},
		"a long label":    {Label: strings.Repeat("x", 1<<14), Shares: 2, Threshold: 2, Folder: t.TempDir()},
		"label not UTF-8": {Label: "\xff", Shares: 2, Threshold: 2, Folder: t.TempDir()},
	} {
		_, _, err := NewWrappingKey(t.Context(), m.Reference("c", ""), "env:SO", sharing)
		if !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestWrappingKeyNotImported removes the shares of a key that is on no token, and replaces no file.
func TestWrappingKeyNotImported(t *testing.T) {
	m := fixture(t, "a")
	sharing := Sharing{Label: "backup", Shares: 2, Threshold: 2, Folder: t.TempDir(),
		Custodians: []string{newAge(t).Recipient().String(), newAge(t).Recipient().String()}}
	m.Fail("ImportWrapping", errInjected)
	if _, _, err := NewWrappingKey(t.Context(), m.Reference("a", ""), "env:SO", sharing); err == nil {
		t.Fatal("no failure")
	}
	if left, err := os.ReadDir(sharing.Folder); err != nil || len(left) != 0 {
		t.Errorf("shares are left: %v, %v", left, err)
	}
	m.Fail("ImportWrapping", nil)
	_, paths, err := NewWrappingKey(t.Context(), m.Reference("a", ""), "env:SO", sharing)
	if err != nil || len(paths) != 2 || !strings.HasSuffix(paths[0], "backup-share-1-of-2.age") {
		t.Fatal(paths, err)
	}
	_, _, err = NewWrappingKey(t.Context(), m.Reference("a", ""), "env:SO", sharing)
	wantFailure(t, "shares that exist", err, failure.Conflict, "it exists already")
}

// TestShareInModule decrypts a share with a custodian's key in a module.
func TestShareInModule(t *testing.T) {
	m := fixture(t, "a", "b", "carol")
	_, _, err := Generate(t.Context(), m.Reference("carol", ""),
		KeyRequest{Spec: "EC-256", Usage: "decrypt", Label: "share"})
	if err != nil {
		t.Fatal(err)
	}
	public, err := ExportPublic(t.Context(), m.Reference("carol", "share"))
	if err != nil {
		t.Fatal(err)
	}
	identity := newAge(t)
	_, paths, err := NewWrappingKey(t.Context(), m.Reference("a", ""), "env:SO", Sharing{Label: "backup", Shares: 2,
		Threshold: 2, Folder: t.TempDir(), Custodians: []string{"pubkey:" + file(t, public), identity.Recipient().String()}})
	if err != nil {
		t.Fatal(err)
	}
	carol, age := "pkcs11:token=carol;object=share", file(t, []byte(identity.String()))
	for name, c := range map[string]struct {
		identities []string
		text       string
	}{
		"none":       {nil, "cannot decrypt the share"},
		"age alone":  {[]string{age}, "without a key in a module"},
		"carol":      {[]string{carol}, "without an age or SSH identity"},
		"other age":  {[]string{carol, file(t, []byte(newAge(t).String()))}, "no identity can decrypt"},
		"other key":  {[]string{"pkcs11:token=carol;object=none", age}, "no identity can decrypt"},
		"both":       {[]string{carol, age}, ""},
		"no such id": {[]string{age + ".none"}, "cannot read"},
	} {
		w, err := RestoreWrappingKey(t.Context(), m.Reference("b", ""), "env:SO",
			ShareFiles{Files: paths, Identities: c.identities})
		switch {
		case c.text == "" && (err != nil || w.Label != "backup"):
			t.Errorf("%s: %+v, %v", name, w, err)
		case c.text != "" && (err == nil || !strings.Contains(err.Error(), c.text)):
			t.Errorf("%s: %v", name, err)
		}
	}
}
