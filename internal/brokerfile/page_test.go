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

// TestManifests reads the configs of the manifests for Kubernetes.
func TestManifests(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"broker.yaml", "replicas.yaml"} {
		data, err := os.ReadFile("../../deploy/broker/kubernetes/" + name)
		if err != nil {
			t.Fatal(err)
		}
		_, text, found := strings.Cut(string(data), "  config.yaml: |\n")
		text, _, ends := strings.Cut(text, "\n  policy.yaml: |\n")
		if !found || !ends {
			t.Fatalf("%s has no config", name)
		}
		text, _, _ = strings.Cut(text, "\n  db-ca.pem: ")
		if _, mistakes := Parse([]byte(strings.ReplaceAll(text, "\n    ", "\n")[4:])); len(mistakes) > 0 {
			t.Errorf("%s: %v", name, mistakes)
		}
	}
}

// TestReplicasPage reads the settings of the page on replicas.
func TestReplicasPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/replicas.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\n(store:.*?)```").FindSubmatch(page)
	if example == nil {
		t.Fatal("the page has no example")
	}
	parse(t, replaced(t, sqliteStore, string(example[1])))
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
