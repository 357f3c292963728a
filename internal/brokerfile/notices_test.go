package brokerfile

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/notice"
)

// told returns valid sections notices and contacts, with their secrets in files.
func told(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{"secret": "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
		"chat": "https://127.0.0.1:1/hook", "mail": "username: broker\npassword: word\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return strings.ReplaceAll(`notices:
- {name: ops, webhook: "https://ops.example.com/hook", secret: DIR/secret, events: [request.pending, request.signed]}
- name: chat
  slack: DIR/chat
- name: mail
  email: smtps://mail.example.com
  from: hsm-broker@example.com
  credentials: DIR/mail
contacts:
  alice: alice@example.com
  bob.b: bob@example.com
`, "DIR", dir)
}

// TestNotices reads who is told, and names each mistake with its line.
func TestNotices(t *testing.T) {
	t.Parallel()
	text := told(t)
	f := parse(t, valid+text)
	if len(f.Notices) != 3 || f.Contacts["bob.b"] != "bob@example.com" ||
		!slices.Equal(f.Notices[0].Events, []string{"request.pending", "request.signed"}) {
		t.Errorf("%+v, %v", f.Notices, f.Contacts)
	}
	if _, err := notice.New(notice.Options{Config: f.Told()}); err != nil {
		t.Error(err)
	}
	line := strings.Count(valid, "\n") + 1
	for _, c := range []struct {
		old, new string
		line     int // after the section's first
		want     string
	}{
		{"https://ops.example.com/hook", "http://ops.example.com/secret-of", 1, "notices[0].webhook: cannot be used: "},
		{"request.signed", "signed", 1, `notices[0].events[1]: "signed" is no type of notices (use some of request.pending, `},
		{"name: chat", "name: ops", 2, `notices[1].name: "ops" is notices[0], too`},
		{"/chat", "/none", 3, "notices[1].slack: cannot be used: "},
		{"smtps:", "smtpx:", 5, "notices[2].email: "},
		{"from: hsm-broker@example.com", "from: hsm-broker", 6, `notices[2].from: "hsm-broker" is not`},
		{"  credentials: ", "  secret: ", 7, "notices[2].secret: this channel has none"},
		{"alice@", "alice ", 9, `contacts.alice: "alice example.com" is not`},
		{"bob@", "bob\\n@", 10, `contacts.bob.b: "bob\\n@example.com" is not`},
		{"  from:", "  form:", 6, `unknown name "form" (did you mean from?`},
	} {
		if strings.Count(text, c.old) != 1 {
			t.Fatalf("%q is not once in the section", c.old)
		}
		_, mistakes := Parse([]byte(valid + strings.Replace(text, c.old, c.new, 1)))
		if !slices.ContainsFunc(mistakes, func(m Mistake) bool {
			return strings.Contains(m.String(), c.want) && m.Line == line+c.line && m.Hint != ""
		}) || strings.Contains(mistakes.Error(), "secret-of") {
			t.Errorf("%q: the mistakes do not have %q in line %d:\n%v", c.new, c.want, line+c.line, mistakes)
		}
	}
}

// TestNoticesDecideNothing changes who is told without a change of what decides.
func TestNoticesDecideNothing(t *testing.T) {
	t.Parallel()
	ca := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(ca, []byte("first"), 0o600); err != nil {
		t.Fatal(err)
	}
	config := strings.Replace(valid, "/etc/hsm-broker/ca.pem", ca, 1)
	without, err := parse(t, config).Decisive()
	if err != nil {
		t.Fatal(err)
	}
	with, err := parse(t, config+told(t)).Decisive()
	if err != nil || !bytes.Equal(with, without) {
		t.Errorf("%v\n%s\n%s", err, with, without)
	}
}
