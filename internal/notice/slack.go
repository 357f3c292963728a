package notice

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/webhook"
)

// slackSender posts messages to an incoming webhook of Slack, or of a program that takes the same JSON.
type slackSender struct {
	file, ca, agent string
	url             string // of the receiver
	receiver        *webhook.Receiver
}

func newSlack(c Channel, o Options) (*slackSender, []mistake) {
	s := &slackSender{file: c.Slack, ca: c.CA, agent: agentOf(o)}
	if err := s.read(); err != nil {
		return nil, []mistake{mistakeOf(".slack", err)}
	}
	return s, nil
}

// read reads the URL. It is read for each message, so that it can be replaced.
func (s *slackSender) read() error {
	data, err := ownership.ReadSecret(s.file)
	if err != nil {
		return err
	}
	url := strings.TrimSpace(string(data))
	if s.receiver != nil && url == s.url {
		return nil
	}
	receiver, err := webhook.New(url, "", s.ca)
	if err != nil {
		return fmt.Errorf("cannot use the URL in %s: %w", s.file, err)
	}
	s.url, s.receiver = url, receiver
	return nil
}

func (s *slackSender) send(ctx context.Context, n *store.Notice) error {
	m, err := decode(n.Body)
	if err != nil {
		return &neverError{err}
	}
	if err := s.read(); err != nil {
		return err
	}
	return s.receiver.Send(ctx, webhook.Message{ID: n.ID, Media: "application/json", Agent: s.agent, Body: m.slack()})
}

// Types of Slack's Block Kit.
type (
	slackBlock struct {
		Type string     `json:"type"`
		Text *slackText `json:"text"`
	}
	slackText struct {
		Type     string `json:"type"` // plain_text or mrkdwn
		Text     string `json:"text"`
		Verbatim bool   `json:"verbatim,omitempty"` // Slack makes no links and mentions of what looks like one
	}
)

// Bounds that Slack has for texts, in characters.
const (
	maxSlackHeader  = 150
	maxSlackSection = 2900 // of 3000
	maxSlackValue   = 500  // 5 bytes for one of them that is escaped
)

// slack returns a message as Slack's JSON. Texts of others are in code spans, in which Slack and others make no links,
// mentions or markup of them.
func (m *message) slack() []byte {
	title := inert(m.title())
	page := "<" + escapeSlack(m.Data.URL) + "|Open the page of the request>"
	blocks := []slackBlock{{"header", &slackText{Type: "plain_text", Text: clean(title, maxSlackHeader)}}}
	text := "*" + title + "*"
	section := ""
	flush := func() {
		if section != "" {
			blocks = append(blocks, slackBlock{"section", &slackText{"mrkdwn", section, true}})
		}
		section = ""
	}
	for _, l := range m.lines() {
		line := "*" + inert(l.label) + ":* " + code(l.value) + "\n"
		if utf8.RuneCountInString(section+line) > maxSlackSection {
			flush()
		}
		section += line
		text += "\n" + strings.TrimSuffix(line, "\n")
	}
	flush()
	section = page
	flush()
	data, err := json.Marshal(map[string]any{"text": text + "\n" + page, "blocks": blocks})
	if err != nil {
		panic(err) // texts can be encoded
	}
	return data
}

var slackEscapes = strings.NewReplacer("&", "&amp;", "<", "&lt;", ">", "&gt;")

// escapeSlack escapes what begins a link, a mention or an entity.
func escapeSlack(text string) string { return slackEscapes.Replace(text) }

// code returns text as a code span.
func code(text string) string {
	return "`" + escapeSlack(strings.ReplaceAll(clean(text, maxSlackValue), "`", "'")) + "`"
}

// inert replaces what Slack, or a program that takes its JSON, could take for markup, in a text of names of the policy.
func inert(text string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune("<>&`*~[](){}|\\#!", r) || r == '@' {
			return '\ufffd'
		}
		return r
	}, text)
}
