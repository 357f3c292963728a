package config

import (
	"errors"
	"io/fs"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// WithPrograms returns the text of the config file with programs added to its lists. Everything else, also comments,
// stays as it is.
func WithPrograms(p Programs) (string, error) {
	f, err := loadFile()
	if err != nil {
		return "", err
	}
	text, err := bound.ReadFile(f.path, MaxFile)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", unreadable(err)
	}
	changed, err := p.addTo(string(text), f.path)
	if err != nil {
		return "", failure.New(failure.Invalid, "cannot add programs to the config file %s: %w", f.path, err).
			WithHint("write each setting of the file on its own line")
	}
	return changed, nil
}

// HowToList returns the instruction to add the programs to the config file by hand.
func (p Programs) HowToList() string {
	f, err := loadFile()
	if err != nil {
		f = &file{path: Path()}
	}
	var hints []string
	for _, path := range p.Modules {
		hints = append(hints, f.howToList(modulesSetting, f.modules, path))
	}
	for _, line := range p.Commands {
		hints = append(hints, f.howToList(commandsSetting, f.commands, line))
	}
	return strings.Join(hints, "; ")
}

// addTo adds the programs to the text of a config file. It fails if the new text would mean anything else than the old
// text and the programs.
func (p Programs) addTo(text, path string) (string, error) {
	before, err := parsed(text, path)
	if err != nil {
		return "", err
	}
	for _, path := range p.Modules {
		text = addTo(text, modulesSetting, scalar(path))
	}
	for _, line := range p.Commands {
		text = addTo(text, commandsSetting, scalar(line))
	}
	after, err := parsed(text, path)
	if err != nil {
		return "", err
	}
	for _, l := range []struct{ got, had, added []string }{
		{after.modules, before.modules, p.Modules}, {after.commands, before.commands, p.Commands},
	} {
		if !slices.Equal(slices.Sorted(slices.Values(l.got)), slices.Sorted(slices.Values(slices.Concat(l.had, l.added)))) {
			return "", errors.New("its lists have an unknown layout")
		}
	}
	after.modules, after.commands = before.modules, before.commands
	if !reflect.DeepEqual(before, after) {
		return "", errors.New("it has an unknown layout")
	}
	return text, nil
}

// parsed returns the config file with this text.
func parsed(text, path string) (*file, error) {
	f := newFile(path)
	return f, f.parse([]byte(text))
}

// addTo adds one value to a list. Without a list, it adds one at the end.
func addTo(text, list, value string) string {
	lines := strings.Split(text, "\n")
	if root, err := YAML([]byte(text), MaxFile); err == nil && root != nil {
		for i := 0; i+1 < len(root.Content); i += 2 {
			if name, all := root.Content[i], root.Content[i+1]; name.Value == list {
				return strings.Join(inserted(lines, name, all, value), "\n")
			}
		}
	}
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	}
	return strings.Join(append(lines, list+":", "- "+value, ""), "\n")
}

// inserted adds a value to an existing list: after its last line, or before its first value if it is in brackets.
func inserted(lines []string, name, all *yaml.Node, value string) []string {
	after, indent := name, 0
	if len(all.Content) > 0 {
		after, indent = all.Content[len(all.Content)-1], all.Column-1
		if first := all.Content[0]; all.Style&yaml.FlowStyle != 0 {
			if first.Line > len(lines) {
				return lines // YAML has other line ends too
			}
			line := []rune(lines[first.Line-1])
			at := min(first.Column-1, len(line))
			lines[first.Line-1] = string(line[:at]) + value + ", " + string(line[at:])
			return lines
		}
	}
	return slices.Insert(lines, min(after.Line, len(lines)), strings.Repeat(" ", indent)+"- "+value)
}
