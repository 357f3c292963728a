package custody

import (
	"context"
	"maps"
	"os"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Install copies this program to where Notation looks for plugins and returns the place. It replaces another version,
// in one step, so that a signature under way keeps the program it started with.
func Install() (path string, err error) {
	self, path, err := places()
	if err != nil {
		return "", err
	}
	if same(self, path) {
		return path, nil
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return "", failure.New(failure.Internal, "can't read this program's own file: %w", err).WithHint("copy it by hand")
	}
	return path, state.Write(path, program, 0o755)
}

// places returns this program's own file, and the one that Notation starts.
func places() (self, path string, err error) {
	if self, err = os.Executable(); err != nil {
		return "", "", failure.New(failure.Internal, "can't find this program's own file: %w", err).
			WithHint("copy it by hand")
	}
	plugins, err := folders.NotationPlugins()
	if err != nil {
		return "", "", err
	}
	return self, filepath.Join(plugins, config.PluginName, "notation-"+config.PluginName), nil
}

func same(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// Register adds a signing key to Notation's list, under a name of Notation's, with the settings as its plugin config.
// It returns false when the very same entry is there already. The programs that reference and settings name are listed
// in the config file, of which say is told: in Notation's list they count for nothing. The settings are checked as the
// plugin will check them.
func Register(
	ctx context.Context, name, reference string, given map[string]string, makeDefault bool,
	say func(format string, args ...any),
) (added bool, err error) {
	stored, err := config.Lasting(given) // Notation starts the plugin wherever the user happens to be
	if err != nil {
		return false, err
	}
	keys, err := loadSigningKeys()
	if err != nil {
		return false, err
	}
	existing := keys.find(name)
	if existing != nil && (existing.ID != reference || !existing.isOwn() ||
		!maps.Equal(existing.PluginConfig, stored)) {
		return false, failure.New(failure.Conflict, "Notation has another signing key named %q", name).
			WithHint("choose another --key-name, or remove that key with: notation key delete " + name)
	}
	if err := Allow(ctx, reference, stored, config.PluginConfig, say); err != nil {
		return false, err
	}
	if existing == nil {
		added = true
		keys.Keys = append(keys.Keys, signingKey{Name: name, ID: reference, PluginName: config.PluginName,
			PluginConfig: stored})
	}
	if makeDefault {
		keys.Default = &name
	}
	if !added && !makeDefault {
		return false, nil
	}
	return added, keys.save()
}
