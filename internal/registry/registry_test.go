package registry

import (
	"os"
	"path/filepath"
	"testing"
)

// TestPlainHTTP verifies that a registry is reached without TLS only where that is allowed.
func TestPlainHTTP(t *testing.T) {
	config := t.TempDir()
	t.Setenv("NOTATION_CONFIG", config)
	put(t, filepath.Join(config, "config.json"), `{"insecureRegistries": ["Insecure.example.com:5000"]}`, 0o600)
	for address, want := range map[string]bool{"registry.example.com/app": false, "localhost:5000/app": true,
		"localhost/app": false, "127.0.0.1:5000/app": false, "insecure.example.com:5000/app": true,
		"insecure.example.com/app": false} {
		for _, all := range []bool{false, true} {
			if got := New(Options{PlainHTTP: all}).Repository(address).PlainHTTP; got != (want || all) {
				t.Errorf("%s, all %v: plain HTTP %v", address, all, got)
			}
		}
	}
	put(t, filepath.Join(config, "config.json"), `{`, 0o600)
	if got := insecureRegistries(); got != nil {
		t.Errorf("a damaged file names %v", got)
	}
}

func put(t testing.TB, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// TestPatience verifies that no request waits for ever for a registry that does not answer.
func TestPatience(t *testing.T) {
	registries := New(Options{})
	defer registries.Close()
	if registries.transport.ResponseHeaderTimeout <= 0 {
		t.Error("a request to a registry that does not answer waits for ever")
	}
}
