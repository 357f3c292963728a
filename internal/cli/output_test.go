package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestPrintable replaces what a terminal could interpret: names on tokens and in images can come from an attacker.
func TestPrintable(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"release-2 Zürich 鍵":             "release-2 Zürich 鍵",
		"\x1b[2Jgone":                    "\ufffd[2Jgone",
		"\x1b]0;title\x07":               "\ufffd]0;title\ufffd",
		"a\rb":                           "a\ufffdb",
		"a\nb":                           "a\ufffdb",
		"a\tb\x00\x7f":                   "a\ufffdb\ufffd\ufffd",
		"\u009b2J":                       "\ufffd2J",
		"\u202egnp.exe":                  "\ufffdgnp.exe",
		"\u200b\u2066\ufeff\u2028":       "\ufffd\ufffd\ufffd\ufffd",
		"\xff\xfe":                       "\ufffd\ufffd",
		"non-breaking\u00a0space \u00ad": "non-breaking\ufffdspace \ufffd",
	} {
		if got := printable(text, ""); got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	if got := printable("a\n\tb", "\n"); got != "a\n\ufffdb" {
		t.Errorf("with line breaks: %q", got)
	}
}

// TestFormatError writes an error and its hint on lines of their own, and no control characters.
func TestFormatError(t *testing.T) {
	t.Parallel()
	f := failure.New(failure.Denied, "cannot log in to token %s", "\x1b[2J").WithHint("check pin-source\x07")
	f.CKR = "CKR_PIN_INCORRECT"
	want := "error: cannot log in to token \ufffd[2J (CKR_PIN_INCORRECT)\nhint: check pin-source\ufffd\n"
	if got := string(FormatError(f)); got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := string(FormatError(failure.New(failure.Internal, "one\ntwo"))); got != "error: one\ntwo\n" {
		t.Errorf("without a hint: %q", got)
	}
}

// TestPrintTable aligns columns, and keeps each row on its line.
func TestPrintTable(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	rows := [][]string{{"EC-256", "release\nRSA-2048 forged"}, {"RSA-2048", "a\tb"}}
	if err := PrintTable(&out, []string{"SPEC", "LABEL"}, rows); err != nil {
		t.Fatal(err)
	}
	want := "SPEC      LABEL\nEC-256    release\ufffdRSA-2048 forged\nRSA-2048  a\ufffdb\n"
	if out.String() != want {
		t.Errorf("%q, want %q", out.String(), want)
	}
	out.Reset()
	err := PrintJSON(&out, map[string]string{"label": "\x1b"})
	if err != nil || !strings.Contains(out.String(), `"\u001b"`) {
		t.Errorf("%q, %v", out.String(), err)
	}
	yes, no := true, false
	if YesNo(&yes)+YesNo(&no)+YesNo(nil)+OrDash("")+OrDash("x") != "yesnounknown-x" {
		t.Error("an attribute or an empty text is shown otherwise")
	}
}
