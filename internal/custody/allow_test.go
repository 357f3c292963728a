package custody

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestAllowRefused gives the one hint that helps where others can change the config file. To edit the file would not:
// every command would refuse it.
func TestAllowRefused(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "config")
	if err := os.Mkdir(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(folder, 0o775); err != nil { // as made under the umask 002
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", folder)
	t.Setenv("NOTATION_HSM_CONFIG", "")
	named := map[string]string{config.ModulePath: "/opt/hsm/p11.so"}
	allow := func() error {
		return Allow(t.Context(), "pkcs11:object=a", named, config.PluginConfig,
			func(string, ...any) {})
	}
	f := failure.From(allow())
	if f == nil || f.Kind != failure.Denied || !strings.Contains(f.Hint, "chmod go-w "+folder+";") ||
		strings.Contains(f.Hint, "edit the file") {
		t.Fatalf("%+v", f)
	}
	if exists(config.Path()) {
		t.Error("the config file was written")
	}
	if err := os.Chmod(folder, 0o755); err != nil { //nolint:gosec // as the hint says
		t.Fatal(err)
	}
	if err := allow(); err != nil {
		t.Error(err)
	}
}
