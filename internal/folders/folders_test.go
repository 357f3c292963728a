package folders

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/notaryproject/notation-go/dir"
)

// TestNoHome verifies that no directory is below the working directory, whatever the environment says.
func TestNoHome(t *testing.T) {
	t.Cleanup(func() { dir.UserConfigDir, dir.UserLibexecDir, dir.UserCacheDir = "", "", "" })
	t.Chdir(t.TempDir())
	home := t.TempDir()
	for _, c := range []struct {
		home, config, cache, notation, libexec string
		want                                   string // Notation's configuration directory, or "" if it is unknown
		noPlugins                              bool
	}{
		{},
		{home: "."},
		{home: "home"},
		{config: "config"},
		{home: home, want: home + "/.config/notation"},
		{home: home, config: "/xdg", want: "/xdg/notation"},
		{home: home, config: "xdg"},
		{notation: ".notation"},
		{home: home, notation: ".notation"},
		{home: home, notation: "/etc/notation", want: "/etc/notation"},
		{notation: "/etc/notation", want: "/etc/notation"},
		{home: home, libexec: "plugins", want: home + "/.config/notation", noPlugins: true},
	} {
		for name, value := range map[string]string{"HOME": c.home, "XDG_CONFIG_HOME": c.config, "XDG_CACHE_HOME": c.cache,
			"NOTATION_CONFIG": c.notation, "NOTATION_LIBEXEC": c.libexec, "NOTATION_CACHE": ""} {
			t.Setenv(name, value)
		}
		dir.UserConfigDir, dir.UserLibexecDir, dir.UserCacheDir = "", "", ""
		UseNotation()
		if got, err := NotationConfig(); got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
		if path, err := NotationPlugins(); (err == nil) != (c.want != "" && !c.noPlugins) {
			t.Errorf("%+v: plugins in %q, %v", c, path, err)
		}
		if path, err := Config(); err == nil && !filepath.IsAbs(path) {
			t.Errorf("%+v: %q", c, path)
		}
		for _, fs := range []dir.SysFS{dir.ConfigFS(), dir.PluginFS(), dir.CacheFS()} {
			path, err := fs.SysPath("x")
			if err != nil || !filepath.IsAbs(path) {
				t.Errorf("%+v: Notation's library uses %q, %v", c, path, err)
			}
			if err := os.MkdirAll(path, 0o700); c.want == "" && c.notation == "" && c.home == "" && err == nil {
				t.Errorf("%+v: %s could be made", c, path)
			}
		}
	}
}
