package failure_test

import (
	"bytes"
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

const page = "../../docs/errors.md"

// subjects are the lists of the page, each with the packages whose messages it has. The messages of a package that is
// in none of them are in the last list.
var subjects = []struct {
	name     string
	packages []string
}{
	{"settings", []string{"config", "key"}},
	{"PIN", []string{"pin"}},
	{"certificates", []string{"certs", "signer"}},
	{"modules", []string{"pkcs11", "keystore"}},
	{"NetHSM", []string{"nethsm"}},
	{"plugin", []string{"plugin"}},
	{"commands", []string{"cli", "custody", "notation-hsm"}},
	{"CA", []string{"ca"}},
	{"trust", []string{"trust", "scope"}},
	{"images", []string{"image", "layerkey", "keyprovider", "hsm-image"}},
	{"verification", []string{"gate", "sandbox"}},
	{"everywhere", nil},
}

// TestErrorPage verifies that docs/errors.md lists every message of the code and no other, and every PKCS#11 return
// value that has a meaning of its own. UPDATE_DOCS=1 writes the lists into the page.
func TestErrorPage(t *testing.T) {
	t.Parallel()
	code := loadCode(t)
	had, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	messages := code.messages(t)
	want := had
	for _, s := range subjects {
		var list []string
		for _, name := range s.packages {
			list = append(list, messages[name]...)
			delete(messages, name)
		}
		if s.packages == nil {
			for _, rest := range messages {
				list = append(list, rest...)
			}
		}
		want = replaceSection(t, want, s.name, "```text\n"+outline(list)+"```\n")
	}
	want = replaceSection(t, want, "return values", code.returnValues(t))
	switch {
	case bytes.Equal(had, want):
	case os.Getenv("UPDATE_DOCS") == "":
		t.Errorf("docs/errors.md differs from the code: run UPDATE_DOCS=1 go test ./internal/failure\n%s",
			difference(had, want))
	default:
		if err := os.WriteFile(page, want, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// replaceSection replaces what is between the comments "begin NAME" and "end NAME" of a page.
func replaceSection(t *testing.T, page []byte, name, text string) []byte {
	t.Helper()
	begin, end := []byte("<!-- begin "+name+" -->\n"), []byte("<!-- end "+name+" -->\n")
	before, rest, ok := bytes.Cut(page, begin)
	_, after, closed := bytes.Cut(rest, end)
	if !ok || !closed {
		t.Fatalf("docs/errors.md has no section %q", name)
	}
	return slices.Concat(before, begin, []byte(text), end, after)
}

// difference lists the lines that only one of two pages has.
func difference(had, want []byte) string {
	var out strings.Builder
	a, b := strings.SplitAfter(string(had), "\n"), strings.SplitAfter(string(want), "\n")
	list := func(sign string, lines, other []string) {
		for _, line := range lines {
			if !slices.Contains(other, line) {
				out.WriteString(sign + line)
			}
		}
	}
	list("- ", a, b)
	list("+ ", b, a)
	return out.String()
}

const (
	sharedWords = 2 // from so many on, the words that messages begin with are written once
	shownWords  = 8 // of a message
)

// outline sorts messages, one a line. Messages that begin with the same words stand indented below these.
func outline(messages []string) string {
	for i, message := range messages {
		messages[i] = shorten(message)
	}
	slices.SortFunc(messages, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a), strings.ToLower(b)), cmp.Compare(a, b))
	})
	messages = slices.Compact(messages)
	var out strings.Builder
	for len(messages) > 0 {
		first := strings.Fields(messages[0])
		same := 1
		for same < len(messages) && shared(first, strings.Fields(messages[same])) >= sharedWords {
			same++
		}
		if same == 1 {
			out.WriteString(messages[0] + "\n")
		} else {
			words := len(first)
			for _, message := range messages[1:same] {
				words = min(words, shared(first, strings.Fields(message)))
			}
			fmt.Fprintln(&out, strings.Join(first[:words], " "))
			for _, message := range messages[:same] {
				fmt.Fprintln(&out, " ", strings.Join(strings.Fields(message)[words:], " "))
			}
		}
		messages = messages[same:]
	}
	return out.String()
}

// shorten returns the beginning of a message, to the end of a clause if possible.
func shorten(message string) string {
	words := strings.Fields(message)
	for i, word := range words[:min(len(words), shownWords)] {
		if i >= 4 && strings.ContainsAny(word[len(word)-1:], ":;,") && i+1 < len(words) {
			return strings.Join(words[:i+1], " ") + "..."
		}
	}
	if len(words) > shownWords {
		return strings.Join(words[:shownWords], " ") + "..."
	}
	return message
}

// shared returns how many words two messages begin with that are the same, fewer than either has.
func shared(a, b []string) int {
	n := 0
	for n < len(a)-1 && n < len(b)-1 && a[n] == b[n] {
		n++
	}
	return n
}
