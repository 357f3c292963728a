package state

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestWrite replaces regular files only: a rename over a device would remove the device.
func TestWrite(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file, pipe := filepath.Join(dir, "new", "file"), filepath.Join(dir, "pipe")
	for _, text := range []string{"one", "two"} {
		if err := Write(file, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(file); string(got) != text {
			t.Errorf("the file has %q, not %q", got, text)
		}
		if info, err := os.Stat(file); err != nil || info.Mode() != 0o640 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(file)); err != nil || len(entries) != 1 {
		t.Errorf("temporary files are left: %v, %v", entries, err)
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, dir} {
		if err := Write(path, nil, 0o600); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode().IsRegular() {
		t.Errorf("the pipe is %v, %v", info, err)
	}
	if err := Write(filepath.Join(file, "below"), nil, 0o600); !failure.Is(err, failure.Invalid) {
		t.Errorf("a folder that is a file: %v", err)
	}
}

// TestAppend writes over what an interrupted write has left, and creates no file.
func TestAppend(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	if err := Append(file, 0, []byte("one")); !failure.Is(err, failure.NotFound) {
		t.Errorf("a file was created: %v", err)
	}
	if err := os.WriteFile(file, []byte("one\nhalf of a long li"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Append(file, 4, []byte("two\n")); err != nil {
		t.Fatal(err)
	}
	if got, _ := os.ReadFile(file); string(got) != "one\ntwo\n" {
		t.Errorf("the file has %q", got)
	}
}

// TestLock lets one command at a time change a folder. The others wait as long as their context lets them.
func TestLock(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "new")
	unlock, err := Lock(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Lock(ended, dir); !failure.Is(err, failure.Timeout) {
		t.Errorf("a locked folder: %v", err)
	}
	locked := make(chan error)
	go func() {
		unlock, err := Lock(t.Context(), dir)
		if err == nil {
			unlock()
		}
		locked <- err
	}()
	select {
	case err := <-locked:
		t.Fatalf("two have the lock: %v", err)
	default:
	}
	unlock()
	if err := <-locked; err != nil {
		t.Error(err)
	}
	if _, err := Lock(t.Context(), filepath.Join(dir, ".lock", "below")); !failure.Is(err, failure.Invalid) {
		t.Errorf("a folder that is a file: %v", err)
	}
}
