package policy

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/config"
)

// Bounds of a policy.
const (
	MaxFile     = 256 << 10 // bytes of the file
	maxItems    = 500       // entries of a list or mapping
	maxRules    = 1000      // rules of all keys
	maxName     = 100       // bytes of a name
	maxText     = 1000      // bytes of another text, but a condition
	maxGroups   = 8         // approvals of one rule
	maxURIs     = 16        // of a key
	maxQuorum   = 100
	reviewHint  = "write the value out, so that a reviewer sees it in its place"
	namePattern = `[A-Za-z0-9][A-Za-z0-9._@+-]*`
)

var nameFormat = regexp.MustCompile(`^` + namePattern + `$`)

// reader reads the nodes of a policy and collects the mistakes.
type reader struct{ problems []Problem }

// report adds a mistake.
func (r *reader) report(line int, path, hint, format string, args ...any) {
	if len(r.problems) < maxProblems {
		r.problems = append(r.problems, Problem{Line: line, Path: path, What: fmt.Sprintf(format, args...), Hint: hint})
	}
}

// root parses the file, and returns the root of its only document. It returns nil after a mistake that keeps the rest
// from being read.
func (r *reader) root(data []byte) *yaml.Node {
	if len(data) > MaxFile {
		r.report(0, "", "split the policy among brokers", "it has %d bytes, more than %d", len(data), MaxFile)
		return nil
	}
	if line, char, found := unprintable(string(data)); found {
		r.report(line, "", "remove it", "the character %U cannot be seen by a reviewer", char)
		return nil
	}
	root, err := config.YAML(data, MaxFile)
	switch {
	case err != nil:
		line, what := yamlError(err)
		r.report(line, "", "check the indentation and quotes around this line", "%s", what)
		return nil
	case root == nil:
		r.report(0, "", "see docs/policy.md for an example", "it is empty")
		return nil
	}
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	var first, second yaml.Node
	if err := decoder.Decode(&first); err == nil && !errors.Is(decoder.Decode(&second), io.EOF) {
		r.report(second.Line, "", "keep one document", "a second document follows")
		return nil
	}
	if !r.plain(root) {
		return nil
	}
	return root
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?(?:.*? error in .*? at L|line |.*?\bline )(\d+)`)

// yamlError returns the line and the text of an error of the YAML parser.
func yamlError(err error) (int, string) {
	text := strings.TrimPrefix(strings.Join(strings.Fields(err.Error()), " "), "yaml: ")
	line := 0
	if match := yamlLine.FindStringSubmatch(text); match != nil {
		line, _ = strconv.Atoi(match[1])
	}
	return line, "it is not YAML: " + text
}

// unprintable returns the first character that is not printable, such as one that changes the direction of text, and
// its line.
func unprintable(text string) (line int, char rune, found bool) {
	line = 1
	for i, c := range text {
		switch {
		case c == '\n':
			line++
		case c == '\t', c == '\r' && strings.HasPrefix(text[i+1:], "\n"):
		case c == utf8.RuneError, !unicode.IsPrint(c):
			return line, c, true
		}
	}
	return 0, 0, false
}

// plain reports whether a node has neither anchors, aliases, tags, merges nor characters that cannot be seen, and
// reports those that it has.
func (r *reader) plain(node *yaml.Node) bool {
	ok := true
	switch {
	case node.Kind == yaml.AliasNode, node.Anchor != "":
		r.report(node.Line, "", reviewHint, "there is a YAML anchor or alias")
		return false
	case node.Style&yaml.TaggedStyle != 0:
		r.report(node.Line, "", reviewHint, "there is a YAML tag")
		ok = false
	case node.ShortTag() == "!!merge":
		r.report(node.Line, "", reviewHint, "there is a YAML merge")
		ok = false
	}
	if _, char, found := unprintable(node.Value); found {
		r.report(node.Line, "", "remove it", "the character %U cannot be seen by a reviewer", char)
		ok = false
	}
	for _, below := range node.Content {
		ok = r.plain(below) && ok
	}
	return ok
}

// An entry is a name and its value in a mapping.
type entry struct {
	name  string
	line  int
	value *yaml.Node
}

// entries returns the entries of a mapping, each name once.
func (r *reader) entries(node *yaml.Node, path string) []entry {
	if node.Kind != yaml.MappingNode {
		r.report(node.Line, path, "", "it is %s, not a mapping", kindOf(node))
		return nil
	}
	if len(node.Content)/2 > maxItems {
		r.report(node.Line, path, "", "it has more than %d entries", maxItems)
		return nil
	}
	var all []entry
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		switch {
		case name.Kind != yaml.ScalarNode || name.ShortTag() != "!!str":
			r.report(name.Line, path, "put the name in quotes", "a name is %s, not a text", kindOf(name))
		case slices.ContainsFunc(all, func(e entry) bool { return e.name == name.Value }):
			r.report(name.Line, path, "remove one of them", "the name %.50q is there twice", name.Value)
		default:
			all = append(all, entry{name.Value, name.Line, value})
		}
	}
	return all
}

// fields returns the values of a mapping that has known names only.
func (r *reader) fields(node *yaml.Node, path string, known ...string) map[string]*yaml.Node {
	values := map[string]*yaml.Node{}
	for _, e := range r.entries(node, path) {
		if !slices.Contains(known, e.name) {
			r.report(e.line, path, "known are "+strings.Join(known, ", "), "unknown field %.50q", e.name)
			continue
		}
		values[e.name] = e.value
	}
	return values
}

// items returns the items of a list.
func (r *reader) items(node *yaml.Node, path string) []*yaml.Node {
	if node.Kind != yaml.SequenceNode {
		r.report(node.Line, path, "", "it is %s, not a list", kindOf(node))
		return nil
	}
	if len(node.Content) > maxItems {
		r.report(node.Line, path, "", "it has more than %d items", maxItems)
		return nil
	}
	return node.Content
}

// text returns a text that is not empty. ok is false after a mistake.
func (r *reader) text(node *yaml.Node, path string, limit int) (text string, ok bool) {
	switch {
	case node.Kind != yaml.ScalarNode || node.ShortTag() != "!!str":
		hint := ""
		if node.Kind == yaml.ScalarNode {
			hint = "put it in quotes"
		}
		r.report(node.Line, path, hint, "it is %s, not a text", kindOf(node))
	case strings.TrimSpace(node.Value) == "":
		r.report(node.Line, path, "", "it is empty")
	case len(node.Value) > limit:
		r.report(node.Line, path, "", "it has %d bytes, more than %d", len(node.Value), limit)
	default:
		return node.Value, true
	}
	return "", false
}

// name returns a name of a key, group, rule or person.
func (r *reader) name(node *yaml.Node, path string) (string, bool) {
	name, ok := r.text(node, path, maxName)
	return name, ok && r.checkName(name, node.Line, path)
}

// checkName reports a name that is not allowed.
func (r *reader) checkName(name string, line int, path string) bool {
	if len(name) > maxName || !nameFormat.MatchString(name) {
		r.report(line, path, "use letters, digits and . _ @ + -, beginning with a letter or digit", "invalid name %.50q",
			name)
		return false
	}
	return true
}

// number returns a number from low to high.
func (r *reader) number(node *yaml.Node, path string, low, high int) (int, bool) {
	n, err := strconv.Atoi(node.Value)
	switch {
	case node.Kind != yaml.ScalarNode || node.ShortTag() != "!!int" || err != nil:
		r.report(node.Line, path, "", "it is %s, not a decimal number", kindOf(node))
	case n < low || n > high:
		r.report(node.Line, path, "", "%d is not from %d to %d", n, low, high)
	default:
		return n, true
	}
	return 0, false
}

// flag returns true or false, and false after a mistake.
func (r *reader) flag(node *yaml.Node, path string) bool {
	var value bool
	if node.Kind != yaml.ScalarNode || node.ShortTag() != "!!bool" || node.Decode(&value) != nil {
		r.report(node.Line, path, "write true or false", "it is %s, not true or false", kindOf(node))
	}
	return value
}

// one returns a text that is one of the values of a type.
func one[T ~string](r *reader, node *yaml.Node, path, what string, known []T) (T, bool) {
	text, ok := r.text(node, path, maxText)
	if !ok {
		return "", false
	}
	if !slices.Contains(known, T(text)) {
		r.report(node.Line, path, "known are "+join(known), "unknown %s %.50q", what, text)
		return "", false
	}
	return T(text), true
}

// several returns a list of different values of a type, at least one.
func several[T ~string](r *reader, node *yaml.Node, path, what string, known []T) (all []T) {
	items := r.items(node, path)
	if node.Kind == yaml.SequenceNode && len(items) == 0 {
		r.report(node.Line, path, "known are "+join(known), "it is empty")
	}
	for i, item := range items {
		value, ok := one(r, item, index(path, i), what, known)
		if ok && slices.Contains(all, value) {
			r.report(item.Line, index(path, i), "remove one of them", "%s is there twice", value)
		} else if ok {
			all = append(all, value)
		}
	}
	return all
}

func join[T ~string](all []T) string {
	texts := make([]string, len(all))
	for i, one := range all {
		texts[i] = string(one)
	}
	return strings.Join(texts, ", ")
}

// index returns the path of an item of a list.
func index(path string, i int) string { return fmt.Sprintf("%s[%d]", path, i) }

// kindOf names what a node is.
func kindOf(node *yaml.Node) string {
	switch node.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.ScalarNode:
		switch node.ShortTag() {
		case "!!null":
			return "empty"
		case "!!int", "!!float":
			return "a number"
		case "!!bool":
			return "true or false"
		case "!!timestamp":
			return "a date"
		}
		return "a text"
	}
	return "an alias"
}
