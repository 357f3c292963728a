package bound_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

func TestReadFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte("12345"), 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := bound.ReadFile(path, 5); err != nil || string(data) != "12345" {
		t.Errorf("%q, %v", data, err)
	}
	for _, long := range []string{path, "/dev/zero"} {
		if _, err := bound.ReadFile(long, 4); err == nil || !strings.Contains(err.Error(), long+" is larger than 4 bytes") {
			t.Errorf("%s: %v", long, err)
		}
	}
	if _, err := bound.ReadFile(path+"s", 5); !os.IsNotExist(err) {
		t.Error(err)
	}
}
