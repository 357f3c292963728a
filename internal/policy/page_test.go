package policy_test

import (
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// page returns the reference, docs/policy.md.
func page(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// block returns the only block of code in a language in the section of the page with a heading.
func block(t *testing.T, heading, language string) string {
	t.Helper()
	_, section, headed := strings.Cut(page(t), "\n"+heading+"\n")
	section, _, _ = strings.Cut(section, "\n#")
	_, rest, found := strings.Cut(section, "```"+language+"\n")
	text, after, closed := strings.Cut(rest, "```\n")
	if !headed || !found || !closed || strings.Contains(after, "```"+language+"\n") {
		t.Fatalf("the section %q has not one block of %s", heading, language)
	}
	return text
}

// TestPageExample tries the policy of the page on the request of the page.
func TestPageExample(t *testing.T) {
	t.Parallel()
	p := parse(t, block(t, "## An example", "yaml"))
	if w := p.Warnings(); len(w) > 0 {
		t.Error(w)
	}
	action, in, err := policy.ParseInput([]byte(block(t, "## Requests for `policy test`", "json")), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := names(p.Decide(action, in)); got != "nightly\nrelease" {
		t.Error(got)
	}
}

// TestPageEmergency adds the rule for emergencies of the page to its policy.
func TestPageEmergency(t *testing.T) {
	t.Parallel()
	p := parse(t, strings.Replace(block(t, "## An example", "yaml"), "    block: ",
		block(t, "### Emergencies", "yaml")+"    block: ", 1))
	if w := p.Warnings(); len(w) > 0 {
		t.Error(w)
	}
	action, in, err := policy.ParseInput([]byte(block(t, "## Requests for `policy test`", "json")), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if got := names(p.Decide(action, in)); got !=
		"nightly\nrelease\nemergency: it is for emergencies: name it, with a reason" {
		t.Error(got)
	}
	in.BreakGlass = "emergency"
	if got := names(p.Decide(action, in)); got !=
		"emergency\nnightly: the request asks for another rule\nrelease: the request asks for another rule" {
		t.Error(got)
	}
	in.Caller.Issuer = "mtls"
	if d := p.Decide(action, in); len(d.Rules) > 0 {
		t.Error("the condition of a rule for emergencies does not count")
	}
}

// TestPageTable runs each row of the table of examples.
func TestPageTable(t *testing.T) {
	t.Parallel()
	row := regexp.MustCompile("(?m)^\\| `(\\{name.*?)` \\| `(\\{.*?)` \\| (.*) \\|$")
	rows := row.FindAllStringSubmatch(page(t), -1)
	if len(rows) < 24 {
		t.Fatalf("%d rows", len(rows))
	}
	for _, cells := range rows {
		rule, request, want := strings.ReplaceAll(cells[1], `\|`, "|"), cells[2], cells[3]
		p := parse(t, "version: 1\ngroups: {security: [dave, erin]}\nkeys:\n  release:\n    key: nethsm:release\n"+
			"    formats: [notation]\n    use:\n    - "+rule+"\n")
		var values map[string]any
		if err := json.Unmarshal([]byte(request), &values); err != nil {
			t.Fatalf("%s: %v", request, err)
		}
		values["key"] = "release"
		artifact, _ := values["artifact"].(map[string]any)
		if artifact == nil {
			artifact = map[string]any{}
		}
		artifact["format"] = "notation"
		values["artifact"] = artifact
		data, err := json.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		action, in, err := policy.ParseInput(data, time.Now())
		if err != nil {
			t.Fatal(err)
		}
		d, got := p.Decide(action, in), "applies"
		if len(d.Refused) > 0 {
			got = d.Refused[0].Why
		}
		if got != want || len(d.Rules)+len(d.Refused) != 1 {
			t.Errorf("%s\n%s: %s", rule, request, got)
		}
	}
}

// TestPageVariables checks that the page describes the variables that conditions can read, and no others.
func TestPageVariables(t *testing.T) {
	t.Parallel()
	_, err := policy.Parse([]byte(rule(`when: 'nothing'`)))
	var all policy.Problems
	if !errors.As(err, &all) {
		t.Fatal(err)
	}
	known := strings.Split(strings.TrimPrefix(all[0].Hint, "known variables are "), ", ")
	_, table, found := strings.Cut(page(t), "| variable | type | value |\n| --- | --- | --- |\n")
	table, _, closed := strings.Cut(table, "\n\n")
	if !found || !closed {
		t.Fatal("the page has no table of variables")
	}
	var described []string
	for line := range strings.Lines(table) {
		described = append(described, strings.Split(line, "`")[1])
	}
	if !slices.Equal(known, described) {
		t.Errorf("%s\nthe page: %s", known, described)
	}
}

func TestParseInput(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	action, in, err := policy.ParseInput([]byte(`{"key":"k","caller":{"claims":{"n":9007199254740993}}}`), now)
	if err != nil || action != policy.Use || in.Time != now || in.Caller.Claims["n"] != json.Number("9007199254740993") {
		t.Error(action, in, err)
	}
	for text, want := range map[string]string{
		``: "not JSON", `[]`: "cannot unmarshal", `{"Key":"k"}`: `unknown name "Key"`, `{"key":"a","key":"b"}`: "twice",
		`{"caller":{"claim":{}}}`: `unknown name "claim"`, `{"artifact":{"encoding":"JWS"}}`: `unknown name "encoding"`,
		`{"caller":[]}`: "cannot unmarshal", `{"action":"sign"}`: `unknown action "sign"`, `{"time":"noon"}`: "cannot parse",
		`{"artifact":{"size":"1"}}`: "cannot unmarshal", `{} {}`: "follows",
		`{"artifact":{"annotations":{"a":1}}}`:                                            "cannot unmarshal",
		`{"caller":{"claims":` + strings.Repeat("[", 20) + strings.Repeat("]", 20) + `}}`: "deeper than 16",
	} {
		if _, _, err := policy.ParseInput([]byte(text), now); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
