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

// Install copies this program to Notation's folder of plugins and returns its path there. Another version is replaced
// in one step, so that running processes keep the program that they started with.
func Install() (path string, err error) {
	program, path, err := pluginPaths()
	if err != nil {
		return "", err
	}
	if sameFile(program, path) {
		return path, nil
	}
	data, err := os.ReadFile(program)
	if err != nil {
		return "", unreadable(program, err)
	}
	return path, state.Write(path, data, 0o755)
}

// pluginPaths returns the path of this program, and the path at which Notation starts the plugin.
func pluginPaths() (program, plugin string, err error) {
	if program, err = os.Executable(); err != nil {
		return "", "", failure.New(failure.Internal, "cannot find the file of this program: %w", err).
			WithHint("copy it to Notation's folder of plugins")
	}
	plugins, err := folders.NotationPlugins()
	if err != nil {
		return "", "", err
	}
	return program, filepath.Join(plugins, config.PluginName, "notation-"+config.PluginName), nil
}

// sameFile reports whether two paths name one existing file.
func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// Register adds a signing key to Notation's list, with the settings as its plugin config, and returns whether the key
// is new there. It fails with kind Conflict if another key has the name. Programs that the reference and
// settings name are added to the config file (see Allow), since an entry of Notation's list may name no other.
func Register(
	ctx context.Context, name, reference string, given map[string]string, makeDefault bool, notify Notify,
) (added bool, err error) {
	stored, err := config.Lasting(given) // with absolute paths: Notation starts the plugin in any working directory
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
	if err := Allow(ctx, reference, stored, config.PluginConfig, notify); err != nil {
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
