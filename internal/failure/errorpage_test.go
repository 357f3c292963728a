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
	{"verification", []string{"gate", "sandbox", "verification", "dockercli", "docker-hsm"}},
	{"everywhere", nil},
}

// TestErrorPage verifies that docs/errors.md lists every message of the code and no other, what becomes of each
// kind of failure, and the meaning of PKCS#11 return values. UPDATE_DOCS=1 writes the lists into the page.
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
	want = replaceSection(t, want, "kinds", code.kinds(t))
	want = replaceSection(t, want, "values", code.returnValues(t))
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

// replaceSection replaces what is between the comments begin:NAME and end:NAME of a page.
func replaceSection(t *testing.T, page []byte, name, text string) []byte {
	t.Helper()
	begin, end := []byte("<!--begin:"+name+"-->\n"), []byte("<!--end:"+name+"-->\n")
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
	sharedWords = 2 // messages that begin with so many words in common are listed below these words
	aloneWords  = 7 // shown of a message
	belowWords  = 4 // shown of a message after the words in common
)

// outline sorts messages, one a line. Messages that begin alike are indented below their common beginning.
func outline(messages []string) string {
	slices.SortFunc(messages, func(a, b string) int {
		return cmp.Or(cmp.Compare(strings.ToLower(a), strings.ToLower(b)), cmp.Compare(a, b))
	})
	messages = slices.Compact(messages)
	var out strings.Builder
	for len(messages) > 0 {
		first := strings.Fields(messages[0])
		group, prefix := 1, len(first)
		for ; group < len(messages); group++ {
			n := shared(first, strings.Fields(messages[group]))
			if n < sharedWords {
				break
			}
			prefix = min(prefix, n)
		}
		if group == 1 {
			fmt.Fprintln(&out, shorten(first, aloneWords))
		} else {
			fmt.Fprintln(&out, strings.Join(first[:prefix], " "))
			var below []string
			for _, message := range messages[:group] {
				below = append(below, shorten(strings.Fields(message)[prefix:], belowWords))
			}
			for _, line := range slices.Compact(below) {
				fmt.Fprintln(&out, " ", line)
			}
		}
		messages = messages[group:]
	}
	return out.String()
}

// shorten returns the first words of a message, to the end of a clause if possible, or all if only one more is left.
func shorten(words []string, limit int) string {
	for i, word := range words[:min(len(words), limit)] {
		if i >= 3 && strings.ContainsAny(word[len(word)-1:], ":;,") {
			limit = i + 1
		}
	}
	if len(words) <= limit+1 {
		return strings.Join(words, " ")
	}
	return strings.Join(words[:limit], " ") + "..."
}

// shared returns how many words two messages begin with that are the same, fewer than either has.
func shared(a, b []string) int {
	n := 0
	for n < len(a)-1 && n < len(b)-1 && a[n] == b[n] {
		n++
	}
	return n
}
