package custody

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// signingKeys is the content of signingkeys.json, Notation's list of signing keys. Notation's own package for it is not
// used: the code that it links makes every start of the plugin slower.
type signingKeys struct {
	Default *string      `json:"default,omitempty"` // name of the key that signs when none is named
	Keys    []signingKey `json:"keys"`
}

// signingKey is an entry of the list: a key in files, or a key that a plugin reaches.
type signingKey struct {
	Name string `json:"name"`

	KeyPath         string `json:"keyPath,omitempty"`
	CertificatePath string `json:"certPath,omitempty"`

	ID           string            `json:"id,omitempty"` // key reference: a URI or an alias
	PluginName   string            `json:"pluginName,omitempty"`
	PluginConfig map[string]string `json:"pluginConfig,omitempty"`
}

// isOwn reports whether Notation signs with the key through this plugin.
func (k signingKey) isOwn() bool { return k.PluginName == config.PluginName }

const signingKeysLimit = 1 << 20 // bytes; an entry has some hundreds

// signingKeysPath returns the path of signingkeys.json.
func signingKeysPath() (string, error) {
	folder, err := folders.NotationConfig()
	return filepath.Join(folder, dir.PathSigningKeys), err
}

// loadSigningKeys reads Notation's list of signing keys. A list that does not exist is empty.
func loadSigningKeys() (*signingKeys, error) {
	path, err := signingKeysPath()
	if err != nil {
		return nil, err
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &signingKeys{Keys: []signingKey{}}, nil
	case err != nil:
		return nil, unreadable(path, err)
	case !info.Mode().IsRegular():
		return nil, unreadable(path, errors.New("it is not a regular file, and Notation reads no other"))
	}
	data, err := bound.ReadFile(path, signingKeysLimit)
	if err != nil {
		return nil, unreadable(path, err)
	}
	keys, err := parseSigningKeys(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot use Notation's list of signing keys %s: %w", path, err).
			WithHint("correct the file")
	}
	return keys, nil
}

// parseSigningKeys reads signingkeys.json. An unknown field is refused, since it would be lost when the list is
// written.
func parseSigningKeys(data []byte) (*signingKeys, error) {
	var keys signingKeys
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&keys); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("more than one JSON value")
	}
	if keys.Keys == nil {
		keys.Keys = []signingKey{}
	}
	return &keys, keys.check()
}

// check fails if Notation would refuse the list: a key without a name, two keys with one name, or a default key that is
// not in the list.
func (s *signingKeys) check() error {
	names := map[string]bool{}
	for _, k := range s.Keys {
		switch {
		case k.Name == "":
			return errors.New("a key has no name")
		case names[k.Name]:
			return fmt.Errorf("two keys have the name %q", k.Name)
		}
		names[k.Name] = true
	}
	if s.Default != nil && !names[*s.Default] {
		return fmt.Errorf("the default key %q does not exist", *s.Default)
	}
	return nil
}

// save replaces the file in one step, as Notation writes it.
func (s *signingKeys) save() error {
	path, err := signingKeysPath()
	if err != nil {
		return err
	}
	if err := s.check(); err != nil {
		return failure.New(failure.Internal, "cannot write %s: %w", path, err)
	}
	data, err := json.MarshalIndent(s, "", "    ")
	if err != nil {
		return err
	}
	return state.Write(path, append(data, '\n'), 0o600)
}

// find returns the entry of a name, or nil.
func (s *signingKeys) find(name string) *signingKey {
	i := slices.IndexFunc(s.Keys, func(k signingKey) bool { return k.Name == name })
	if i < 0 {
		return nil
	}
	return &s.Keys[i]
}

// findOwn returns the entry of a name, and fails unless it is a key of this plugin.
func (s *signingKeys) findOwn(name string) (signingKey, error) {
	entry := s.find(name)
	if entry == nil {
		return signingKey{}, failure.New(failure.NotFound, "Notation has no signing key %q", name).
			WithHint("list the signing keys with: notation key list")
	}
	if !entry.isOwn() {
		return signingKey{}, failure.New(failure.Invalid, "Notation's signing key %q is not a key of this plugin", name).
			WithHint("name a signing key whose plugin is " + config.PluginName)
	}
	return *entry, nil
}

// own returns the entries of this plugin.
func (s *signingKeys) own() []signingKey {
	return slices.DeleteFunc(slices.Clone(s.Keys), func(k signingKey) bool { return !k.isOwn() })
}
