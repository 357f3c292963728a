// Package folders finds the configuration directories of the current user, and sets those of Notation's library.
//
// All of them are absolute paths. A relative one would depend on the working directory, and whoever can write there
// would decide who is trusted.
package folders

import (
	"os"
	"path/filepath"

	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Config returns the configuration directory of the user: XDG_CONFIG_HOME, or else .config in HOME. It fails if that is
// not an absolute path.
func Config() (string, error) { return absolute(os.UserConfigDir()) }

// Tags returns the folder of what the user's commands remember about tags. It is no cache: without it, a registry can
// go back to older metadata that have not expired.
func Tags() (string, error) {
	config, err := Config()
	return filepath.Join(config, "notation-hsm", "state", "tags"), err
}

func absolute(path string, err error) (string, error) {
	const hint = "set HOME to an absolute path"
	switch {
	case err != nil:
		return "", failure.New(failure.Invalid, "cannot find the user's configuration directory: %w", err).WithHint(hint)
	case !filepath.IsAbs(path):
		return "", failure.New(failure.Invalid, "the user's configuration directory %s is not an absolute path", path).
			WithHint(hint)
	}
	return path, nil
}

// unknown stands for a directory that cannot be found. Nothing can be read or made below a device. With an empty name,
// Notation's library would use a folder in the working directory.
const unknown = "/dev/null/notation"

// UseNotation sets the directories of Notation's library to those of the notation command: NOTATION_CONFIG,
// NOTATION_LIBEXEC and NOTATION_CACHE, or else the user's directories. Directories that were set before stay. It does
// not fail when a directory cannot be found, since most commands need none of them.
func UseNotation() {
	set(&dir.UserConfigDir, "NOTATION_CONFIG", os.UserConfigDir)
	set(&dir.UserCacheDir, "NOTATION_CACHE", os.UserCacheDir)
	set(&dir.UserLibexecDir, "NOTATION_LIBEXEC", nil) // "" is the configuration directory, which may be set later
}

func set(folder *string, variable string, parent func() (string, error)) {
	if *folder == "" {
		*folder = find(variable, parent)
	}
}

// find returns the directory in the environment variable, or else notation in the parent directory; "" if there is no
// parent, and unknown if the path is not absolute.
func find(variable string, parent func() (string, error)) string {
	folder := os.Getenv(variable)
	if folder == "" {
		if parent == nil {
			return ""
		}
		if path, err := parent(); err == nil {
			folder = filepath.Join(path, "notation")
		}
	}
	if !filepath.IsAbs(folder) {
		return unknown
	}
	return folder
}

// UserNotation returns the configuration directory of the notation command for this user, also when Notation's library
// was told to read trust from another one. It is empty of files if it cannot be found.
func UserNotation() string { return find("NOTATION_CONFIG", os.UserConfigDir) }

// NotationConfig returns Notation's configuration directory, with the trust policy, trust stores and signing keys. It
// fails if the directory cannot be found.
func NotationConfig() (string, error) {
	UseNotation()
	return checkKnown(dir.UserConfigDir, "configuration directory", "NOTATION_CONFIG")
}

// NotationPlugins returns the folder in which Notation looks for plugins. It fails if the folder cannot be found.
func NotationPlugins() (string, error) {
	config, err := NotationConfig()
	if dir.UserLibexecDir == "" {
		return filepath.Join(config, dir.PathPlugins), err
	}
	path, err := checkKnown(dir.UserLibexecDir, "folder of plugins", "NOTATION_LIBEXEC")
	return filepath.Join(path, dir.PathPlugins), err
}

// checkKnown returns the path, and fails if it is unknown.
func checkKnown(path, what, variable string) (string, error) {
	if path == unknown {
		return "", failure.New(failure.Invalid,
			"cannot find Notation's %s: neither %s nor HOME is an absolute path", what, variable).
			WithHint("set HOME, or " + variable + ", to an absolute path")
	}
	return path, nil
}
