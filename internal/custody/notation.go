package custody

import (
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// resolve returns the settings of a signing key, as the plugin resolves them.
func resolve(ks *keystore.Keystore, k signingKey) (*keystore.Reference, error) {
	return ks.Resolve(k.ID, k.PluginConfig, config.PluginConfig)
}

// namesKey reports whether a reference matches a key of a token. An attribute that the reference leaves out matches any
// key, so a reference that could name the key counts as one that does.
func namesKey(ks *keystore.Keystore, reference config.URI, t key.Token, k key.Info) bool {
	return ks.Matches(reference, t) && (reference.Object == "" || reference.Object == k.Label) &&
		(len(reference.ID) == 0 || string(reference.ID) == string(k.ID))
}

// registeredAs returns the names under which Notation signs with a key of a token, itself or through a broker. It fails
// if an entry of this plugin cannot be resolved, since that entry could name the key.
func registeredAs(ks *keystore.Keystore, t key.Token, k key.Info) ([]string, error) {
	keys, err := loadSigningKeys()
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range keys.own() {
		s, err := config.Resolve(entry.ID, entry.PluginConfig, config.PluginConfig) // as Notation uses it, not Direct
		if err != nil {
			f := failure.From(err)
			return nil, failure.New(f.Kind, "cannot resolve Notation's signing key %q: %w", entry.Name, f).WithHint(f.Hint)
		}
		if namesKey(ks, s.Key, t, k) {
			names = append(names, entry.Name)
		}
	}
	return names, nil
}
