// Package notice tells people and other systems of requests: through webhooks, chat and e-mail. What is told was
// decided before; nothing that a notice has or that a receiver answers decides.
//
// The broker writes notices to the store in the transaction of its decision. This package makes them, and delivers what
// the store has: each at least once, and twice only if the broker ends between a delivery and its mark in the store. A
// notice has one ID however often it is delivered, so that receivers can drop the second.
package notice

import (
	"context"
	"errors"
	"fmt"
	"net/mail"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/store"
)

// Events are the types of notices.
var Events = []string{broker.NoticePending, broker.NoticeReminder, broker.NoticeApproved, broker.NoticeRejected,
	broker.NoticeExpired, broker.NoticeCancelled, broker.NoticeSigned}

// Channel says how notices are delivered: by one of Webhook, Slack and Email. Paths are absolute.
type Channel struct {
	Name        string   `yaml:"name"`        // in the store, logs and metrics
	Webhook     string   `yaml:"webhook"`     // https URL, or http on loopback: Standard Webhooks
	Secret      string   `yaml:"secret"`      // file of the webhook's secret: whsec_ and base64
	Slack       string   `yaml:"slack"`       // file with the URL of an incoming webhook, which is a secret
	Email       string   `yaml:"email"`       // smtps://HOST:465 (TLS) or smtp://HOST:587 (STARTTLS)
	From        string   `yaml:"from"`        // address that mail is from
	Credentials string   `yaml:"credentials"` // file with username and password of the mail server; "" for none
	CA          string   `yaml:"ca"`          // PEM file of certificate authorities (default: the system's)
	Events      []string `yaml:"events"`      // types of notices (default: all)
}

// Config says who is told, and how.
type Config struct {
	Channels []Channel
	Contacts map[string]string // addresses of mail, by the names of people in the policy
}

const (
	maxChannels = 20
	maxContacts = 5000
)

// names are what channels may be called.
var names = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,62}$`)

// Check returns every mistake. A message begins with the path of the setting: notices[0].webhook or contacts.NAME.
func (c Config) Check() (all []error) {
	add := func(path, hint string, err error) {
		all = append(all, failure.New(failure.Invalid, "%s: %w", path, err).WithHint(hint))
	}
	if n := len(c.Channels); n > maxChannels {
		add("notices", "let one webhook tell the others", fmt.Errorf("has %d channels, more than %d", n, maxChannels))
	}
	seen := map[string]int{}
	for i, channel := range c.Channels {
		at := fmt.Sprintf("notices[%d]", i)
		if _, mistakes := channel.open(Options{}); len(mistakes) > 0 {
			for _, m := range mistakes {
				add(at+m.field, m.hint, m.err)
			}
		}
		if first, exists := seen[channel.Name]; exists {
			add(at+".name", "give each channel a name of its own",
				fmt.Errorf("%.100q is notices[%d], too", channel.Name, first))
		}
		seen[channel.Name] = i
	}
	if n := len(c.Contacts); n > maxContacts {
		add("contacts", "list those who approve", fmt.Errorf("has %d people, more than %d", n, maxContacts))
	}
	for name, address := range c.Contacts {
		if !isAddress(address) {
			add("contacts."+name, "write it like alice@example.com", fmt.Errorf("%.100q is not an address of mail", address))
		}
	}
	return all
}

// mistake is one in the settings of a channel.
type mistake struct {
	field string // with a dot before it; "" for the channel
	hint  string
	err   error
}

// A sender delivers one notice. Its errors have no secret.
type sender interface {
	send(ctx context.Context, n *store.Notice) error
}

// channel is a Channel that is used.
type channel struct {
	name   string
	events []string // nil for all
	people bool     // it tells each person of their own
	sender sender

	failures int // in a row
}

// open returns the channel of settings, or every mistake in them.
func (c Channel) open(o Options) (*channel, []mistake) {
	var all []mistake
	add := func(field, hint, format string, args ...any) {
		all = append(all, mistake{field, hint, fmt.Errorf(format, args...)})
	}
	if !names.MatchString(c.Name) {
		add(".name", "use lower-case letters, digits and hyphens, 63 at most", "%.100q is not a name", c.Name)
	}
	for i, event := range c.Events {
		if !slices.Contains(Events, event) {
			add(fmt.Sprintf(".events[%d]", i), "use some of "+strings.Join(Events, ", "), "%.100q is no type of notices", event)
		}
	}
	opened := &channel{name: c.Name, events: c.Events, people: c.Email != ""}
	ways := 0
	for _, way := range []string{c.Webhook, c.Slack, c.Email} {
		if way != "" {
			ways++
		}
	}
	if ways != 1 {
		add("", "give one of webhook, slack and email", "has %d of webhook, slack and email", ways)
		return nil, all
	}
	for _, one := range []struct {
		name, value string
		allowed     bool
	}{
		{"secret", c.Secret, c.Webhook != ""}, {"from", c.From, c.Email != ""},
		{"credentials", c.Credentials, c.Email != ""},
	} {
		if one.value != "" && !one.allowed {
			add("."+one.name, "remove it", "this channel has none")
		}
	}
	for _, one := range []struct{ name, path string }{{"secret", c.Secret}, {"slack", c.Slack},
		{"credentials", c.Credentials}, {"ca", c.CA}} {
		if one.path != "" && !filepath.IsAbs(one.path) {
			add("."+one.name, "name the file by its absolute path", "it is not an absolute path")
		}
	}
	if len(all) > 0 {
		return nil, all
	}
	var mistakes []mistake
	switch {
	case c.Webhook != "":
		opened.sender, mistakes = newWebhook(c, o)
	case c.Slack != "":
		opened.sender, mistakes = newSlack(c, o)
	default:
		opened.sender, mistakes = newEmail(c, o)
	}
	return opened, mistakes
}

// tells reports whether the channel delivers notices of a type.
func (c *channel) tells(event string) bool {
	return len(c.events) == 0 || slices.Contains(c.events, event)
}

// Options are what notices are made of and delivered with.
type Options struct {
	Config
	PublicURL string // of the broker
	Version   string
	Store     store.Store
	// Registerer gets metrics; nil for none.
	Registerer prometheus.Registerer
}

// Notices makes notices and delivers them.
type Notices struct {
	channels []*channel
	contacts map[string]string
	url      string
	store    store.Store
	metrics  *metrics

	now  func() time.Time
	wait func(ctx context.Context, d time.Duration) // until ctx ends, or the time is over
}

// New returns the notices of a config. It fails with Invalid for a config with mistakes.
func New(o Options) (*Notices, error) {
	if mistakes := o.Check(); len(mistakes) > 0 {
		return nil, failure.New(failure.Invalid, "cannot set up notices: %w", errors.Join(mistakes...)).
			WithHint("run 'hsm-broker check-config'")
	}
	n := &Notices{contacts: o.Contacts, url: strings.TrimSuffix(o.PublicURL, "/"), store: o.Store, now: time.Now,
		wait: wait}
	for _, settings := range o.Channels {
		opened, mistakes := settings.open(o)
		if len(mistakes) > 0 { // a file has changed since Check
			return nil, failure.New(failure.Invalid, "cannot set up notices: %w", mistakes[0].err).WithHint(mistakes[0].hint)
		}
		n.channels = append(n.channels, opened)
	}
	n.metrics = newMetrics(o.Registerer, n.channels)
	return n, nil
}

// wait waits until ctx ends, or the time is over.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// addresses are those that mail is sent to and from: no quotes, comments, or characters beyond ASCII, which not every
// server takes.
var addresses = regexp.MustCompile(`^[A-Za-z0-9.!#$%&'*+/=?^_{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}$`)

// isAddress reports whether text is an address of mail, and nothing else.
func isAddress(text string) bool {
	parsed, err := mail.ParseAddress(text)
	return err == nil && addresses.MatchString(text) && parsed.Address == text
}

// pageOf returns the URL of a request's page.
func (n *Notices) pageOf(request string) string { return n.url + "/requests/" + request }
