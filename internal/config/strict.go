package config

import (
	"fmt"
	"reflect"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Strict reads a YAML file into a struct, whose yaml tags are all that the file may say. As in the config file, an unknown name is an
// error that names the nearest known one.
func Strict(path string, data []byte, into any) error {
	var document yaml.Node
	if err := yaml.Unmarshal(data, &document); err != nil {
		return failure.New(failure.Invalid, "check the indentation and quotes around the line it names", "%s is not valid YAML: %w", path, err)
	}
	if len(document.Content) == 0 {
		return failure.New(failure.Invalid, "name the file you mean", "%s is empty", path)
	}
	if err := checkNames(document.Content[0], reflect.TypeOf(into).Elem(), path); err != nil {
		return err
	}
	if err := document.Content[0].Decode(into); err != nil {
		return failure.New(failure.Invalid, "check the line it names", "%s: %w", path, err)
	}
	return nil
}

func checkNames(node *yaml.Node, kind reflect.Type, path string) error {
	for kind.Kind() == reflect.Pointer {
		kind = kind.Elem()
	}
	if node.Kind == yaml.AliasNode {
		return failure.New(failure.Invalid, "write it out", "%s:%d refers to another part of the file; a reviewer should see every value where it counts", path, node.Line)
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

type field struct {
	name string
	kind reflect.Type
}

// fieldsOf lists the names that a struct has in YAML, with those of the structs inlined in it.
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
