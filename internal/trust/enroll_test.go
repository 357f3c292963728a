package trust

import (
	"os"
	"testing"
)

// TestEnroll finds a signer by its certificate and paths, and names a new one so that it hides no other.
func TestEnroll(t *testing.T) {
	t.Parallel()
	path := tagged(t)
	const tools = "registry.example.com/team/tools"
	if _, err := AddTags(t.Context(), path, Tags{Scope: tools, Root: root(1, "a")}, false); err != nil {
		t.Fatal(err)
	}
	carol, dave := file(t, issue(t, name("carol"), false, nil)), file(t, issue(t, name("dave"), false, nil))
	for _, step := range []struct {
		cert, name, scope string
		paths             []string
		want              string
		added             bool
	}{
		{carol, "carol", app, []string{"v*", "a*"}, "carol", true},
		{carol, "carol", app, []string{"a*", "v*"}, "carol", false},
		{carol, "other", app, []string{"a*", "v*"}, "carol", false},
		{carol, "other", tools, []string{"a*", "v*"}, "carol", true},
		{carol, "carol", tools, []string{"x*"}, "carol-team-tools", true},
		{carol, "carol", tools, []string{"x*"}, "carol-team-tools", false},
		{dave, "carol", app, nil, "carol-team-app", true},
		{dave, "carol", app, nil, "carol-team-app", false},
	} {
		cert, err := FromFile(step.cert, "")
		if err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		s, added, err := Enroll(t.Context(), path, Grant{Name: step.name, Scopes: []string{step.scope}, Paths: step.paths,
			Cert: cert})
		if err != nil || s.Name != step.want || added != step.added {
			t.Errorf("%+v: %+v %t %v", step, s, added, err)
		}
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if changed := string(before) != string(after); changed != step.added {
			t.Errorf("%+v: the manifest changed: %t", step, changed)
		}
	}
}
