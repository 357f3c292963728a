package nethsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestModuleConfig writes what Nitrokey's module reads.
func TestModuleConfig(t *testing.T) {
	t.Parallel()
	s := &config.Settings{Timeout: 30 * time.Second, NetHSM: &config.NetHSM{
		Instances: []string{"https://a.example.com", "https://b.example.com:8443"}, User: "signing~operator",
		Administrator: "signing~admin", Fingerprints: [][32]byte{sha256.Sum256(nil)},
	}}
	conf, err := New(io.Discard).ModuleConfig(s, "signing", os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"url: https://a.example.com/api/v1", "url: https://b.example.com:8443/api/v1", "username: signing~operator",
		"username: signing~admin", "label: signing", hex.EncodeToString(s.NetHSM.Fingerprints[0][:]), "timeout_seconds: 6",
		"log_file: /dev/null", "\ndisable_thread_pool: true\n", "\ndisable_threads: false\n",
	} {
		if !bytes.Contains(conf, []byte(want)) {
			t.Errorf("%s is missing in\n%s", want, conf)
		}
	}

	insecure := *s
	insecure.NetHSM = &config.NetHSM{Instances: s.NetHSM.Instances, User: "operator", Insecure: true}
	for set, settings := range map[bool]*config.Settings{true: &insecure, false: s} {
		conf, err := New(io.Discard).ModuleConfig(settings, "signing", "")
		if err != nil || bytes.Contains(conf, []byte("danger_insecure_cert: true")) != set {
			t.Errorf("insecure %v: %v\n%s", set, err, conf)
		}
	}

	log := filepath.Join(t.TempDir(), "module.log")
	if _, err := New(io.Discard).ModuleConfig(s, "signing", log); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(log); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the log file: %v, %v", info, err)
	}
	if _, err := New(io.Discard).ModuleConfig(s, "signing", filepath.Join(log, "x")); !failure.Is(err, failure.Invalid) {
		t.Errorf("a log file that cannot be written: %v", err)
	}
	s.NetHSM.User = ""
	if _, err := New(io.Discard).ModuleConfig(s, "signing", ""); !failure.Is(err, failure.Invalid) {
		t.Errorf("without a user: %v", err)
	}
}

// TestModuleTries checks that the module gives up before this program gives up on it, and that it tries each instance
// if the time allows it.
func TestModuleTries(t *testing.T) {
	t.Parallel()
	for timeout := 2 * time.Second; timeout < 2*time.Minute; timeout += 500 * time.Millisecond {
		for instances := 1; instances < 8; instances++ {
			tries, each := moduleTries(timeout, instances)
			if all := time.Duration(tries*each+tries-1) * time.Second; all >= timeout || tries < 1 || each < 1 {
				t.Errorf("%s, %d instances: %d times %d s are %s", timeout, instances, tries, each, all)
			}
			if timeout >= 15*time.Second && tries != max(4, instances) {
				t.Errorf("%s, %d instances: %d tries", timeout, instances, tries)
			}
		}
	}
	if tries, each := moduleTries(time.Second, 3); tries != 1 || each != 1 {
		t.Errorf("%d tries of %d s", tries, each)
	}
}
