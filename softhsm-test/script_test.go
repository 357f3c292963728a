package softhsmtest

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestScripts runs the command-line scripts of testdata/script. Each has a token "signing" of its own, and the
// notation, notation-hsm and hsm-image commands; what it does not set is not set.
func TestScripts(t *testing.T) {
	module, path := Module(t), filepath.Dir(Build(t, "notation-hsm"))+":"+filepath.Dir(Build(t, "notation"))+":"+
		os.Getenv("PATH")
	Build(t, "hsm-image")
	softhsm := Program(t, "softhsm2-util")
	Program(t, "openssl")
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			if err := WriteSoftHSMConfig(env.WorkDir); err != nil {
				return err
			}
			conf := filepath.Join(env.WorkDir, "softhsm2.conf")
			env.Vars = append(env.Vars, "PATH="+path, "SOFTHSM2_CONF="+conf,
				"XDG_CONFIG_HOME="+filepath.Join(env.WorkDir, "config"),
				"NOTATION_HSM_MODULE_PATH="+module, "NOTATION_HSM_PIN="+PIN, "PIN="+PIN, "MODULE="+module,
				"KEY=pkcs11:token=signing;object=release", "SUBJECT=CN=release,O=Example,C=CH,ST=Zurich")
			cmd := exec.Command(softhsm, "--init-token", "--free", "--label", "signing", "--pin", PIN, "--so-pin", SOPIN)
			cmd.Env = append(os.Environ(), "SOFTHSM2_CONF="+conf)
			return cmd.Run()
		},
	})
}
