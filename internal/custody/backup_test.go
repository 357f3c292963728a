package custody

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestExactly refuses backups and shares with unknown, repeated or differently spelt names, even if the values that are
// read are unchanged.
func TestExactly(t *testing.T) {
	t.Parallel()
	backup, err := json.MarshalIndent(exampleBackup(t), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	_, _, shares, err := split("release", 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	share, err := json.MarshalIndent(shares[0], "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		text, label string
		parse       func(data string) error
	}{
		"backup": {string(backup), `"label": "release"`,
			func(data string) error { _, err := parseBackup("file", []byte(data)); return err }},
		"share": {string(share), `"key": "release"`,
			func(data string) error { _, err := parseShare("file", []byte(data)); return err }},
	} {
		edit := func(with string) string {
			if !strings.Contains(c.text, c.label) {
				t.Fatalf("there is no %s in %s", c.label, c.text)
			}
			return strings.Replace(c.text, c.label, with, 1)
		}
		for _, same := range []string{c.text, c.text + "\n", strings.ReplaceAll(c.text, "\n", "\r\n"),
			strings.ReplaceAll(c.text, "\n  ", "")} {
			if err := c.parse(same); err != nil {
				t.Errorf("%s: only white space was changed: %v in %s", name, err, same)
			}
		}
		for _, other := range []string{
			edit(strings.ToUpper(c.label[:5]) + c.label[5:]), edit(c.label + `, "other": 1`), edit(c.label + ", " + c.label),
			edit(`"other": {}, ` + c.label),
			edit(strings.Replace(c.label, "release", `\u0072elease`, 1)), c.text + "{}", "[" + c.text + "]",
			c.text[:len(c.text)-1], "\xef\xbb\xbf" + c.text,
		} {
			if err := c.parse(other); err == nil {
				t.Errorf("%s: this passes: %s", name, other)
			}
		}
	}
}
