package cosign

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestScripts runs the command lines of testdata/script, each with a token "signing" and an image of its own.
func TestScripts(t *testing.T) {
	softhsmtest.Parallel(t)
	module, softhsm := softhsmtest.Module(t), softhsmtest.Program(t, "softhsm2-util")
	cosign, path := softhsmtest.Build(t, "cosign"), softhsmtest.Getenv(t, "PATH")
	softhsmtest.Build(t, "notation-hsm")
	with := filepath.Dir(softhsmtest.Build(t, "sigstore-kms-hsm")) + ":" + filepath.Dir(cosign) + ":" + path
	registry := oci.StartRegistry(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			if err := softhsmtest.WriteSoftHSMConfig(env.WorkDir); err != nil {
				return err
			}
			// Writers of one repository would lose each other's signatures: the registry knows no referrers API.
			image := pushImage(t, registry+"/"+filepath.Base(env.WorkDir), "image")
			conf := "SOFTHSM2_CONF=" + filepath.Join(env.WorkDir, "softhsm2.conf")
			env.Vars = append(env.Vars, conf, "PATH="+with, "WITHOUT_PLUGIN="+path, "COSIGN="+cosign, "IMAGE="+image,
				"XDG_CONFIG_HOME="+filepath.Join(env.WorkDir, "config"), "HOME="+env.WorkDir, "PIN="+softhsmtest.PIN,
				"HTTPS_PROXY="+noProxy(t), "HTTP_PROXY="+noProxy(t),
				"NOTATION_HSM_MODULE_PATH="+module, "NOTATION_HSM_PIN="+softhsmtest.PIN)
			cmd := exec.Command(softhsm, "--init-token", "--free", "--label", "signing", "--pin", softhsmtest.PIN, "--so-pin",
				softhsmtest.SOPIN)
			cmd.Env = append(os.Environ(), conf)
			return cmd.Run()
		},
	})
}
