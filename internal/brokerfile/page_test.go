package brokerfile

import (
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPage compares the settings of the documentation with those of the file.
func TestPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/broker-config.md")
	if err != nil {
		t.Fatal(err)
	}
	var documented []string
	for _, match := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\|").FindAllSubmatch(page, -1) {
		documented = append(documented, string(match[1]))
	}
	known := settingsOf("", reflect.TypeFor[File]())
	for _, name := range known {
		if !slices.Contains(documented, name) {
			t.Errorf("the page does not have %s", name)
		}
	}
	for _, name := range documented {
		if !slices.Contains(known, name) {
			t.Errorf("the file has no %s", name)
		}
	}
	for i, text := range regexp.MustCompile("(?s)```yaml\n(version.*?)```").FindAllSubmatch(page, -1) {
		if _, mistakes := Parse(text[1]); len(mistakes) > 0 {
			t.Errorf("example %d: %v", i, mistakes)
		}
	}
}

// settingsOf returns the paths of the settings in a type: those that hold no others.
func settingsOf(at string, kind reflect.Type) (all []string) {
	switch {
	case kind == reflect.TypeFor[Module]():
		for _, name := range settings {
			all = append(all, at+"."+name)
		}
		return all
	case kind.Kind() == reflect.Pointer:
		return settingsOf(at, kind.Elem())
	case kind.Kind() == reflect.Map:
		return settingsOf(at+".NAME", kind.Elem())
	case kind.Kind() == reflect.Slice && kind.Elem().Kind() != reflect.String:
		return settingsOf(at+"[]", kind.Elem())
	case kind.Kind() == reflect.Struct:
		for i := range kind.NumField() {
			if name := kind.Field(i).Tag.Get("yaml"); name != "" {
				all = append(all, settingsOf(strings.TrimPrefix(at+"."+name, "."), kind.Field(i).Type)...)
			}
		}
	}
	if len(all) == 0 {
		return []string{at}
	}
	return all
}
