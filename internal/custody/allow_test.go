package custody

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestAllowRefused names the one thing that helps where others can change the config file. To write the list by hand is
// none: the file would be refused from then on, by every command.
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
		strings.Contains(f.Hint, "by hand") {
		t.Fatalf("%+v", f)
	}
	if err := os.Chmod(folder, 0o755); err != nil { //nolint:gosec // as the hint says
		t.Fatal(err)
	}
	if err := allow(); err != nil {
		t.Error(err)
	}
}
