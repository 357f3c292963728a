package nethsm

import (
	"encoding/hex"
	"os"
	"slices"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// moduleSlot is a slot in the configuration of Nitrokey's PKCS#11 module, as its documentation has it.
type moduleSlot struct {
	Label         string           `yaml:"label"`
	Operator      *moduleUser      `yaml:"operator,omitempty"`
	Administrator *moduleUser      `yaml:"administrator,omitempty"`
	Instances     []moduleInstance `yaml:"instances"`
	Retries       moduleRetries    `yaml:"retries"`
	Keepalive     moduleKeepalive  `yaml:"tcp_keepalive"`
	MaxIdle       int              `yaml:"connections_max_idle_duration"` // seconds
	Timeout       int              `yaml:"timeout_seconds"`
}

type moduleUser struct {
	Username string `yaml:"username"` // the passphrase comes with the login
}

type moduleInstance struct {
	URL          string   `yaml:"url"`
	MaxIdle      int      `yaml:"max_idle_connections"`
	Fingerprints []string `yaml:"sha256_fingerprints,omitempty"`
	Insecure     bool     `yaml:"danger_insecure_cert,omitempty"`
}

type moduleRetries struct {
	Count int `yaml:"count"`
	Delay int `yaml:"delay_seconds"`
}

type moduleKeepalive struct {
	Time     int `yaml:"time_seconds"`
	Interval int `yaml:"interval_seconds"`
	Retries  int `yaml:"retries"`
}

// ModuleConfig returns the configuration of Nitrokey's PKCS#11 module (p11nethsm.conf) for what the settings say: one
// slot of this label. It holds no passphrase. The log goes to a file and nowhere else.
func ModuleConfig(s *config.Settings, label, log string) ([]byte, error) {
	if err := examineTrust(s.NetHSM); err != nil {
		return nil, err
	}
	tries, each := moduleTries(s.Timeout, len(s.NetHSM.Instances))
	slot := moduleSlot{
		Label:   label,
		Retries: moduleRetries{Count: tries - 1, Delay: 1}, Keepalive: moduleKeepalive{Time: 600, Interval: 60, Retries: 3},
		MaxIdle: 1800,
		Timeout: each,
	}
	if _, err := operator(s); err != nil {
		return nil, err
	}
	slot.Operator = &moduleUser{s.NetHSM.User}
	if s.NetHSM.Administrator != "" {
		slot.Administrator = &moduleUser{s.NetHSM.Administrator}
	}
	for _, url := range s.NetHSM.Instances {
		i := moduleInstance{URL: url + apiPath, MaxIdle: connections, Insecure: s.NetHSM.Insecure}
		for _, fingerprint := range s.NetHSM.Fingerprints {
			i.Fingerprints = append(i.Fingerprints, hex.EncodeToString(fingerprint[:]))
		}
		slot.Instances = append(slot.Instances, i)
	}
	if log != os.DevNull && log != "" {
		// the module would crash on it
		if f, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600); err != nil {
			return nil, failure.New(failure.Invalid, "can't open the log file: %w",
				err).
				WithHint("name a file that those who sign can write")
		} else if err := f.Close(); err != nil {
			return nil, err
		}
	}
	head, err := yaml.Marshal(struct {
		LogFile  string `yaml:"log_file"`
		LogLevel string `yaml:"log_level"`
	}{log, "Warn"})
	if err != nil {
		return nil, err
	}
	slots, err := yaml.Marshal(struct {
		Slots []moduleSlot `yaml:"slots"`
	}{[]moduleSlot{slot}})
	return slices.Concat(head, []byte(moduleThreads), slots), err
}

// moduleThreads are settings of version 2.2.0 of the module; older ones pass them over.
const moduleThreads = `# The pool reads all keys at once, which notation-hsm never asks for, and does not end when the module is unloaded.
disable_thread_pool: true
# The module may have threads of its own; a program that can't have that says so itself (CKF_LIBRARY_CANT_CREATE_OS_THREADS).
disable_threads: false
`

// moduleTries is how often the module asks, a second apart, and how many seconds it waits each time: in all less than
// the timeout, after which this program gives up on the module without having heard why. Each instance has a turn if
// there is time.
func moduleTries(timeout time.Duration, instances int) (tries, each int) {
	budget := timeout.Seconds() - 0.5
	for tries = max(4, instances); tries > 1; tries-- {
		if each = int((budget - float64(tries-1)) / float64(tries)); each >= 1 {
			return tries, each
		}
	}
	return 1, max(1, int(budget))
}
