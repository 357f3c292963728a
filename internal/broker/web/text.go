package web

import (
	"encoding/base64"
	"fmt"
	"html/template"
	"net/url"
	"regexp"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/identity"
	"github.com/notation-hsm/notation-hsm/internal/policy"
)

// What is shown of a text from outside.
const (
	maxShown = 300     // characters of a line
	maxBlock = 300_000 // characters of a policy or a document
)

// functions are those of the templates.
var functions = template.FuncMap{
	"visible": visible, "lines": lines, "time": timeOf, "until": until, "bytes": bytesOf, "https": https,
	"commit": commit, "path": pathEscape, "join": strings.Join, "base64": base64.StdEncoding.EncodeToString,
	"short": short, "seconds": secondsOf, "issuer": issuerOf, "needed": needed, "kind": kindOf, "kinds": kindsOf,
	"dotted": dotted, "sentence": sentence,
}

// visible returns a line of a text from outside, cut after maxShown characters. What could hide, or change how other
// text appears, such as changes of direction, is replaced by its code point.
func visible(text any) string { return readable(fmt.Sprint(text), maxShown, false) }

// lines returns a text from outside of many lines, likewise.
func lines(text any) string {
	if data, ok := text.([]byte); ok {
		return readable(string(data), maxBlock, true)
	}
	return readable(fmt.Sprint(text), maxBlock, true)
}

func readable(text string, most int, many bool) string {
	var b strings.Builder
	n := 0
	for i, r := range text {
		if n++; n > most {
			b.WriteString("… (cut)")
			break
		}
		_, width := utf8.DecodeRuneInString(text[i:])
		switch {
		case r == utf8.RuneError && width <= 1:
			fmt.Fprintf(&b, "⟨byte %02X⟩", text[i])
		case many && (r == '\n' || r == '\t'):
			b.WriteRune(r)
		case r == ' ' || unicode.IsGraphic(r) && !unicode.Is(unicode.Zs, r) && !hidden(r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, "⟨U+%04X⟩", r)
		}
	}
	return b.String()
}

// hidden reports whether a character is not seen, although it is graphic: fillers, selectors of variants, and marks
// that stack.
func hidden(r rune) bool {
	switch r {
	case 0x115F, 0x1160, 0x3164, 0xFFA0, 0x034F, 0x17B4, 0x17B5, 0x2800:
		return true
	}
	return unicode.Is(unicode.Mn, r) || unicode.Is(unicode.Me, r)
}

// timeLayout is how times are shown.
const timeLayout = "2006-01-02 15:04:05 UTC"

// timeOf returns a time as an element. nil and the zero time are shown as a dash.
func timeOf(at any) template.HTML {
	var t time.Time
	switch at := at.(type) {
	case time.Time:
		t = at
	case *time.Time:
		if at != nil {
			t = *at
		}
	}
	if t.IsZero() {
		return "–"
	}
	t = t.UTC()
	text := `<time datetime="` + t.Format(time.RFC3339) + `">` + t.Format(timeLayout) + `</time>`
	return template.HTML(text) //nolint:gosec // it has digits alone
}

// until returns how far away a time is, in words.
func until(at *time.Time, now time.Time) string {
	if at == nil {
		return ""
	}
	d := at.Sub(now)
	if d <= 0 {
		return durationOf(-d) + " ago"
	}
	return "in " + durationOf(d)
}

// durationOf returns a duration in its two largest units.
func durationOf(d time.Duration) string {
	seconds := int64(d / time.Second)
	units := []struct {
		size int64
		name string
	}{{86400, "day"}, {3600, "hour"}, {60, "minute"}, {1, "second"}}
	for i, u := range units {
		if seconds < u.size {
			continue
		}
		text := plural(seconds/u.size, u.name)
		if i+1 < len(units) {
			if rest := seconds % u.size / units[i+1].size; rest > 0 {
				text += " " + plural(rest, units[i+1].name)
			}
		}
		return text
	}
	return "0 seconds"
}

func secondsOf(n int64) string { return durationOf(time.Duration(n) * time.Second) }

func plural[T int | int64](n T, name string) string {
	if n == 1 {
		return "1 " + name
	}
	return fmt.Sprintf("%d %ss", n, name)
}

// bytesOf returns a size for people.
func bytesOf(size int64) string {
	const unit = 1024
	if size < unit {
		return plural(size, "byte")
	}
	value, names := float64(size)/unit, []string{"KiB", "MiB", "GiB", "TiB"}
	for i, name := range names {
		if value < unit || i == len(names)-1 {
			return fmt.Sprintf("%.1f %s", value, name)
		}
		value /= unit
	}
	return ""
}

// https returns a link from outside if it is one that a person may follow: a URL of https with a host name and no
// credentials. It returns "" for all others.
func https(text string) string {
	odd := func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("\\\"<>`", r) }
	if len(text) > 500 || strings.ContainsFunc(text, odd) {
		return ""
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.Hostname() == "" || u.User != nil || u.Opaque != "" {
		return ""
	}
	return u.String()
}

// commitID is the ID of a commit of Git.
var commitID = regexp.MustCompile(`^[0-9a-f]{40}([0-9a-f]{24})?$`)

// commit returns a link to a revision at the source that an image claims, where the host is known, and "" elsewhere.
func commit(source, revision string) string {
	page := strings.TrimSuffix(strings.TrimSuffix(https(source), "/"), ".git")
	switch {
	case !commitID.MatchString(revision) || strings.ContainsAny(page, "?#"):
	case strings.HasPrefix(page, "https://github.com/"):
		return page + "/commit/" + revision
	case strings.HasPrefix(page, "https://gitlab."):
		return page + "/-/commit/" + revision
	}
	return ""
}

func pathEscape(text string) string { return url.PathEscape(text) }

// short returns the beginning of a digest.
func short(digest string) string {
	algorithm, hash, found := strings.Cut(digest, ":")
	if !found || len(hash) <= 12 {
		return visible(digest)
	}
	return visible(algorithm + ":" + hash[:12] + "…")
}

// issuerOf says by what a requester was authenticated.
func issuerOf(issuer string) string {
	switch issuer {
	case identity.IssuerMTLS:
		return "by client certificate"
	case identity.IssuerUnix:
		return "user id on the broker's host"
	case identity.IssuerApprover:
		return "approver"
	case gitHub:
		return "at GitHub Actions"
	}
	return "at " + visible(issuer)
}

// kindOf names a kind of credentials.
func kindOf(kind string) string {
	switch approval.Kind(kind) {
	case approval.Key:
		return "key in a module"
	case approval.SSH:
		return "SSH key"
	}
	return visible(kind)
}

// kindsOf names kinds of credentials, any one of which is enough.
func kindsOf(all []string) string {
	names := make([]string, len(all))
	for i, kind := range all {
		names[i] = kindOf(kind)
	}
	return strings.Join(names, " or ")
}

// needed says what a need is for.
func needed(n brokerapi.Need) string {
	key := visible(n.Key)
	switch {
	case policy.Action(n.Action) == policy.Modify && n.Key == "":
		return "To change what belongs to all keys"
	case policy.Action(n.Action) == policy.Modify:
		return "To change the rules of the key " + key
	}
	return "To " + n.Action + " the key " + key
}

// dotted returns a path of a policy, which the browser may break after its dots.
func dotted(path string) template.HTML {
	escaped := template.HTMLEscapeString(visible(path))
	return template.HTML(strings.ReplaceAll(escaped, ".", ".<wbr>")) //nolint:gosec // it is escaped
}

// sentence returns a line of a text as a sentence.
func sentence(text string) string {
	shown := visible(text)
	first, size := utf8.DecodeRuneInString(shown)
	shown = string(unicode.ToUpper(first)) + shown[size:]
	return strings.TrimSuffix(shown, ".") + "."
}
