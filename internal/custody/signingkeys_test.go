package custody

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"testing"

	notation "github.com/notaryproject/notation-go/config"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestSigningKeysAsNotation compares the list with what Notation's own package writes and reads.
func TestSigningKeysAsNotation(t *testing.T) {
	path := useNotation(t)
	if keys, err := loadSigningKeys(); err != nil || len(keys.Keys) != 0 {
		t.Errorf("no list: %v, %v", keys, err)
	}
	release := "release <&>"
	theirs := &notation.SigningKeys{Default: &release, Keys: []notation.KeySuite{
		{Name: "file", X509KeyPair: &notation.X509KeyPair{KeyPath: "/k.pem", CertificatePath: "/c.pem"}},
		{Name: release, ExternalKey: &notation.ExternalKey{ID: "pkcs11:token=a;object=b", PluginName: "hsm",
			PluginConfig: map[string]string{"timeout": "5s", "pin-source": "env:PIN"}}},
		{Name: "other", ExternalKey: &notation.ExternalKey{ID: "1", PluginName: "other"}},
	}}
	if err := theirs.Save(); err != nil {
		t.Fatal(err)
	}
	written := must[[]byte](t)(os.ReadFile(path))
	keys := must[*signingKeys](t)(loadSigningKeys())
	if own := keys.own(); len(own) != 1 || own[0].Name != release || len(keys.Keys) != 3 {
		t.Errorf("%+v", keys)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := keys.save(); err != nil {
		t.Fatal(err)
	}
	if again := must[[]byte](t)(os.ReadFile(path)); string(again) != string(written) {
		t.Errorf("Notation writes %s, and this program %s", written, again)
	}
	if read := must[*notation.SigningKeys](t)(notation.LoadSigningKeys()); !reflect.DeepEqual(read, theirs) {
		t.Errorf("Notation reads %+v", read)
	}
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

// TestSigningKeysFields compares the fields of the file with those of the version of Notation that is linked: a new one
// has to be added here.
func TestSigningKeysFields(t *testing.T) {
	t.Parallel()
	fields := func(types ...any) map[string]bool {
		all := map[string]bool{}
		for _, v := range types {
			for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
				if tag := f.Tag.Get("json"); tag != "" {
					all[tag] = true
				}
			}
		}
		return all
	}
	ours := fields(signingKeys{}, signingKey{})
	if theirs := fields(notation.SigningKeys{}, notation.KeySuite{}); !reflect.DeepEqual(ours, theirs) {
		t.Errorf("Notation has %v, and this program %v", theirs, ours)
	}
}

// TestSigningKeysRefused refuses lists that Notation refuses, and lists of which a part would be lost by writing them.
func TestSigningKeysRefused(t *testing.T) {
	path := useNotation(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"no JSON": "{", "no name": `{"keys":[{"id":"a","pluginName":"hsm"}]}`,
		"two of a name":           `{"keys":[{"name":"a"},{"name":"a"}]}`,
		"a default of no key":     `{"default":"b","keys":[{"name":"a"}]}`,
		"an empty default":        `{"default":"","keys":[]}`,
		"an unknown field":        `{"keys":[],"version":2}`,
		"an unknown field of key": `{"keys":[{"name":"a","backup":true}]}`,
		"two values":              `{"keys":[]} {}`,
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if keys, err := loadSigningKeys(); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %+v, %v", name, keys, err)
		}
	}
	if err := os.WriteFile(path, []byte(`{"keys":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := loadSigningKeys(); err != nil {
		t.Error(err)
	}
	if err := os.Rename(path, path+".real"); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(path+".real", path); err != nil {
		t.Fatal(err)
	}
	if _, err := loadSigningKeys(); !failure.Is(err, failure.Invalid) {
		t.Errorf("a link, which Notation refuses: %v", err)
	}
	twice := &signingKeys{Keys: []signingKey{{Name: "a"}, {Name: "a"}}}
	if err := twice.save(); err == nil {
		t.Error("a list that Notation refuses was written")
	}
	if data, err := json.Marshal(&signingKeys{Keys: []signingKey{}}); err != nil || string(data) != `{"keys":[]}` {
		t.Errorf("%s, %v", data, err)
	}
}
