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

// The lists of the config file with the programs that data may name.
const (
	modulesSetting  = "modules"
	commandsSetting = "commands"
)

// Programs are libraries, as module-path has them, and command lines, as they stand after exec: in a pin-source.
type Programs struct{ Modules, Commands []string }

// None reports whether there are none.
func (p Programs) None() bool { return len(p.Modules)+len(p.Commands) == 0 }

// Unlisted returns the programs that a reference and the settings stored with it name as data, and that the config file
// does not list. It fails where Resolve would fail even if they were listed.
func Unlisted(reference string, stored map[string]string, origin Origin) (Programs, error) {
	var missing Programs
	_, err := resolve(reference, origin, &missing, layer{origin: origin, values: stored})
	return missing, err
}

// Lasting returns settings as they are stored: they mean the same in whatever folder a program is started. A module
// without a folder is the linker's to find.
func Lasting(given map[string]string) (map[string]string, error) {
	stored := map[string]string{}
	for name, value := range given {
		if value != "" && (name == CertificateChain || name == ModulePath && strings.Contains(value, "/")) {
			var err error
			if value, err = filepath.Abs(value); err != nil {
				return nil, failure.New(failure.Invalid, "cannot find %s %q: %w", name, value, err).
					WithHint("name it by its full path")
			}
		}
		stored[name] = value
	}
	return stored, nil
}

// programEntries reads a list of programs.
func (f *file) programEntries(name string, node *yaml.Node) ([]string, error) {
	at := func(node *yaml.Node) string {
		return fmt.Sprintf("%q in the config file (%s:%d)", name, f.path, node.Line)
	}
	if node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return nil, nil
	}
	if node.Kind != yaml.SequenceNode {
		return nil, failure.New(failure.Invalid, "%s is not a list", at(node)).
			WithHint(`write each on a line of its own, after "- "`)
	}
	var all []string
	for _, item := range node.Content {
		if item.Kind != yaml.ScalarNode {
			return nil, failure.New(failure.Invalid, "%s holds more than single values", at(item)).
				WithHint("give it single values alone")
		}
		if err := checkProgram(name, item.Value); err != nil {
			err.What = at(item) + ": " + err.What
			return nil, err
		}
		all = append(all, item.Value)
	}
	return all, nil
}

// checkProgram verifies that an entry means the same program in whatever folder this one is started, as far as it is
// told by its words.
func checkProgram(list, value string) *failure.Error {
	switch _, prefixed := commandOf(value); {
	case strings.TrimSpace(value) == "":
		return failure.New(failure.Invalid, "an entry is empty").WithHint("remove it")
	case list == modulesSetting && strings.Contains(value, "/") && !filepath.IsAbs(value):
		return failure.New(failure.Invalid, "the library %q is not named by a full path", value).
			WithHint("name the library by its full path, or without a folder")
	case list == commandsSetting && prefixed:
		return failure.New(failure.Invalid, "the command %q begins as a pin-source does", value).
			WithHint("write what follows exec: alone")
	}
	return nil
}

// commandOf returns the command line of a pin-source that runs one.
func commandOf(source string) (line string, ok bool) {
	for _, prefix := range []string{"exec:", "|"} {
		if line, ok := strings.CutPrefix(source, prefix); ok {
			return line, true
		}
	}
	return "", false
}

// runsNothing reports whether a pin-source is of a form that starts no program.
func runsNothing(source string) bool {
	return source == "prompt" || source == "none" || filepath.IsAbs(source) ||
		strings.HasPrefix(source, "env:") || strings.HasPrefix(source, "file:")
}

// checkModule refuses a library that data names, unless it is listed. ours is the one that places other than data name
// for the same key.
func (f *file) checkModule(path string, from Origin, ours string, missing *Programs) error {
	if path == "" || from.namesPrograms || path == ours || slices.Contains(f.modules, path) {
		return nil
	}
	if err := checkProgram(modulesSetting, path); err != nil {
		err.What = fmt.Sprintf("cannot load the module that %s names: %s", from.name, err.What)
		return err
	}
	if missing != nil {
		missing.Modules = append(missing.Modules, path)
		return nil
	}
	return failure.New(failure.Denied,
		"cannot load the module %q that %s names: the config file does not list it", path, from.name).
		WithHint(f.howToList(modulesSetting, f.modules, path))
}

// checkPINSource does the same for a command that gives the PIN. Sources of another form name a variable, a file or a
// person. They may stand in data: what they yield is given to the module alone, which is a listed one, and is not
// shown.
func (f *file) checkPINSource(source string, from Origin, ours string, missing *Programs) error {
	if source == "" || from.namesPrograms || source == ours || runsNothing(source) {
		return nil
	}
	line, ok := commandOf(source)
	if !ok { // it is not shown: someone may have written the PIN itself
		return failure.New(failure.Invalid, "pin-source is not a place that a PIN can come from").
			WithHint(`write it as env:NAME, file:/path, "exec:command args", prompt or none`)
	}
	if slices.Contains(f.commands, line) {
		return nil
	}
	if strings.TrimSpace(line) == "" {
		return failure.New(failure.Invalid, "pin-source exec: names no command").WithHint("write the command after the colon")
	}
	if missing != nil {
		missing.Commands = append(missing.Commands, line)
		return nil
	}
	return failure.New(failure.Denied,
		"cannot run the command %q that %s names: the config file does not list it", line, from.name).
		WithHint(f.howToList(commandsSetting, f.commands, line))
}

// howToList says which line of the config file lists a program, beside those that are listed.
func (f *file) howToList(list string, listed []string, value string) string {
	path := f.path
	if path == "" {
		path = "the file that you name in " + environmentPrefix + "CONFIG"
	}
	var all []string
	for _, entry := range append(slices.Clone(listed), value) {
		all = append(all, scalar(entry))
	}
	return fmt.Sprintf("if you trust it, write into %s: %s: [%s]", path, list, strings.Join(all, ", "))
}

// scalar writes a value in YAML, on one line.
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
