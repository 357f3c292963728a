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

// Allow lists in the config file the libraries and commands that a reference and its settings name, as the user has
// named them, before they are stored in origin, where they are data. It tells say what it adds. It writes nothing when
// all is listed.
func Allow(
	ctx context.Context, reference string, stored map[string]string, origin config.Origin,
	say func(format string, args ...any),
) error {
	missing, err := config.Unlisted(reference, stored, origin)
	if err != nil || missing.None() {
		return err
	}
	path, err := list(ctx, reference, stored, origin)
	if err != nil {
		f := failure.From(err)
		hint := f.Hint + "; then do this again"
		if f.Kind != failure.Denied { // what others can change is refused, whoever wrote it
			hint = f.Hint + "; or do it by hand: " + missing.HowToList()
		}
		return failure.New(f.Kind, "cannot list what runs as this user in the config file: %w", f).WithHint(hint)
	}
	for _, module := range missing.Modules {
		say("added to modules in %s: %s", path, module)
	}
	for _, command := range missing.Commands {
		say("added to commands in %s: %s", path, command)
	}
	_, err = config.Resolve(reference, stored, origin)
	return err
}

// AllowRegistered does so for a signing key that Notation has. confirm sees what would be added: Notation's list may
// have been changed by others.
func AllowRegistered(
	ctx context.Context, name string, confirm func(config.Programs) error, say func(format string, args ...any),
) error {
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
	return Allow(ctx, entry.ID, entry.PluginConfig, config.PluginConfig, say)
}

func list(
	ctx context.Context, reference string, stored map[string]string, origin config.Origin,
) (path string, err error) {
	if path = config.Path(); path == "" {
		return "", failure.New(failure.Invalid, "there is no folder for it").WithHint("set HOME")
	}
	mode := os.FileMode(0o600)
	if info, err := os.Stat(path); err == nil {
		mode = info.Mode().Perm()
		if path, err = filepath.EvalSymlinks(path); err != nil { // the link stays
			return "", failure.New(failure.Invalid, "cannot find %s: %w", path, err).
				WithHint("check the path and its permissions")
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", failure.New(failure.Invalid, "cannot read %s: %w", path, err).
			WithHint("check the path and its permissions")
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", failure.New(failure.Internal, "cannot find the config file: %w", err).WithHint("check the current folder")
	}
	unlock, err := state.Lock(ctx, filepath.Dir(path))
	if err != nil {
		return "", err
	}
	defer unlock()
	// A file in a folder that others can write to would be refused from now on.
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
