package brokerfile

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tagged is a valid section tags.
const tagged = `tags:
- repository: registry.example.com/team/app
  root: /etc/hsm-broker/root-app.json
  snapshot: tuf-snapshot
  timestamp: tuf-timestamp
`

// TestTags reads the repositories whose tags are published, and names each mistake with its line.
func TestTags(t *testing.T) {
	t.Parallel()
	f := parse(t, valid+tagged)
	if want := (Tags{"registry.example.com/team/app", "/etc/hsm-broker/root-app.json", "tuf-snapshot",
		"tuf-timestamp"}); len(f.Tags) != 1 || f.Tags[0] != want {
		t.Errorf("%+v", f.Tags)
	}
	line := strings.Count(valid, "\n") + 2
	for _, c := range []struct{ old, new, want string }{
		{"registry.example.com/team/app", "registry.example.com/team/app:v1", "tags[0].repository: "},
		{"registry.example.com/team/app", "https://registry.example.com/team/app", "tags[0].repository: "},
		{"registry.example.com/team/app", "other.example.com/team/app",
			"tags[0].repository: the registry other.example.com is not listed"},
		{"registry.example.com/team/app", "REGISTRY.example.com/team/app", "is not its normal form (write registry."},
		{"/etc/hsm-broker/root-app.json", "root-app.json", `tags[0].root: "root-app.json" is not an absolute path`},
		{"  snapshot: tuf-snapshot\n", "", "tags[0].snapshot: is missing"},
		{"  timestamp: tuf-timestamp\n", "", "tags[0].timestamp: is missing"},
		{"tuf-timestamp\n", "a\n" + strings.TrimPrefix(tagged, "tags:\n"), "tags[1].repository: "},
		{"  snapshot:", "  snapsot:", `unknown name "snapsot" (did you mean snapshot?`},
		{tagged, strings.Repeat(strings.TrimPrefix(tagged, "tags:\n"), 101), "has 101 repositories, more than 100"},
	} {
		text := strings.Replace(tagged, c.old, c.new, 1)
		if !strings.HasPrefix(text, "tags:") {
			text = "tags:\n" + text
		}
		_, mistakes := Parse([]byte(valid + text))
		if !slices.ContainsFunc(mistakes, func(m Mistake) bool {
			return strings.Contains(m.String(), c.want) && m.Line >= line-1 && m.Hint != ""
		}) {
			t.Errorf("%.60q: the mistakes do not have %q:\n%v", c.new, c.want, mistakes)
		}
	}
}

// TestTagsDecide changes what decides with each setting, and with the content of a root.
func TestTagsDecide(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca, root := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "root.json")
	for _, path := range []string{ca, root} {
		if err := os.WriteFile(path, []byte("first"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	decisive := func(old, replacement string) []byte {
		t.Helper()
		text := strings.Replace(valid+tagged, old, replacement, 1)
		text = strings.Replace(text, "/etc/hsm-broker/ca.pem", ca, 1)
		f := parse(t, strings.Replace(text, "/etc/hsm-broker/root-app.json", root, 1))
		data, err := f.Decisive()
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	first := decisive("", "")
	for _, change := range [][2]string{{"team/app", "team/other"}, {"tuf-snapshot", "other"}, {"tuf-timestamp", "other"},
		{tagged, ""}} {
		if bytes.Equal(decisive(change[0], change[1]), first) {
			t.Errorf("it does not change with %q", change)
		}
	}
	if err := os.WriteFile(root, []byte("second"), 0o600); err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(decisive("", ""), first) {
		t.Error("it does not change with the content of a root")
	}
}
