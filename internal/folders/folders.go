// Package folders finds the folders that a user's configuration is in, this program's own and Notation's.
//
// A folder that depends on where the program was started would let anyone who can write there decide who is trusted. So
// each is absolute, or there is none.
package folders

import (
	"os"
	"path/filepath"

	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Config returns this user's configuration directory: XDG_CONFIG_HOME, or .config in HOME. It fails if that is not an
// absolute path.
func Config() (string, error) { return absolute(os.UserConfigDir()) }

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

// nowhere stands for a folder of Notation's that is not known. Nothing can be read or made below a device. Without it,
// Notation's library would take a folder in the working directory.
const nowhere = "/dev/null/notation"

// UseNotation tells Notation's library where the notation command has its files: where NOTATION_CONFIG,
// NOTATION_LIBEXEC and NOTATION_CACHE say, or else in the user's directories. It changes nothing that was set before.
// Nothing fails here, as much needs none of these folders.
func UseNotation() {
	use(&dir.UserConfigDir, "NOTATION_CONFIG", os.UserConfigDir)
	use(&dir.UserCacheDir, "NOTATION_CACHE", os.UserCacheDir)
	use(&dir.UserLibexecDir, "NOTATION_LIBEXEC", nil) // or else the configuration directory, whichever that is later
}

func use(folder *string, variable string, usual func() (string, error)) {
	if *folder == "" {
		*folder = find(variable, usual)
	}
}

// find returns the folder that a variable names, or else Notation's in the usual one; "" if there is none.
func find(variable string, usual func() (string, error)) string {
	folder := os.Getenv(variable)
	if folder == "" {
		if usual == nil {
			return ""
		}
		if path, err := usual(); err == nil {
			folder = filepath.Join(path, "notation")
		}
	}
	if !filepath.IsAbs(folder) {
		return nowhere
	}
	return folder
}

// UserNotation returns the configuration directory that the notation command has for this user, whichever one
// Notation's library was given to read trust from. Nothing is in it if it is not known.
func UserNotation() string { return find("NOTATION_CONFIG", os.UserConfigDir) }

// NotationConfig returns Notation's configuration directory, which has its trust policy, trust stores and signing keys,
// and fails if it is not known.
func NotationConfig() (string, error) {
	UseNotation()
	return known(dir.UserConfigDir, "configuration directory", "NOTATION_CONFIG")
}

// NotationPlugins returns the folder in which Notation looks for plugins, and fails if it is not known.
func NotationPlugins() (string, error) {
	config, err := NotationConfig()
	if dir.UserLibexecDir == "" {
		return filepath.Join(config, dir.PathPlugins), err
	}
	path, err := known(dir.UserLibexecDir, "folder of plugins", "NOTATION_LIBEXEC")
	return filepath.Join(path, dir.PathPlugins), err
}

func known(path, what, variable string) (string, error) {
	if path == nowhere {
		return "", failure.New(failure.Invalid,
			"cannot find Notation's %s: neither %s nor HOME is an absolute path", what, variable).
			WithHint("set HOME, or " + variable + ", to an absolute path")
	}
	return path, nil
}
