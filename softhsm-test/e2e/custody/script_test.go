// Package custody tests, end to end, the commands that look after keys: CAs, trust, backups, rotation, and the scripts
// below testdata.
package custody

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestScripts runs the command-line scripts of testdata/script. Each has a token "signing" of its own, and the
// notation, notation-hsm and hsm-image commands; what it does not set is not set.
func TestScripts(t *testing.T) {
	softhsmtest.Parallel(t)
	module, path := softhsmtest.Module(t), filepath.Dir(softhsmtest.Build(t, "notation-hsm"))+":"+
		filepath.Dir(softhsmtest.Build(t, "notation"))+":"+
		softhsmtest.Getenv(t, "PATH")
	softhsmtest.Build(t, "hsm-image")
	softhsm := softhsmtest.Program(t, "softhsm2-util")
	softhsmtest.Program(t, "openssl")
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			if err := softhsmtest.WriteSoftHSMConfig(env.WorkDir); err != nil {
				return err
			}
			conf := filepath.Join(env.WorkDir, "softhsm2.conf")
			env.Vars = append(env.Vars, "PATH="+path, "SOFTHSM2_CONF="+conf,
				"XDG_CONFIG_HOME="+filepath.Join(env.WorkDir, "config"),
				"NOTATION_HSM_MODULE_PATH="+module, "NOTATION_HSM_PIN="+softhsmtest.PIN, "PIN="+softhsmtest.PIN, "MODULE="+
					module,
				"KEY=pkcs11:token=signing;object=release", "SUBJECT=CN=release,O=Example,C=CH,ST=Zurich")
			cmd := exec.Command(softhsm, "--init-token", "--free", "--label", "signing", "--pin", softhsmtest.PIN, "--so-pin",
				softhsmtest.SOPIN)
			cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+conf)
			return cmd.Run()
		},
	})
}
