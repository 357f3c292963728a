package cli_test

import (
	"bytes"
	"runtime/debug"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/notation-hsm/notation-hsm/internal/cli"
)

// TestVersion compares what --version says of PKCS#11 modules with how Go says that the test was built.
func TestVersion(t *testing.T) {
	info, _ := debug.ReadBuildInfo()
	want := ""
	for _, setting := range info.Settings {
		if setting.Key == "CGO_ENABLED" {
			want = map[string]string{
				"1": "hsm version 1.2.3, with PKCS#11 modules\n", "0": "hsm version 1.2.3, without PKCS#11 modules",
			}[setting.Value]
		}
	}
	root := cli.Root(&cobra.Command{Use: "hsm", Version: "1.2.3"})
	var output bytes.Buffer
	root.SetOut(&output)
	root.SetArgs([]string{"--version"})
	if err := root.Execute(); err != nil || want == "" || !strings.HasPrefix(output.String(), want) {
		t.Errorf("%q, %v, instead of %q", output.String(), err, want)
	}
}
