package bound_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

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

// TestReadPipe reads a pipe as a shell hands it over, and waits for none that nobody writes to.
func TestReadPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	if data, err := bound.ReadFile(path, 5); err != nil || len(data) > 0 {
		t.Errorf("%q, %v", data, err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() {
		_, _ = w.WriteString("12345")
		_ = w.Close()
	}()
	if data, err := bound.ReadFile(fmt.Sprintf("/dev/fd/%d", r.Fd()), 5); err != nil || string(data) != "12345" {
		t.Errorf("%q, %v", data, err)
	}
}
