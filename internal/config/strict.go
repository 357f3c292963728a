package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// MaxFile is the largest size of the config file, or of a ceremony, in bytes.
const MaxFile = 256 << 10

// Bounds of a YAML file. A node of the parser takes some 500 bytes, and "[a,b]" has one for each two bytes.
const (
	maxDepth = 16     // of lists and mappings
	maxNodes = 20_000 // values; an alias counts as much as its anchor
)

// YAML parses the first document of a YAML file of at most limit bytes. It returns the root of the document, or nil if
// there is none. It fails when the file exceeds a bound, or when an anchor contains an alias of itself.
func YAML(data []byte, limit int) (*yaml.Node, error) {
	if len(data) > limit {
		return nil, fmt.Errorf("it has %d bytes, more than %d", len(data), limit)
	}
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return nil, err
	}
	if len(document.Content) == 0 {
		return nil, nil
	}
	left := maxNodes
	return document.Content[0], checkNodes(document.Content[0], maxDepth, &left)
}

// checkNodes verifies the bounds of a node. left is the number of values that are still allowed.
func checkNodes(node *yaml.Node, depth int, left *int) error {
	if *left--; *left < 0 {
		return fmt.Errorf("it has more than %d values", maxNodes)
	}
	if depth == 0 && node.Kind != yaml.ScalarNode {
		return fmt.Errorf("line %d is nested deeper than %d", node.Line, maxDepth)
	}
	if node.Alias != nil {
		return checkNodes(node.Alias, depth-1, left)
	}
	for _, below := range node.Content {
		if err := checkNodes(below, depth-1, left); err != nil {
			return err
		}
	}
	return nil
}

// Strict parses a YAML file into a struct. A name that is not a yaml tag of the struct is an error, with the nearest
// known name as the hint.
func Strict(path string, data []byte, into any) error {
	root, err := YAML(data, MaxFile)
	if err != nil {
		return failure.New(failure.Invalid, "cannot parse %s: %w", path, err).
			WithHint("check the indentation and quotes around this line")
	}
	if root == nil {
		return failure.New(failure.Invalid, "cannot parse %s: it is empty", path).WithHint("name another file")
	}
	for _, m := range Misnamed(root, into) {
		return failure.New(failure.Invalid, "%s in %s:%d", m.What, path, m.Line).WithHint(m.Hint)
	}
	if err := root.Decode(into); err != nil {
		return failure.New(failure.Invalid, "cannot parse %s: %w", path, err).WithHint("check this line")
	}
	return nil
}

// A Misname is an unknown name in a YAML file, or an alias of YAML.
type Misname struct {
	Line       int
	What, Hint string
}

// Misnamed returns the names in a YAML node that are not yaml tags of the type that into points to, and the aliases.
// The hint has the nearest known name.
func Misnamed(node *yaml.Node, into any) []Misname { return checkNames(node, reflect.TypeOf(into)) }

// checkNames verifies the names in a node against the fields of a type, and refuses aliases.
func checkNames(node *yaml.Node, kind reflect.Type) (all []Misname) {
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	if node.Kind == yaml.AliasNode {
		return []Misname{{node.Line, "YAML alias", "write the value out, so that a reviewer sees it in its place"}}
	}
	switch {
	case kind.Kind() == reflect.Slice && node.Kind == yaml.SequenceNode:
		for _, item := range node.Content {
			all = append(all, checkNames(item, kind.Elem())...)
		}
	case kind.Kind() == reflect.Map && node.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			all = append(all, checkNames(node.Content[i+1], kind.Elem())...)
		}
	case kind.Kind() == reflect.Struct && node.Kind == yaml.MappingNode:
		fields := fieldsOf(kind)
		known := make([]string, len(fields))
		for i, f := range fields {
			known[i] = f.name
		}
		for i := 0; i+1 < len(node.Content); i += 2 {
			name, value := node.Content[i], node.Content[i+1]
			if field := slices.Index(known, name.Value); field >= 0 {
				all = append(all, checkNames(value, fields[field].kind)...)
			} else {
				what, hint := Unknown("name", name.Value, known)
				all = append(all, Misname{name.Line, what, hint})
			}
		}
	}
	return all
}

// A field is one of a struct, by its name in YAML.
type field struct {
	name string
	kind reflect.Type
}

// fieldsOf returns the fields of a struct, also those of the structs inlined in it.
func fieldsOf(kind reflect.Type) (fields []field) {
	for i := range kind.NumField() {
		f := kind.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			fields = append(fields, fieldsOf(f.Type)...)
		case name != "":
			fields = append(fields, field{name, f.Type})
		}
	}
	return fields
}
