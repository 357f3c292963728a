package team

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestDemo runs 'make demo-broker', without its installation and its build. It fails when anything that it refuses is
// not refused, or for another reason.
func TestDemo(t *testing.T) {
	softhsmtest.Parallel(t)
	softhsmtest.Module(t)
	softhsmtest.Program(t, "curl")
	softhsmtest.Program(t, "ssh-keygen")
	for _, name := range []string{"notation-hsm", "hsm-broker", "notation", "registry", "image", "issuer"} {
		softhsmtest.Build(t, name)
	}
	home, folder := t.TempDir(), filepath.Join(t.TempDir(), "run")
	cmd := softhsmtest.Command(t, filepath.Join(softhsmtest.Root(), "softhsm-test", "demo-broker.sh"))
	cmd.Env = append(cmd.Env, "DEMO_FOLDER="+folder, "HOME="+home, "XDG_CONFIG_HOME="+home, "TMPDIR="+t.TempDir())
	output, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	for words, times := range map[string]int{"Successfully signed ": 3, "Successfully verified signature for ": 3,
		"== Refused: ": 6, `rule "release": `: 4, "token was used as often as it may be: 1": 1, "type signed/v1    3": 1,
		"the broker does not sign yet": 2, "does not have the hash": 1} {
		if got := strings.Count(string(output), words); got != times {
			t.Errorf("%q is printed %d times, not %d", words, got, times)
		}
	}
	if t.Failed() {
		t.Logf("%s", output)
	}
	left, err := os.ReadDir(home)
	if err != nil || len(left) > 0 {
		t.Errorf("the user's home has %v: %v", left, err)
	}
}
