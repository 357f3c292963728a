package notice

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestSlack posts a message with a link to the page, to the URL that the file has at that time.
func TestSlack(t *testing.T) {
	t.Parallel()
	var paths []string
	var body []byte
	server := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		body, _ = io.ReadAll(r.Body)
	}))
	t.Cleanup(server.Close)
	file := writeFile(t, server.URL+"/services/one\n")
	f := newFixture(t, Config{Channels: []Channel{{Name: "chat", Slack: file, CA: writeCA(t, server)}}})
	c := f.channels[0]
	f.queue(event("r1", broker.NoticePending))
	f.drain(t.Context(), c)
	if err := os.WriteFile(file, []byte(server.URL+"/services/two"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.queue(event("r2", broker.NoticePending))
	f.drain(t.Context(), c)
	if err := os.WriteFile(file, []byte("http://example.com/secret-of-the-path"), 0o600); err != nil {
		t.Fatal(err)
	}
	f.queue(event("r3", broker.NoticePending))
	rows := f.waiting()
	err := c.sender.send(t.Context(), &rows[0])
	if err == nil || !strings.Contains(err.Error(), "is not https") || strings.Contains(err.Error(), "secret-of") {
		t.Errorf("an URL without TLS: %v", err)
	}
	if strings.Join(paths, " ") != "/services/one /services/two" {
		t.Errorf("%v", paths)
	}
	var m struct {
		Text   string
		Blocks []slackBlock
	}
	if err := json.Unmarshal(body, &m); err != nil {
		t.Fatal(err)
	}
	const want = "*Approval needed for a signature with the key release*\n*Request:* `r2`\n*Artifact:* `sha256:aa`\n" +
		"*Media type:* `application/vnd.oci.image.manifest.v1+json, 1234 bytes`\n" +
		"*Repository:* `registry.example.com/app`\n*Requested by:* `CN=ci (mtls)`\n" +
		"*Their reason:* `the release of today`\n*Rule:* `release`\n" +
		"*Needed for use:* `2 of release-managers and 1 of security (rule release)`\n*Who can approve:* `bob, alice`\n" +
		"*Until:* `2026-03-07 05:06 UTC`\n<https://broker.example.com/requests/r2|Open the page of the request>"
	if m.Text != want {
		t.Errorf("got\n%s\nwant\n%s", m.Text, want)
	}
	if len(m.Blocks) != 3 || m.Blocks[0].Text.Text != "Approval needed for a signature with the key release" {
		t.Errorf("%s", body)
	}
}

// TestConfig refuses what cannot work, and says where it is.
func TestConfig(t *testing.T) {
	t.Parallel()
	key, url := writeKey(t), writeFile(t, "https://127.0.0.1:1/secret-of-the-path")
	open := writeFile(t, "https://127.0.0.1:1/secret-of-the-path")
	if err := os.Chmod(open, 0o644); err != nil {
		t.Fatal(err)
	}
	hook := Channel{Name: "hook", Webhook: "https://127.0.0.1:1/secret-of-the-path", Secret: key}
	mail := Channel{Name: "mail", Email: "smtps://127.0.0.1", From: "a@example.com"}
	with := func(c Channel, change func(*Channel)) Channel {
		change(&c)
		return c
	}
	withURL := func(url string) Channel { return with(hook, func(c *Channel) { c.Webhook = url }) }
	for want, c := range map[string]Channel{
		"notices[0].name: \"\" is not":                        with(hook, func(c *Channel) { c.Name = "" }),
		"notices[0].name: \"A b\" is not":                     with(hook, func(c *Channel) { c.Name = "A b" }),
		"notices[0]: has 0 of":                                {Name: "hook"},
		"notices[0]: has 2 of":                                with(hook, func(c *Channel) { c.Slack = url }),
		"notices[0].secret: is missing":                       with(hook, func(c *Channel) { c.Secret = "" }),
		"notices[0].secret: it is not an absolute":            with(hook, func(c *Channel) { c.Secret = "key" }),
		"notices[0].secret: cannot be used: cannot":           with(hook, func(c *Channel) { c.Secret = "/none" }),
		"notices[0].secret: cannot be used: other":            with(hook, func(c *Channel) { c.Secret = open }),
		"does not have whsec_":                                with(hook, func(c *Channel) { c.Secret = url }),
		"notices[0].webhook: cannot be used: it is not":       withURL("ftp://127.0.0.1/secret-of"),
		"notices[0].webhook: cannot be used: the":             withURL("http://example.com/secret-of"),
		"notices[0].webhook: cannot be used: cannot":          with(hook, func(c *Channel) { c.CA = "/none" }),
		"notices[0].webhook: cannot be used: it is not a URL": withURL("https://secret-of:x@127.0.0.1/"),
		"notices[0].events[1]: \"signed\" is no type": with(hook, func(c *Channel) {
			c.Events = []string{"request.signed", "signed"}
		}),
		"notices[0].slack: cannot be used: other users": {Name: "chat", Slack: open},
		"notices[0].slack: cannot be used: cannot use":  {Name: "chat", Slack: key},
		"notices[0].secret: this channel":               {Name: "chat", Slack: url, Secret: key},
		"notices[0].email: it is not a URL":             with(mail, func(c *Channel) { c.Email = "127.0.0.1:465" }),
		"notices[0].email: it has more":                 with(mail, func(c *Channel) { c.Email += "/path" }),
		"notices[0].from: \"\" is not an address":       with(mail, func(c *Channel) { c.From = "" }),
		"notices[0].from: \"A <a@example.com>\" is":     with(mail, func(c *Channel) { c.From = "A <a@example.com>" }),
		"notices[0].ca: cannot be used":                 with(mail, func(c *Channel) { c.CA = "/none" }),
		"notices[0].credentials: cannot be used":        with(mail, func(c *Channel) { c.Credentials = url }),
		"notices[0].from: this channel":                 with(hook, func(c *Channel) { c.From = "a@example.com" }),
		"notices[0].credentials: this channel":          with(hook, func(c *Channel) { c.Credentials = key }),
	} {
		mistakes := Config{Channels: []Channel{c}}.Check()
		found := false
		for _, err := range mistakes {
			e := failure.From(err)
			found = found || strings.Contains(e.What, want) && e.Hint != "" && e.Kind == failure.Invalid
			if strings.Contains(e.What+e.Hint, "secret-of") {
				t.Errorf("%s: a secret is in %q", want, e.What)
			}
		}
		if !found {
			t.Errorf("the mistakes do not have %q: %v", want, mistakes)
		}
		if _, err := New(Options{Config: Config{Channels: []Channel{c}}}); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", want, err)
		}
	}
	twice := Config{Channels: []Channel{hook, mail, hook}, Contacts: map[string]string{"alice": "alice",
		"bob":   "b@example.com",
		"carol": "c@example.com\r\nBcc: eve@example.com", "dave": "Dave <d@example.com>", "erin": "\"e e\"@example.com",
		"frank": "f@exämple.com"}}
	if mistakes := twice.Check(); len(mistakes) != 6 || !strings.Contains(mistakes[0].Error(), "notices[2].name: ") {
		t.Errorf("%v", mistakes)
	}
	if mistakes := (Config{Channels: make([]Channel, maxChannels+1)}).Check(); !strings.Contains(mistakes[0].Error(),
		"has 21 channels") {
		t.Errorf("%v", mistakes)
	}
	good := Config{Channels: []Channel{hook, mail, {Name: "chat", Slack: url}},
		Contacts: map[string]string{"bob": "b@example.com"}}
	if mistakes := good.Check(); len(mistakes) != 0 {
		t.Errorf("%v", mistakes)
	}
}
