package config

import (
	"fmt"
	"reflect"
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
	if err := checkNames(root, reflect.TypeOf(into).Elem(), path); err != nil {
		return err
	}
	if err := root.Decode(into); err != nil {
		return failure.New(failure.Invalid, "cannot parse %s: %w", path, err).WithHint("check this line")
	}
	return nil
}

// checkNames verifies the names in a node against the fields of a type, and refuses aliases.
func checkNames(node *yaml.Node, kind reflect.Type, path string) error {
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	if node.Kind == yaml.AliasNode {
		return failure.New(failure.Invalid, "cannot parse %s: line %d is a YAML alias", path, node.Line).
			WithHint("write the value out, so that a reviewer sees it in its place")
	}
	switch {
	case kind.Kind() == reflect.Slice && node.Kind == yaml.SequenceNode:
		for _, item := range node.Content {
			if err := checkNames(item, kind.Elem(), path); err != nil {
				return err
			}
		}
	case kind.Kind() == reflect.Struct && node.Kind == yaml.MappingNode:
		fields := fieldsOf(kind)
		known := make([]string, len(fields))
		for i, f := range fields {
			known[i] = f.name
		}
		for i := 0; i+1 < len(node.Content); i += 2 {
			name, value := node.Content[i], node.Content[i+1]
			if err := checkName(name.Value, known, "name", fmt.Sprintf("%s:%d", path, name.Line)); err != nil {
				return err
			}
			for _, f := range fields {
				if f.name == name.Value {
					if err := checkNames(value, f.kind, path); err != nil {
						return err
					}
				}
			}
		}
	}
	return nil
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
