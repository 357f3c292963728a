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

// moduleSlot is a slot in the configuration of Nitrokey's PKCS#11 module.
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
	Username string `yaml:"username"` // the passphrase is sent at C_Login
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

// ModuleConfig returns the configuration of Nitrokey's PKCS#11 module (p11nethsm.conf), in YAML, with one slot of this
// label for the NetHSM of the settings. It contains no passphrase. The module writes its log to the file.
func (b *Backend) ModuleConfig(s *config.Settings, label, log string) ([]byte, error) {
	if err := b.checkTrust(s.NetHSM); err != nil {
		return nil, err
	}
	if err := checkOperator(s.NetHSM); err != nil {
		return nil, err
	}
	if err := checkLog(log); err != nil {
		return nil, err
	}
	tries, each := moduleTries(s.Timeout, len(s.NetHSM.Instances))
	slot := moduleSlot{
		Label:   label,
		Retries: moduleRetries{Count: tries - 1, Delay: 1}, Keepalive: moduleKeepalive{Time: 600, Interval: 60, Retries: 3},
		MaxIdle: 1800, Timeout: each, Operator: &moduleUser{s.NetHSM.User},
	}
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

// checkLog fails if the module could not write its log to the file: the module would crash.
func checkLog(path string) error {
	if path == os.DevNull || path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return failure.New(failure.Invalid, "cannot write the log file %s: %w", path, innermost(err)).
			WithHint("name a file that the users who sign can write")
	}
	return nil
}

// moduleThreads are settings of version 2.2.0 of the module. Earlier versions ignore them.
const moduleThreads = `# The pool is for reading all keys, which notation-hsm does not do. It outlives the module.
disable_thread_pool: true
# A program that cannot have threads of the module tells it so (CKF_LIBRARY_CANT_CREATE_OS_THREADS).
disable_threads: false
`

// moduleTries returns how often the module tries a request, with pauses of a second, and its timeout for each try in
// seconds. Together they are shorter than the timeout of this program, which would otherwise end the call before the
// module reports why it failed. Each instance is tried if the time allows it.
func moduleTries(timeout time.Duration, instances int) (tries, each int) {
	budget := timeout.Seconds() - 0.5
	for tries = max(4, instances); tries > 1; tries-- {
		if each = int((budget - float64(tries-1)) / float64(tries)); each >= 1 {
			return tries, each
		}
	}
	return 1, max(1, int(budget))
}
