package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

// file is the YAML config file: settings for all keys, for one key, for one token and for the NetHSM, and the programs
// that data may name.
type file struct {
	path     string
	settings map[string]string
	keys     map[string]map[string]string // alias -> settings, with "uri"
	tokens   map[string]map[string]string // token label -> settings
	env      map[string]map[string]string // token label -> variables for the module
	nethsm   map[string]string
	modules  []string
	commands []string
}

const uriSetting = "uri"

var (
	keySettings   = append([]string{uriSetting, NetHSMInsecure}, Names...)
	tokenSettings = []string{ModulePath, PINSource, CertificateChain, Timeout, AllowFinalPINTry, InitArgs, "env"}
	fileSettings  = append([]string{"keys", "tokens", "nethsm", modulesSetting, commandsSetting}, Names...)
)

// Path returns the path of the config file: NOTATION_HSM_CONFIG, or notation-hsm/config.yaml in the user's
// configuration directory. It is "" if there is no such directory.
func Path() string {
	if path := os.Getenv(configVariable); path != "" {
		return path
	}
	dir, err := os.UserConfigDir()
	if err != nil {
		if dir = os.Getenv("XDG_CONFIG_HOME"); dir == "" {
			return ""
		}
	}
	return filepath.Join(dir, "notation-hsm", "config.yaml")
}

func newFile(path string) *file {
	return &file{
		path: path, settings: map[string]string{}, keys: map[string]map[string]string{},
		tokens: map[string]map[string]string{}, env: map[string]map[string]string{},
	}
}

// loadFile reads the config file. The file is optional unless NOTATION_HSM_CONFIG names it.
func loadFile() (*file, error) {
	f := newFile(Path())
	if f.path == "" || f.path == os.DevNull {
		return f, nil
	}
	named := os.Getenv(configVariable) != ""
	if !filepath.IsAbs(f.path) {
		if !named {
			return nil, failure.New(failure.Invalid,
				"cannot find the config file: the user's configuration directory %q is not an absolute path",
				filepath.Dir(filepath.Dir(f.path))).
				WithHint("set HOME or XDG_CONFIG_HOME to an absolute path")
		}
		dir, err := os.Getwd()
		if err != nil {
			return nil, unreadable(err)
		}
		f.path = dir + "/" + f.path // not cleaned, so that the path that is checked is the path that is read
	}
	if _, err := os.Stat(f.path); errors.Is(err, fs.ErrNotExist) && !named {
		return f, nil
	} else if err != nil {
		return nil, unreadable(err)
	}
	if err := ownership.Check(f.path, os.Getuid()); err != nil {
		cause := failure.From(err)
		return nil, failure.New(cause.Kind, "cannot use the config file %s: others can change it: %w", f.path, cause).
			WithHint(cause.Hint + "; or keep the file in another folder, and name it in " + configVariable)
	}
	data, err := bound.ReadFile(f.path, MaxFile)
	if err != nil {
		return nil, unreadable(err)
	}
	if err := f.parse(data); err != nil {
		return nil, err
	}
	if strings.Contains(string(data), "pin-value=") {
		if info, err := os.Stat(f.path); err == nil && info.Mode().Perm()&0o077 != 0 {
			return nil, failure.New(failure.Denied,
				"cannot use the config file %s: it has a PIN, and others can read it", f.path).
				WithHint("run: chmod 600 " + f.path)
		}
	}
	return f, nil
}

func unreadable(err error) error {
	return failure.New(failure.FileKind(err), "cannot read the config file: %w", err).
		WithHint("check the path and its permissions")
}

// invalid returns the failure for what stands in a line of the file.
func (f *file) invalid(line int, format string, args ...any) *failure.Error {
	args = append([]any{f.path, line}, args...)
	return failure.New(failure.Invalid, "invalid config file %s:%d: "+format, args...)
}

func (f *file) parse(data []byte) error {
	root, err := YAML(data, MaxFile)
	if err != nil {
		return failure.New(failure.Invalid, "cannot parse the config file %s: %w", f.path, err).
			WithHint("see docs/configuration.md for an example")
	}
	if root == nil {
		return nil // empty, or comments only
	}
	f.settings, err = f.section(root, "the config file", fileSettings,
		func(name string, value *yaml.Node) (_ bool, err error) {
			switch name {
			case "keys":
				return true, f.keyEntries(value)
			case "tokens":
				return true, f.tokenEntries(value)
			case "nethsm":
				return true, f.nethsmEntries(value)
			case modulesSetting:
				f.modules, err = f.programEntries(name, value)
				return true, err
			case commandsSetting:
				f.commands, err = f.programEntries(name, value)
				return true, err
			}
			return false, nil
		})
	if err != nil {
		return err
	}
	for alias, entry := range f.keys {
		if entry[uriSetting] == "" {
			return failure.New(failure.Invalid, "invalid config file %s: the key %q has no uri", f.path, alias).
				WithHint("add: uri: pkcs11:token=...;object=..., or: uri: nethsm:KEYID")
		}
	}
	return nil
}

// keyEntries reads the section keys.
func (f *file) keyEntries(node *yaml.Node) error {
	return f.mapping(node, "keys", func(alias string, value *yaml.Node) (err error) {
		f.keys[alias], err = f.section(value, fmt.Sprintf("key %q", alias), keySettings, nil)
		return err
	})
}

// tokenEntries reads the section tokens.
func (f *file) tokenEntries(node *yaml.Node) error {
	return f.mapping(node, "tokens", func(label string, value *yaml.Node) (err error) {
		where := fmt.Sprintf("token %q", label)
		f.tokens[label], err = f.section(value, where, tokenSettings, func(name string, value *yaml.Node) (bool, error) {
			if name != "env" {
				return false, nil
			}
			variables, err := f.section(value, "env of "+where, nil, nil)
			f.env[label] = variables
			return true, err
		})
		return err
	})
}

// section reads a mapping of known names (nil: any) to single values. nested reads the values for which it returns
// true; where names the section in errors.
func (f *file) section(node *yaml.Node, where string, known []string,
	nested func(string, *yaml.Node) (bool, error)) (map[string]string, error) {
	settings := map[string]string{}
	err := f.mapping(node, where, func(name string, value *yaml.Node) error {
		if known != nil {
			if err := checkName(name, known, "setting", fmt.Sprintf("%s (%s:%d)", where, f.path, value.Line)); err != nil {
				return err
			}
		}
		if nested != nil {
			if done, err := nested(name, value); done || err != nil {
				return err
			}
		}
		if value.Kind != yaml.ScalarNode {
			return f.notScalar(value, strconv.Quote(name))
		}
		settings[name] = value.Value
		return nil
	})
	return settings, err
}

// notScalar returns the failure for a list or mapping where a single value is needed.
func (f *file) notScalar(node *yaml.Node, name string) error {
	return f.invalid(node.Line, "%s is not a single value", name).WithHint("write a single value")
}

// mapping reads a mapping, in which each name stands once.
func (f *file) mapping(node *yaml.Node, where string, each func(string, *yaml.Node) error) error {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return nil
	}
	if node.Kind != yaml.MappingNode {
		return f.invalid(node.Line, "%s is not a mapping of names to values", where).
			WithHint("see docs/configuration.md for an example")
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i].Value, node.Content[i+1]
		if seen[name] {
			return f.invalid(value.Line, "%s has %q twice", where, name).WithHint("remove one of the two")
		}
		seen[name] = true
		if value.Kind == yaml.AliasNode {
			value = value.Alias
		}
		if err := each(name, value); err != nil {
			return err
		}
	}
	return nil
}
