package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// The lists of programs in the config file that data may name.
const (
	modulesSetting  = "modules"
	commandsSetting = "commands"
)

// Programs are libraries, as in module-path, and command lines, as after exec: in a pin-source.
type Programs struct{ Modules, Commands []string }

// None reports whether there are no programs.
func (p Programs) None() bool { return len(p.Modules)+len(p.Commands) == 0 }

// Unlisted returns the programs that a reference and the settings stored with it name, and that the config file does
// not list. It fails if Resolve would fail with these programs listed.
func Unlisted(reference string, stored map[string]string, origin Origin) (Programs, error) {
	var missing Programs
	_, err := resolve(reference, origin, &missing, layer{origin: origin, values: stored})
	return missing, err
}

// Lasting returns settings with absolute paths, so that they mean the same in every working directory. A module without
// a folder is left to the dynamic linker.
func Lasting(given map[string]string) (map[string]string, error) {
	stored := map[string]string{}
	for name, value := range given {
		if value != "" && (name == CertificateChain || name == ModulePath && strings.Contains(value, "/")) {
			var err error
			if value, err = filepath.Abs(value); err != nil {
				return nil, failure.New(failure.Invalid, "cannot resolve %s %q: %w", name, value, err).
					WithHint("write an absolute path")
			}
		}
		stored[name] = value
	}
	return stored, nil
}

// programEntries reads a list of programs.
func (f *file) programEntries(name string, node *yaml.Node) ([]string, error) {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return nil, nil
	}
	if node.Kind != yaml.SequenceNode {
		return nil, f.invalid(node.Line, "%q is not a list", name).WithHint(`write each entry on its own line, after "- "`)
	}
	var all []string
	for _, item := range node.Content {
		if item.Kind != yaml.ScalarNode {
			return nil, f.notScalar(item, "an entry of "+name)
		}
		if err := checkProgram(name, item.Value); err != nil {
			return nil, f.invalid(item.Line, "%w", err).WithHint(err.Hint)
		}
		all = append(all, item.Value)
	}
	return all, nil
}

// checkProgram verifies that an entry of a list names the same program in every working directory.
func checkProgram(list, value string) *failure.Error {
	switch _, prefixed := commandOf(value); {
	case strings.TrimSpace(value) == "":
		return failure.New(failure.Invalid, "an entry of %q is empty", list).WithHint("remove it")
	case list == modulesSetting && strings.Contains(value, "/") && !filepath.IsAbs(value):
		return failure.New(failure.Invalid, "the library %q needs an absolute path", value).
			WithHint("name the library by its absolute path, or without a folder")
	case list == commandsSetting && prefixed:
		return failure.New(failure.Invalid, "the command %q begins like a pin-source", value).
			WithHint("write only what follows exec:")
	}
	return nil
}

// commandOf returns the command line of a pin-source that runs a command.
func commandOf(source string) (line string, ok bool) {
	for _, prefix := range []string{"exec:", "|"} {
		if line, ok := strings.CutPrefix(source, prefix); ok {
			return line, true
		}
	}
	return "", false
}

// runsNothing reports whether a pin-source starts no program.
func runsNothing(source string) bool {
	return source == "prompt" || source == "none" || filepath.IsAbs(source) ||
		strings.HasPrefix(source, "env:") || strings.HasPrefix(source, "file:")
}

// checkModule refuses a library that data names and the config file does not list. ours is the library that the
// environment or the config file sets for the same key. With missing set, it adds the library there instead.
func (f *file) checkModule(path string, from Origin, ours string, missing *Programs) error {
	if path == "" || from.namesPrograms || path == ours || slices.Contains(f.modules, path) {
		return nil
	}
	if err := checkProgram(modulesSetting, path); err != nil {
		return failure.New(failure.Invalid, "cannot load the module that %s names: %w", from.name, err).WithHint(err.Hint)
	}
	if missing != nil {
		missing.Modules = append(missing.Modules, path)
		return nil
	}
	return failure.New(failure.Denied,
		"cannot load the module %q that %s names: the config file does not list it", path, from.name).
		WithHint(f.howToList(modulesSetting, f.modules, path))
}

// checkPINSource refuses a command for the PIN that data names and the config file does not list, like checkModule.
// Data may name a source of another form: its PIN is passed to a listed module only, and is not shown.
func (f *file) checkPINSource(source string, from Origin, ours string, missing *Programs) error {
	if source == "" || from.namesPrograms || source == ours || runsNothing(source) {
		return nil
	}
	line, ok := commandOf(source)
	const hint = `write pin-source as env:NAME, file:/path, "exec:command args", prompt or none`
	if !ok { // the source is not shown: it may be the PIN itself
		return failure.New(failure.Invalid, "pin-source is malformed").WithHint(hint)
	}
	if slices.Contains(f.commands, line) {
		return nil
	}
	if strings.TrimSpace(line) == "" {
		return failure.New(failure.Invalid, "pin-source names no command").WithHint(hint)
	}
	if missing != nil {
		missing.Commands = append(missing.Commands, line)
		return nil
	}
	return failure.New(failure.Denied,
		"cannot run the command %q that %s names: the config file does not list it", line, from.name).
		WithHint(f.howToList(commandsSetting, f.commands, line))
}

// howToList returns the line of the config file that lists a program beside those that are listed, as an instruction.
func (f *file) howToList(list string, listed []string, value string) string {
	path := f.path
	if path == "" {
		path = "the file that you name in " + configVariable
	}
	var all []string
	for _, entry := range append(slices.Clone(listed), value) {
		all = append(all, scalar(entry))
	}
	return fmt.Sprintf("if you trust it, write into %s: %s: [%s]", path, list, strings.Join(all, ", "))
}

// scalar returns a value in YAML, on one line.
func scalar(value string) string {
	special := func(r rune) bool {
		return (r|0x20 < 'a' || 'z' < r|0x20) && (r < '0' || '9' < r) && !strings.ContainsRune("/._-+= ", r)
	}
	if value == "" || strings.ContainsFunc(value, special) || strings.ContainsAny(value[:1], ".-+=0123456789") ||
		value != strings.TrimSpace(value) {
		return strconv.Quote(value)
	}
	return value
}
