package monitor

import (
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestConfig reads all settings.
func TestConfig(t *testing.T) {
	t.Parallel()
	c, err := ParseConfig("monitor.yaml", []byte(`
version: 1
state: /var/lib/hsm-log-monitor
interval: 10s
stale: 26h
metrics: 127.0.0.1:9464
webhook: {url: https://alerts.example.com/log, secret: /etc/secret, ca: /etc/ca.pem}
policies: [`+digest(1)+`]
keys:
  release: {approvals: 2, hours: {days: "mon-wed,fri", from: "08:00", to: "24:00", zone: Europe/Berlin}}
  nightly: {}
off: [credentials, config]
`))
	if err != nil {
		t.Fatal(err)
	}
	if c.interval() != 10*time.Second || c.stale() != 26*time.Hour || c.Keys["release"].Approvals != 2 ||
		c.Keys["nightly"].Hours != nil || len(c.Off) != 2 || c.Webhook.CA != "/etc/ca.pem" {
		t.Errorf("%+v", c)
	}
	h := c.Keys["release"].Hours
	for day, want := range []bool{true, true, true, false, true, false, false} {
		if h.has(time.Date(2026, 11, 23+day, 11, 0, 0, 0, time.UTC)) != want {
			t.Errorf("day %d: not %v", day, want)
		}
	}
	if !h.has(time.Date(2026, 11, 23, 22, 59, 59, 0, time.UTC)) || h.has(time.Date(2026, 11, 24, 23, 0, 0, 0, time.UTC)) {
		t.Error("the day does not end at midnight in the zone")
	}
	if c := (&Config{}); c.interval() != defaultInterval || c.stale() != defaultStale {
		t.Error("defaults")
	}
}

// TestConfigRefuses names what cannot be used.
func TestConfigRefuses(t *testing.T) {
	t.Parallel()
	hours := func(text string) string { return "version: 1\nkeys: {release: {hours: {" + text + "}}}" }
	for text, want := range map[string]string{
		"":                                  "empty",
		"version: 2":                        "version is 2",
		"version: 1\nstat: /x":              `"stat"`,
		"version: 1\nstate: x":              "absolute",
		"version: 1\ninterval: 1ms":         "interval",
		"version: 1\nstale: 1s":             "stale",
		"version: 1\nwebhook: {secret: /x}": "no url",
		"version: 1\nwebhook: {url: https://alerts.example.com, secret: x}": "absolute",
		"version: 1\npolicies: [sha256:1]":                                  "no digest",
		"version: 1\nkeys: {release: {approvals: -1}}":                      "approvals is -1",
		"version: 1\nkeys: {release: {approvals: 33}}":                      "approvals is 33",
		"version: 1\nkeys: {release: {approval: 2}}":                        `"approval"`,
		"version: 1\noff: [fork]":                                           "cannot be turned off",
		"version: 1\noff: [forks]":                                          "cannot be turned off",
		hours(`from: "08:00", to: "18:00"`):                                 "days",
		hours(`days: mon-, from: "08:00", to: "18:00"`):                     "days",
		hours(`days: mon, from: "8:00", to: "18:00"`):                       "8:00",
		hours(`days: mon, from: "08:00", to: "24:01"`):                      "24:01",
		hours(`days: mon, from: "18:00", to: "08:00"`):                      "not before",
		hours(`days: mon, from: "08:00", to: "18:00", zone: Mars/Olympus`):  "zone",
		hours(`days: mon, from: "08:00", to: "18:00", zone: Local`):         "zone",
	} {
		if _, err := ParseConfig("monitor.yaml", []byte(text)); !failure.Is(err, failure.Invalid) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
