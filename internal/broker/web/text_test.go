package web

import (
	"testing"
	"time"
)

// TestVisible shows what hides.
func TestVisible(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"plain, Zürich 東京": "plain, Zürich 東京",
		"a\nb":             "a⟨U+000A⟩b",
		"\u202eevil":       "⟨U+202E⟩evil",
		"a\u00a0b\u2003c":  "a⟨U+00A0⟩b⟨U+2003⟩c",
		"x\u200dy\ufeff":   "x⟨U+200D⟩y⟨U+FEFF⟩",
		"\u3164":           "⟨U+3164⟩",
		"e\u0301":          "e⟨U+0301⟩",
		"\xff":             "⟨byte FF⟩",
		"\ufffd":           "\ufffd",
		"\U000e0041":       "⟨U+E0041⟩",
	} {
		if got := visible(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
	if got := lines("a\n\tb\r"); got != "a\n\tb⟨U+000D⟩" {
		t.Errorf("%q", got)
	}
}

// TestLinks follows https alone.
func TestLinks(t *testing.T) {
	t.Parallel()
	for link, want := range map[string]bool{"https://example.com/a?b#c": true, "http://example.com": false,
		"javascript:alert(1)": false, "https:alert": false, "https://": false, "https://user@example.com": false,
		"https://example.com\\@evil": false, "https://ex\u0430mple.com": false, " https://example.com": false,
		"//example.com": false, "data:text/html,x": false, "HTTPS://example.com": true, "https://:443/": false} {
		if got := https(link) != ""; got != want {
			t.Errorf("%q: %v", link, got)
		}
	}
	hash := "0123456789abcdef0123456789abcdef01234567"
	for source, want := range map[string]string{
		"https://github.com/example/app":       "https://github.com/example/app/commit/" + hash,
		"https://github.com/example/app.git":   "https://github.com/example/app/commit/" + hash,
		"https://gitlab.example.com/group/app": "https://gitlab.example.com/group/app/-/commit/" + hash,
		"https://example.com/app":              "", "http://github.com/example/app": "", "https://github.com/a?b": "",
	} {
		if got := commit(source, hash); got != want {
			t.Errorf("%s: %s", source, got)
		}
	}
	if got := commit("https://github.com/example/app", "main"); got != "" {
		t.Error(got)
	}
}

// TestRun links to the run of a workflow by verified claims.
func TestRun(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		issuer string
		claims map[string]string
		want   string
	}{
		"github": {gitHub, map[string]string{"repository": "example/app", "run_id": "12"},
			"https://github.com/example/app/actions/runs/12"},
		"enterprise": {"https://github.example.com/_services/token", map[string]string{"repository": "a/b", "run_id": "1"},
			"https://github.example.com/a/b/actions/runs/1"},
		"repository": {gitHub, map[string]string{"repository": "example/app"}, "https://github.com/example/app"},
		"odd run":    {gitHub, map[string]string{"repository": "a/b", "run_id": "../x"}, "https://github.com/a/b"},
		"odd name":   {gitHub, map[string]string{"repository": "a/../b", "run_id": "1"}, ""},
		"gitlab": {"https://gitlab.example.com", map[string]string{"project_path": "group/sub/app", "pipeline_id": "7",
			"job_id": "8"}, "https://gitlab.example.com/group/sub/app/-/jobs/8"},
		"pipeline": {"https://gitlab.example.com", map[string]string{"project_path": "g/a", "pipeline_id": "7"},
			"https://gitlab.example.com/g/a/-/pipelines/7"},
		"no https": {"http://gitlab.example.com", map[string]string{"project_path": "g/a"}, ""},
		"mtls":     {"mtls", nil, ""},
	} {
		if got := runOf(c.issuer, c.claims); got.URL != c.want {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestWords writes sizes and times for people.
func TestWords(t *testing.T) {
	t.Parallel()
	for size, want := range map[int64]string{0: "0 bytes", 1: "1 byte", 1023: "1023 bytes", 1536: "1.5 KiB",
		5 << 30: "5.0 GiB", 1 << 60: "1048576.0 TiB"} {
		if got := bytesOf(size); got != want {
			t.Errorf("%d: %s", size, got)
		}
	}
	for d, want := range map[time.Duration]string{0: "0 seconds", time.Second: "1 second",
		90 * time.Second: "1 minute 30 seconds",
		25 * time.Hour:   "1 day 1 hour", 72 * time.Hour: "3 days", time.Hour + time.Second: "1 hour"} {
		if got := durationOf(d); got != want {
			t.Errorf("%s: %s", d, got)
		}
	}
	now := time.Unix(1000, 0)
	later, earlier := now.Add(time.Minute), now.Add(-time.Minute)
	if until(&later, now) != "in 1 minute" || until(&earlier, now) != "1 minute ago" || until(nil, now) != "" {
		t.Error(until(&later, now), until(&earlier, now))
	}
}
