package brokerfile

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// keyOf returns the verifier key of a witness, of type 1, with a key of 32 equal bytes.
func keyOf(t *testing.T, name string, filler byte) string {
	t.Helper()
	vkey, err := note.NewEd25519VerifierKey(name, []byte(strings.Repeat(string(rune(filler)), 32)))
	if err != nil {
		t.Fatal(err)
	}
	return vkey
}

// TestWitnessesPage reads the example of the documentation.
func TestWitnessesPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/log.md")
	if err != nil {
		t.Fatal(err)
	}
	example := regexp.MustCompile("(?s)```yaml\nlog:\n(  witnesses:\n.*?)```").FindSubmatch(page)
	if example == nil {
		t.Fatal("the page has no example")
	}
	f := parse(t, replaced(t, "  origin:", string(example[1])+"  origin:"))
	if clients, err := f.WitnessClients(); err != nil || len(clients) != 1 {
		t.Errorf("%v: %v", clients, err)
	}
}

// TestWitnesses accepts witnesses, and finds mistakes in them, each with its line.
func TestWitnesses(t *testing.T) {
	t.Parallel()
	const last = "  checkpoint-file: /mnt/other/checkpoint\n"
	list := func(all ...string) string {
		text := last + "  witnesses:\n"
		for i := 0; i < len(all); i += 2 {
			text += fmt.Sprintf("  - {url: %q, key: %q}\n", all[i], all[i+1])
		}
		return replaced(t, last, text)
	}
	a, b := keyOf(t, "a.example.com", 1), keyOf(t, "b.example.com", 2)
	const url = "https://a.example.com/witness"
	f, mistakes := Parse([]byte(list(url, a, "http://127.0.0.1:7380", b)))
	if len(mistakes) > 0 {
		t.Fatal(mistakes)
	}
	clients, err := f.WitnessClients()
	if err != nil || len(clients) != 2 || clients[1].Witness().Name() != "b.example.com" {
		t.Fatalf("%v: %v", clients, err)
	}
	var nine []string
	for i := range 9 {
		nine = append(nine, url, keyOf(t, fmt.Sprintf("%d.example.com", i), byte(i)))
	}
	for name, test := range map[string]struct{ text, want string }{
		"url":      {list("http://a.example.com", a), "witnesses[0]: \"http://a.example.com\" is not the URL of a witness"},
		"key":      {list(url, a, url, "b.example.com"), "witnesses[1]: cannot read the verifier key"},
		"no key":   {list(url, ""), "witnesses[0]: cannot read the verifier key"},
		"twice":    {list(url, a, url, b, url, a), "witnesses[2]: its key or name is that of log.witnesses[0], too"},
		"same key": {list(url, a, url, keyOf(t, "c.example.com", 1)), "witnesses[1]: its key or name"},
		"name":     {list(url, a, url, keyOf(t, "a.example.com", 3)), "witnesses[1]: its key or name"},
		"many":     {list(nine...), "log.witnesses: there are 9"},
		"unknown":  {strings.Replace(list(url, a), "url:", "uri:", 1), "uri"},
	} {
		_, mistakes := Parse([]byte(test.text))
		if len(mistakes) == 0 || !strings.Contains(mistakes.Error(), test.want) || mistakes[0].Line == 0 {
			t.Errorf("%s: %v", name, mistakes)
		}
	}
}
