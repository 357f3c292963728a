package notice

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"mime/quotedprintable"
	"net/mail"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// mailChannel is a channel of mail whose server nobody asks.
func mailChannel(name string, events ...string) Channel {
	return Channel{Name: name, Email: "smtps://127.0.0.1:1", From: "hsm-broker@example.com", Events: events}
}

// TestRows tells those whom an event concerns, once each.
func TestRows(t *testing.T) {
	t.Parallel()
	f := newFixture(t, Config{
		Channels: []Channel{mailChannel("mail"), mailChannel("signed", broker.NoticeSigned),
			{Name: "hook", Webhook: "http://127.0.0.1:1/", Secret: writeKey(t)},
			{Name: "chat", Slack: writeFile(t, "http://127.0.0.1:1/"), Events: []string{broker.NoticePending,
				broker.NoticeRejected}}},
		Contacts: map[string]string{"alice": "alice@example.com", "carol": "carol@example.com", "dave": "dave@example.com"},
	})
	told := func(e broker.Notice) string {
		var all []string
		for _, r := range f.Rows(e) {
			all = append(all, strings.TrimSuffix(r.Channel+" "+r.Recipient, " "))
			if !r.Created.Equal(e.Time) || !r.Due.Equal(e.Time) || len(r.Body) == 0 || r.Attempts != 0 {
				t.Errorf("%+v", r)
			}
		}
		slices.Sort(all)
		return strings.Join(all, ", ")
	}
	emergency := event("r1", broker.NoticePending)
	emergency.Everyone = true
	machine := event("r1", broker.NoticeExpired)
	machine.Requester = ""
	twice := event("r1", broker.NoticeReminder)
	twice.People = []string{"dave", "alice", "dave", "bob"}
	for _, one := range []struct {
		event broker.Notice
		want  string
	}{
		{event("r1", broker.NoticePending), "chat, hook, mail alice"}, // bob has no contact
		{twice, "hook, mail alice, mail dave"},
		{emergency, "chat, hook, mail alice, mail carol, mail dave"},
		{event("r1", broker.NoticeApproved), "hook, mail carol"},
		{event("r1", broker.NoticeRejected), "chat, hook, mail carol"},
		{event("r1", broker.NoticeCancelled), "hook, mail carol"},
		{event("r1", broker.NoticeSigned), "hook, mail carol, signed carol"},
		{machine, "hook"},
	} {
		if got := told(one.event); got != one.want {
			t.Errorf("%s tells %s, not %s", one.event.Type, got, one.want)
		}
	}
	first, again := ids(f.Rows(emergency)), ids(f.Rows(emergency))
	other := ids(f.Rows(event("r2", broker.NoticePending)))
	if !slices.Equal(first, again) {
		t.Errorf("the same event has other IDs: %v, %v", first, again)
	}
	all := append(first, other...)
	slices.Sort(all)
	if len(slices.Compact(all)) != len(first)+len(other) {
		t.Errorf("IDs come twice: %v", all)
	}
	none := newFixture(t, Config{})
	if rows := none.Rows(emergency); rows != nil {
		t.Errorf("%v", rows)
	}
}

// hostile are texts that try to be more than texts.
var hostile = []string{
	"<!channel> & <https://evil.example.com|the page> <@U1>", "`code` *bold* _it_ ~no~",
	"a\r\nBcc: eve@example.com\r\n\r\nx",
	"\u202eevil\u202c \u2066x\u2069 \u200b \u2028 \u0085 \x00 \x1b[31m \xff\xfe",
	"@channel @here https://evil.example.com",
	"=?utf-8?q?evil?=", ".\r\n.\r\nMAIL FROM:<eve@example.com>", strings.Repeat("<&>", 100_000),
	strings.Repeat("\u202e", 100_000), strings.Repeat("🔑`", 10_000),
}

// hostileEvent returns an event all texts of which are one.
func hostileEvent(kind, text string) broker.Notice {
	e := event("r1", kind)
	r := &e.Request
	r.Key, r.Rule, r.Repository, r.What, r.Why, r.Reason, r.Person = text, text, text, text, text, text, text
	r.Requester = brokerapi.Requester{Issuer: text, Subject: text}
	r.Artifact.Digest, r.Artifact.MediaType = text, text
	for range 60 {
		e.People = append(e.People, text)
		n := brokerapi.Need{Action: text, Key: text}
		for range 20 {
			a := brokerapi.Alternative{Rule: text}
			for range 10 {
				a.Groups = append(a.Groups, brokerapi.GroupNeed{Group: text, Lacking: 1})
			}
			n.Alternatives = append(n.Alternatives, a)
		}
		r.Needs = append(r.Needs, n)
	}
	return e
}

// TestHostile keeps texts of others within their place and their size, in each channel.
func TestHostile(t *testing.T) {
	t.Parallel()
	n := &Notices{url: publicURL}
	for _, kind := range Events {
		for i, text := range hostile {
			e := hostileEvent(kind, text)
			if i%2 == 1 {
				e.Request.What = "" // a signature
			}
			body := n.messageOf(&e).encode()
			if len(body) > store.MaxNotice {
				t.Fatalf("%.30q: %d bytes", text, len(body))
			}
			m, err := decode(body)
			if err != nil {
				t.Fatal(err)
			}
			checkSlack(t, m, text)
			checkMail(t, m, text)
		}
	}
}

// checkSlack verifies that the only markup is ours.
func checkSlack(t *testing.T, m *message, text string) {
	t.Helper()
	var got struct {
		Text   string
		Blocks []slackBlock
	}
	if err := json.Unmarshal(m.slack(), &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Blocks) > 50 {
		t.Errorf("%.30q: %d blocks", text, len(got.Blocks))
	}
	texts := []string{got.Text}
	for _, b := range got.Blocks {
		if b.Type == "header" {
			if b.Text.Type != "plain_text" || utf8.RuneCountInString(b.Text.Text) > 150 {
				t.Errorf("%.30q: header %q", text, b.Text.Text)
			}
			continue
		}
		if b.Text.Type != "mrkdwn" || !b.Text.Verbatim || utf8.RuneCountInString(b.Text.Text) > 3000 {
			t.Errorf("%.30q: section with %d characters", text, utf8.RuneCountInString(b.Text.Text))
		}
		texts = append(texts, b.Text.Text)
	}
	const page = "<" + publicURL + "/requests/r1|Open the page of the request>"
	for _, one := range texts {
		for i, l := range strings.Split(strings.TrimSuffix(one, "\n"), "\n") {
			if l == page || i == 0 && one == got.Text && !strings.ContainsAny(l, "<>&`@") {
				continue
			}
			label, value, found := strings.Cut(l, ":* `")
			inside := strings.TrimSuffix(value, "`")
			if !found || !strings.HasPrefix(label, "*") || !strings.HasSuffix(value, "`") ||
				strings.ContainsAny(label+inside, "<>`\r") {
				t.Errorf("%.30q: line %q", text, l)
			}
		}
	}
}

// checkMail verifies that a mail has our headers and lines alone.
func checkMail(t *testing.T, m *message, text string) {
	t.Helper()
	data := string(m.mail("msg_1", "hsm-broker@example.com", "alice@example.com"))
	parsed, err := mail.ReadMessage(strings.NewReader(data))
	if err != nil {
		t.Fatalf("%.30q: %v", text, err)
	}
	if len(parsed.Header) != 9 || parsed.Header.Get("To") != "alice@example.com" ||
		parsed.Header.Get("Message-ID") != "<msg_1@example.com>" {
		t.Errorf("%.30q: headers %q", text, parsed.Header)
	}
	if at, err := parsed.Header.Date(); err != nil || !at.Equal(m.Time) {
		t.Errorf("date %s, %v", at, err)
	}
	subject, err := (&mime.WordDecoder{}).DecodeHeader(parsed.Header.Get("Subject"))
	if want := strings.ReplaceAll(m.title(), "=?", "=\ufffd"); err != nil || subject != want {
		t.Errorf("%.30q: subject %q instead of %q, %v", text, subject, want, err)
	}
	for _, l := range strings.SplitAfter(data, "\r\n") {
		if len(l) > 200 || strings.Count(l, "\n")+strings.Count(l, "\r") > 2 || strings.Trim(l, "\r\n") == "." {
			t.Errorf("%.30q: line %q", text, l)
		}
	}
	body, err := io.ReadAll(quotedprintable.NewReader(parsed.Body))
	if err != nil {
		t.Fatal(err)
	}
	if !utf8.Valid(body) {
		t.Errorf("%.30q: not UTF-8", text)
	}
	lines := strings.Split(strings.TrimSuffix(string(body), "\r\n"), "\r\n")
	if lines[0] != m.title() || lines[1] != "" || lines[2] != "Page: "+publicURL+"/requests/r1" {
		t.Errorf("%.30q: %q", text, lines[:3])
	}
	want := len(m.lines()) + 3
	if m.closing() != "" {
		want += 2
	}
	if len(lines) != want {
		t.Errorf("%.30q: %d lines instead of %d: %.2000q", text, len(lines), want, body)
	}
	for _, r := range string(body) {
		if strings.ContainsRune("\u202e\u202c\u2066\u2069\u200b\u2028\u0085\x00\x1b", r) {
			t.Errorf("%.30q: character %U", text, r)
		}
	}
}

// TestText compares the words of a notice of each type.
func TestText(t *testing.T) {
	t.Parallel()
	n := &Notices{url: publicURL}
	e := event("r1", broker.NoticePending)
	e.Everyone = true
	from := start.AddDate(0, 0, 1)
	e.Request.NotBefore = &from
	want := `Emergency: Approval needed for a signature with the key release

Page: https://broker.example.com/requests/r1
Emergency: an emergency rule was used, and everyone is told
Request: r1
Artifact: sha256:aa
Media type: application/vnd.oci.image.manifest.v1+json, 1234 bytes
Repository: registry.example.com/app
Requested by: CN=ci (mtls)
Their reason: the release of today
Rule: release
Needed for use: 2 of release-managers and 1 of security (rule release)
Who can approve: bob, alice
Not before: 2026-03-05 05:06 UTC
Until: 2026-03-07 05:06 UTC

To approve or reject it, open the page, or run: hsm-broker approve r1
`
	if got := n.messageOf(&e).text(); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	for kind, want := range map[string]string{
		broker.NoticeReminder: "Approval still needed for X", broker.NoticeApproved: "Approved: X",
		broker.NoticeRejected: "Rejected: X", broker.NoticeExpired: "Expired: X", broker.NoticeCancelled: "Cancelled: X",
		broker.NoticeSigned: "Signed with the key release",
	} {
		e := event("r1", kind)
		e.Request.Reason = "see https://example.com"
		m := n.messageOf(&e)
		if got := m.title(); got != strings.Replace(want, "X", "a signature with the key release", 1) {
			t.Errorf("%s: %s", kind, got)
		}
		asks := strings.Contains(m.text(), "approve r1") && strings.Contains(m.text(), "Who can approve: ")
		says := strings.Contains(m.text(), "Why: see https[:]//example.com\n")
		if asks != (kind == broker.NoticeReminder) || says == (asks || kind == broker.NoticeApproved) {
			t.Errorf("%s:\n%s", kind, m.text())
		}
	}
	for what, want := range map[string]string{"policy": "a change of the policy", "config": "a change of the config",
		"block": "blocking the key release", "unblock": "unblocking the key release", "epoch": "a new epoch of the log",
		"enrol": "a new credential of erin", "remove": "the removal of a credential of erin", "more": "a change: more"} {
		e := event("r1", broker.NoticePending)
		e.Request.What, e.Request.Person, e.Request.Artifact = what, "erin", nil
		if got := n.messageOf(&e).title(); got != "Approval needed for "+want {
			t.Errorf("%s: %s", what, got)
		}
	}
}

// TestPeople counts the people that a notice does not name.
func TestPeople(t *testing.T) {
	t.Parallel()
	n := &Notices{url: publicURL}
	e := event("r1", broker.NoticePending)
	e.People = nil
	for i := range 1000 {
		e.People = append(e.People, fmt.Sprint("person", i))
	}
	if text := n.messageOf(&e).text(); !strings.Contains(text, "person49 and 950 more\n") {
		t.Error(text)
	}
}

// TestClean compares texts before and after.
func TestClean(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{"": "", "a": "a", "abcde": "abcde", "abcdef": "abcd…",
		"a\nb": "a�b", "\xff": "�",
		"é\u202eü": "é�ü", "🔑🔑🔑🔑🔑🔑": "🔑🔑🔑🔑…"} {
		if got := clean(text, 5); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
}

// TestPage reads the examples of the page as a broker writes them.
func TestPage(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/notices.md")
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(string(page), "```json\n")
	text, _, _ = strings.Cut(text, "```")
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	var m message
	if err := decoder.Decode(&m); err != nil {
		t.Fatal(err)
	}
	var short bytes.Buffer
	if err := json.Compact(&short, []byte(text)); err != nil || short.String() != string(m.encode()) {
		t.Errorf("%v\n%s\n%s", err, short.String(), m.encode())
	}
	for _, event := range Events {
		if !strings.Contains(string(page), "| `"+event+"` |") {
			t.Errorf("the page does not have %s", event)
		}
	}
}
