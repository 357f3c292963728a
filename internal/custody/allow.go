package custody

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Notify shows the user a line of progress. The format has no line break at its end.
type Notify func(format string, args ...any)

// Allow adds the libraries and commands that a reference and its settings name to the config file, and notifies of
// each. It is called with what the user has given on the command line, before that is stored in origin: stored settings
// are data, and data may name no program that the config file does not list. It writes nothing if all are listed.
func Allow(
	ctx context.Context, reference string, stored map[string]string, origin config.Origin, notify Notify,
) error {
	missing, err := config.Unlisted(reference, stored, origin)
	if err != nil || missing.None() {
		return err
	}
	path, err := addToConfig(ctx, reference, stored, origin)
	if err != nil {
		f := failure.From(err)
		hint := f.Hint + "; then run this again"
		if f.Kind != failure.Denied { // a config file that others can change is refused, whoever edited it
			hint = f.Hint + "; or edit the file: " + missing.HowToList()
		}
		return failure.New(f.Kind, "cannot add programs to the config file: %w", f).WithHint(hint)
	}
	for _, module := range missing.Modules {
		notify("added to modules in %s: %s", path, module)
	}
	for _, command := range missing.Commands {
		notify("added to commands in %s: %s", path, command)
	}
	_, err = config.Resolve(reference, stored, origin)
	return err
}

// AllowRegistered is Allow for a signing key in Notation's list. Others may have changed that list, so confirm is
// called with the programs before any is added.
func AllowRegistered(ctx context.Context, name string, confirm func(config.Programs) error, notify Notify) error {
	keys, err := loadSigningKeys()
	if err != nil {
		return err
	}
	entry, err := keys.findOwn(name)
	if err != nil {
		return err
	}
	missing, err := config.Unlisted(entry.ID, entry.PluginConfig, config.PluginConfig)
	if err != nil || missing.None() {
		return err
	}
	if err := confirm(missing); err != nil {
		return err
	}
	return Allow(ctx, entry.ID, entry.PluginConfig, config.PluginConfig, notify)
}

// addToConfig adds the programs to the config file, which it creates if there is none, and returns the file's path.
func addToConfig(
	ctx context.Context, reference string, stored map[string]string, origin config.Origin,
) (path string, err error) {
	path, mode, err := configFile()
	if err != nil {
		return "", err
	}
	unlock, err := state.Lock(ctx, filepath.Dir(path))
	if err != nil {
		return "", err
	}
	defer unlock()
	// Every command refuses a config file in a folder that others can write to.
	if err := ownership.Check(filepath.Dir(path), os.Getuid()); err != nil {
		return "", err
	}
	missing, err := config.Unlisted(reference, stored, origin) // another command may have added some
	if err != nil || missing.None() {
		return path, err
	}
	text, err := config.WithPrograms(missing)
	if err != nil {
		return "", err
	}
	return path, state.Write(path, []byte(text), mode)
}

// configFile returns the absolute path of the config file, with links resolved so that they stay, and its permissions.
func configFile() (path string, mode os.FileMode, err error) {
	if path = config.Path(); path == "" {
		return "", 0, failure.New(failure.Invalid, "cannot find the config file: no configuration directory").
			WithHint("set HOME")
	}
	mode = 0o600
	switch info, err := os.Stat(path); {
	case err == nil:
		mode = info.Mode().Perm()
		resolved, err := filepath.EvalSymlinks(path)
		if err != nil {
			return "", 0, unreadable(path, err)
		}
		path = resolved
	case !errors.Is(err, fs.ErrNotExist):
		return "", 0, unreadable(path, err)
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return "", 0, failure.New(failure.Internal, "cannot find the config file: %w", err).
			WithHint("set NOTATION_HSM_CONFIG to an absolute path")
	}
	return path, mode, nil
}
