package config

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// configured writes the user's config file, unsets the variables of the environment, and returns the path.
func configured(t *testing.T, text string) (path string) {
	t.Helper()
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	t.Setenv(configVariable, "")
	t.Setenv("NOTATION_HSM_PIN", "")
	for _, name := range Names {
		t.Setenv(EnvironmentName(name), "")
	}
	path = filepath.Join(dir, "notation-hsm", "config.yaml")
	if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestOthersCanChangeTheFile refuses a config file that others can change. The hint is the command that corrects it.
func TestOthersCanChangeTheFile(t *testing.T) {
	for name, c := range map[string]struct {
		change func(t *testing.T, path string)
		want   func(path string) (text, hint string)
	}{
		"file": {
			func(t *testing.T, path string) { chmod(t, path, 0o620) },
			func(path string) (string, string) { return path, "chmod go-w " + path },
		},
		"folder": {
			func(t *testing.T, path string) { chmod(t, filepath.Dir(path), 0o777) },
			func(path string) (string, string) {
				return filepath.Dir(path) + " ", "chmod go-w " + filepath.Dir(path)
			},
		},
		"folder above": {
			func(t *testing.T, path string) { chmod(t, filepath.Dir(filepath.Dir(path)), 0o770) },
			func(path string) (string, string) {
				return filepath.Dir(filepath.Dir(path)) + " ", "chmod go-w " + filepath.Dir(filepath.Dir(path))
			},
		},
		"owner": {
			func(t *testing.T, path string) { own(t, path) },
			func(path string) (string, string) {
				return "user 4242 owns " + path, fmt.Sprintf("chown %d %s", os.Getuid(), path)
			},
		},
		"owner of the folder": {
			func(t *testing.T, path string) { own(t, filepath.Dir(path)) },
			func(path string) (string, string) {
				return "user 4242 owns " + filepath.Dir(path), fmt.Sprintf("chown %d %s", os.Getuid(), filepath.Dir(path))
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := configured(t, "module-path: /opt/hsm/p11.so\n")
			if _, err := Resolve("pkcs11:object=a", nil, Flags); err != nil {
				t.Fatal(err)
			}
			c.change(t, path)
			_, err := Resolve("pkcs11:object=a", nil, Flags)
			text, hint := c.want(path)
			if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), text) ||
				!strings.Contains(failure.From(err).Hint, hint) {
				t.Errorf("%v, %q", err, failure.From(err).Hint)
			}
			// The same for a file that is named.
			t.Setenv(configVariable, path)
			if _, err := Resolve("pkcs11:object=a", nil, Flags); !failure.Is(err, failure.Denied) {
				t.Errorf("named by %s: %v", configVariable, err)
			}
			t.Chdir(filepath.Dir(filepath.Dir(path)))
			t.Setenv(configVariable, "notation-hsm/config.yaml")
			if _, err := Resolve("pkcs11:object=a", nil, Flags); !failure.Is(err, failure.Denied) {
				t.Errorf("named by a relative path: %v", err)
			}
		})
	}
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

func own(t *testing.T, path string) {
	t.Helper()
	softhsmtest.NeedRoot(t)
	if err := os.Chown(path, 4242, -1); err != nil {
		t.Fatal(err)
	}
}

// TestCurrentFolder never looks for the config file in the working directory, whatever HOME and XDG_CONFIG_HOME are.
func TestCurrentFolder(t *testing.T) {
	configured(t, "")
	here := t.TempDir()
	t.Chdir(here)
	for _, variable := range []string{"HOME", "XDG_CONFIG_HOME"} {
		for _, value := range []string{".", "relative"} {
			t.Run(variable+"="+value, func(t *testing.T) {
				t.Setenv("HOME", here)
				t.Setenv("XDG_CONFIG_HOME", "")
				t.Setenv(variable, value)
				if _, err := Resolve("pkcs11:object=a", nil, Flags); !failure.Is(err, failure.Invalid) ||
					!strings.Contains(err.Error(), "not an absolute path") {
					t.Errorf("%v", err)
				}
			})
		}
	}
	t.Setenv("HOME", "")
	t.Setenv("XDG_CONFIG_HOME", "")
	if s, err := Resolve("pkcs11:object=a", nil, Flags); err != nil {
		t.Errorf("no folder for a config file: %+v, %v", s, err)
	}
}
