package custody

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestDelete deletes a key with its own certificates once that is confirmed, and nothing else.
func TestDelete(t *testing.T) {
	m := fixture(t, "a")
	s := generate(t, m, "a", "release")
	generate(t, m, "a", "other")
	var shown Deletion
	err := Delete(t.Context(), s, t.TempDir(), func(d Deletion) error { shown = d; return errInjected })
	if err == nil || !m.Has("a", "release") {
		t.Errorf("not confirmed, and deleted: %v", err)
	}
	if shown.Key.Label != "release" || len(shown.Certificates) != 1 || len(shown.Consequences) != 3 {
		t.Errorf("%+v", shown)
	}
	if err := Delete(t.Context(), s, t.TempDir(), func(Deletion) error { return nil }); err != nil {
		t.Fatal(err)
	}
	if m.Has("a", "release") || !m.Has("a", "other") {
		t.Error("the wrong key was deleted")
	}
	if other, err := Show(t.Context(), m.Reference("a", "other")); err != nil || !other.Usable {
		t.Errorf("the other key: %+v, %v", other, err)
	}
}

// TestDeleteRefused deletes no key that Notation signs with, that an unfinished rotation has made, or that a CA has.
func TestDeleteRefused(t *testing.T) {
	confirm := func(Deletion) error { return nil }
	for name, c := range map[string]struct {
		reference string // in Notation's list; "" for none
		text      string
	}{
		"by label":          {"pkcs11:token=a;object=release", "Notation signs with it, as signing"},
		"by id":             {"pkcs11:token=a;id=%01%02", "Notation signs with it, as signing"},
		"any key":           {"pkcs11:token=a", "Notation signs with it, as signing"},
		"any token":         {"pkcs11:object=release", "Notation signs with it, as signing"},
		"another label":     {"pkcs11:token=a;object=other", ""},
		"another id":        {"pkcs11:token=a;object=release;id=%01", ""},
		"another token":     {"pkcs11:token=b;object=release", ""},
		"not this plugin's": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			m := fixture(t, "a", "b")
			request := KeyRequest{Spec: "EC-256", Usage: "sign", Label: "release", ID: "0102"}
			if _, _, err := Generate(t.Context(), m.Reference("a", ""), request); err != nil {
				t.Fatal(err)
			}
			keys := &signingKeys{Keys: []signingKey{{Name: "other", ID: "pkcs11:token=a;object=release", PluginName: "other"}}}
			if c.reference != "" {
				keys.Keys = append(keys.Keys, signingKey{Name: "signing", ID: c.reference, PluginName: "hsm"})
			}
			if err := keys.save(); err != nil {
				t.Fatal(err)
			}
			err := Delete(t.Context(), m.Reference("a", "release"), t.TempDir(), confirm)
			if c.text == "" && (err != nil || m.Has("a", "release")) {
				t.Errorf("not deleted: %v", err)
			}
			if c.text != "" {
				wantFailure(t, name, err, failure.Denied, c.text)
				if !m.Has("a", "release") {
					t.Error("it was deleted")
				}
			}
		})
	}
	t.Run("unresolvable", func(t *testing.T) {
		m := fixture(t, "a")
		generate(t, m, "a", "release")
		keys := &signingKeys{Keys: []signingKey{{Name: "signing", ID: "unknown alias", PluginName: "hsm"}}}
		if err := keys.save(); err != nil {
			t.Fatal(err)
		}
		err := Delete(t.Context(), m.Reference("a", "release"), t.TempDir(), confirm)
		wantFailure(t, "an entry that could be the key", err, failure.NotFound, "cannot resolve Notation's signing key")
	})
	t.Run("rotation", func(t *testing.T) {
		m := fixture(t, "a")
		s := generate(t, m, "a", "release-2")
		key, err := Show(t.Context(), s)
		if err != nil {
			t.Fatal(err)
		}
		journal := must[string](t)(journalPath("release"))
		if err := os.MkdirAll(filepath.Dir(journal), 0o700); err != nil {
			t.Fatal(err)
		}
		for name, r := range map[string]Rotation{
			"id": {Name: "release", ID: key.ID}, "URI": {Name: "release", NewID: key.URI},
		} {
			if err := os.WriteFile(journal, must[[]byte](t)(json.Marshal(r)), 0o600); err != nil {
				t.Fatal(err)
			}
			err = Delete(t.Context(), s, t.TempDir(), confirm)
			wantFailure(t, name, err, failure.Denied, `an unfinished rotation of "release"`)
		}
		if err := os.WriteFile(journal, []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
		wantFailure(t, "a damaged journal", Delete(t.Context(), s, t.TempDir(), confirm), failure.Invalid, "is damaged")
		if !m.Has("a", "release-2") {
			t.Error("it was deleted")
		}
	})
	t.Run("CA", func(t *testing.T) {
		m := fixture(t, "a")
		folder := newCA(t, m, "a", "root")
		err := Delete(t.Context(), m.Reference("a", "root"), folder, confirm)
		wantFailure(t, "a CA's key", err, failure.Denied, `the CA "root" signs with it`)
		if !m.Has("a", "root") {
			t.Error("it was deleted")
		}
	})
	t.Run("list that cannot be read", func(t *testing.T) {
		m := fixture(t, "a")
		s := generate(t, m, "a", "release")
		path := must[string](t)(signingKeysPath())
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("?"), 0o600); err != nil {
			t.Fatal(err)
		}
		err := Delete(t.Context(), s, t.TempDir(), confirm)
		wantFailure(t, "Notation's list", err, failure.Invalid, "list of signing keys")
		if strings.Contains(err.Error(), "deleted") || !m.Has("a", "release") {
			t.Error("it was deleted")
		}
	})
}
