package custody

import (
	"encoding/json"
	"path/filepath"

	notation "github.com/notaryproject/notation-go/config"
	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// signingKeys reads Notation's list of signing keys.
func signingKeys() (*notation.SigningKeys, error) {
	if _, err := folders.NotationConfig(); err != nil {
		return nil, err
	}
	keys, err := notation.LoadSigningKeys()
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read Notation's signing keys: %w", err).
			WithHint("mend or remove signingkeys.json in Notation's configuration directory")
	}
	return keys, nil
}

// saveSigningKeys replaces Notation's list in one step. Notation's own way to save it empties the file first.
func saveSigningKeys(keys *notation.SigningKeys) error {
	folder, err := folders.NotationConfig()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(keys, "", "    ")
	if err != nil {
		return err
	}
	return state.Write(filepath.Join(folder, dir.PathSigningKeys), append(data, '\n'), 0o600)
}

// ours are the signing keys that Notation uses with this plugin.
func ours(keys *notation.SigningKeys) []notation.KeySuite {
	var found []notation.KeySuite
	if keys == nil {
		return nil
	}
	for _, k := range keys.Keys {
		if k.ExternalKey != nil && k.PluginName == config.PluginName {
			found = append(found, k)
		}
	}
	return found
}

// registered returns the signing key of a name, which has to be one of this plugin.
func registered(keys *notation.SigningKeys, name string) (notation.KeySuite, error) {
	entry, err := keys.Get(name)
	if err != nil {
		return entry, failure.New(failure.Invalid, "Notation has no signing key %q", name).
			WithHint("see them with: notation key list")
	}
	if entry.ExternalKey == nil || entry.PluginName != config.PluginName {
		return entry, failure.New(failure.Invalid, "Notation's signing key %q is not one of this plugin", name).
			WithHint("name one whose plugin is " + config.PluginName)
	}
	return entry, nil
}

// resolve finds the settings of a signing key as the plugin will.
func resolve(ks *keystore.Keystore, k notation.KeySuite) (*keystore.Reference, error) {
	return ks.Resolve(k.ID, k.PluginConfig, config.PluginConfig)
}

// namesKey reports whether a reference is to this key on this token. One that leaves something out may be to this key,
// so it is.
func namesKey(ks *keystore.Keystore, reference config.URI, t key.Token, k key.Info) bool {
	return ks.Matches(reference, t) && (reference.Object == "" || reference.Object == k.Label) &&
		(len(reference.ID) == 0 || string(reference.ID) == string(k.ID))
}

// registeredAs returns the names under which Notation signs with a key of a token. An entry that can't be read could be
// anything, so it is an error.
func registeredAs(ks *keystore.Keystore, t key.Token, k key.Info) ([]string, error) {
	keys, err := signingKeys()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range ours(keys) {
		s, err := resolve(ks, entry)
		if err != nil {
			f := failure.From(err)
			return nil, failure.New(f.Kind, "the signing key %q of Notation can't be read: %w", entry.Name, f).WithHint(f.Hint)
		}
		if namesKey(ks, s.Key, t, k) {
			names = append(names, entry.Name)
		}
	}
	return names, nil
}
