// Package monitor follows the log of a broker, as anyone can who has the log's public key: it verifies that the log
// only grows, and alerts when its entries show what nobody agreed to.
//
// The log is the input of somebody who may be hostile. So an entry counts once a signed checkpoint covers it, and what
// is kept of all entries has bounds: where a bound is reached, the monitor forgets the oldest, which can make an alert
// that is false, and never hides one.
package monitor

import (
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Config says what is expected of a log, and who is told of the rest.
type Config struct {
	Version  int            `yaml:"version"`  // 1
	State    string         `yaml:"state"`    // absolute path of the folder of what is kept
	Interval time.Duration  `yaml:"interval"` // between looks at the log; 0 means 30 seconds
	Stale    time.Duration  `yaml:"stale"`    // without a new checkpoint, until there is an alert; 0 means 24 hours
	Metrics  string         `yaml:"metrics"`  // address of Prometheus' metrics; "" for none
	Webhook  Webhook        `yaml:"webhook"`  // that gets alerts; its zero value is none
	Policies []string       `yaml:"policies"` // sha256:HEX of those that are expected
	Keys     map[string]Key `yaml:"keys"`     // by their names in the policy
	Off      []string       `yaml:"off"`      // classes of alerts that are not wanted
}

// Webhook is where alerts are posted.
type Webhook struct {
	URL    string `yaml:"url"`    // https, or http on loopback
	Secret string `yaml:"secret"` // file of the secret that signs them, as Standard Webhooks says; "" for none
	CA     string `yaml:"ca"`     // PEM file of certificate authorities (default: the system's)
}

// Key is what is expected of the uses of a key.
type Key struct {
	Approvals int    `yaml:"approvals"` // number of people who must have agreed
	Hours     *Hours `yaml:"hours"`     // nil means at any time
}

const (
	defaultInterval = 30 * time.Second
	defaultStale    = 24 * time.Hour
	maxPolicies     = 1000
	maxListedKeys   = 1000
	maxApprovals    = maxVotes // of a key
)

var digests = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)

// ParseConfig reads a config in YAML. It fails with Invalid for an unknown name, and for a value that cannot be used.
// path is for the message.
func ParseConfig(path string, data []byte) (*Config, error) {
	c := &Config{}
	if err := config.Strict(path, data, c); err != nil {
		return nil, err
	}
	if err := c.check(path); err != nil {
		return nil, err
	}
	return c, nil
}

func (c *Config) check(path string) error {
	refuse := func(hint, format string, args ...any) error {
		return failure.New(failure.Invalid, "cannot use %s: "+format, append([]any{path}, args...)...).WithHint(hint)
	}
	switch {
	case c.Version != 1:
		return refuse("write version: 1", "version is %d", c.Version)
	case c.State != "" && !filepath.IsAbs(c.State):
		return refuse("name the folder by its absolute path", "state %.100q is not an absolute path", c.State)
	case c.Interval != 0 && (c.Interval < time.Second || c.Interval > time.Hour):
		return refuse("use 1s to 1h", "interval is %s", c.Interval)
	case c.Stale != 0 && (c.Stale < time.Minute || c.Stale > 366*24*time.Hour):
		return refuse("use 1m to 8784h", "stale is %s", c.Stale)
	case c.Webhook.URL == "" && c.Webhook != Webhook{}:
		return refuse("set webhook.url", "webhook has no url")
	case len(c.Policies) > maxPolicies:
		return refuse("list those that can come into force", "policies has %d digests, more than %d", len(c.Policies),
			maxPolicies)
	case len(c.Keys) > maxListedKeys:
		return refuse("list fewer keys", "keys has %d keys, more than %d", len(c.Keys), maxListedKeys)
	}
	for _, file := range []string{c.Webhook.Secret, c.Webhook.CA} {
		if file != "" && !filepath.IsAbs(file) {
			return refuse("name the file by its absolute path", "webhook: %.100q is not an absolute path", file)
		}
	}
	for _, digest := range c.Policies {
		if !digests.MatchString(digest) {
			return refuse("write sha256: and 64 hexadecimal digits", "policies: %.100q is no digest", digest)
		}
	}
	for name, key := range c.Keys {
		if key.Approvals < 0 || key.Approvals > maxApprovals {
			return refuse("use 0 for a key that needs nobody", "keys.%.100s.approvals is %d", name, key.Approvals)
		}
		if key.Hours != nil {
			if err := key.Hours.parse(); err != nil {
				return refuse(`write {days: mon-fri, from: "08:00", to: "18:00", zone: Europe/Berlin}`,
					"keys.%.100s.hours: %w", name, err)
			}
		}
	}
	for _, class := range c.Off {
		if !slices.Contains(Classes, class) || class == Fork {
			return refuse("use some of "+strings.Join(slices.DeleteFunc(slices.Clone(Classes), func(c string) bool {
				return c == Fork
			}), ", "), "off: %.100q cannot be turned off", class)
		}
	}
	return nil
}

func (c *Config) interval() time.Duration {
	if c.Interval == 0 {
		return defaultInterval
	}
	return c.Interval
}

func (c *Config) stale() time.Duration {
	if c.Stale == 0 {
		return defaultStale
	}
	return c.Stale
}
