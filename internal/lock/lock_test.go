package lock_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/lock"
)

func open(t *testing.T, path string) *os.File {
	t.Helper()
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = file.Close() })
	return file
}

// TestFile has many writers read the file and write it with one more byte: without the lock, some bytes would be lost.
func TestFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	const many = 50
	done := make(chan error, many)
	for range many {
		file := open(t, path)
		go func() {
			err := lock.File(t.Context(), file)
			data, readErr := os.ReadFile(path)
			_, writeErr := file.WriteAt(append(data, 'x'), 0)
			_ = file.Close()
			done <- errors.Join(err, readErr, writeErr)
		}()
	}
	for range many {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if data, err := os.ReadFile(path); err != nil || len(data) != many {
		t.Errorf("the file has %d bytes, want %d: %v", len(data), many, err)
	}
}

// TestExclusive verifies that a lock keeps out all others, and ends when the file is closed.
func TestExclusive(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	holder, other := open(t, path), open(t, path)
	if err := lock.File(t.Context(), holder); err != nil {
		t.Fatal(err)
	}
	try := func() error { return unix.Flock(int(other.Fd()), unix.LOCK_SH|unix.LOCK_NB) }
	if err := try(); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("beside the holder: error %v, want %v", err, unix.EWOULDBLOCK)
	}
	_ = holder.Close()
	if err := try(); err != nil {
		t.Errorf("after the holder: %v", err)
	}
}

// TestClosed verifies that a closed file is an error.
func TestClosed(t *testing.T) {
	t.Parallel()
	file := open(t, filepath.Join(t.TempDir(), "lock"))
	file.Close()
	if err := lock.File(t.Context(), file); !errors.Is(err, unix.EBADF) {
		t.Errorf("error %v, want %v", err, unix.EBADF)
	}
}

// TestAbandoned verifies that a wait that was abandoned does not take the lock from others afterwards.
func TestAbandoned(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "lock")
	holder, late, next := open(t, path), open(t, path), open(t, path)
	if err := lock.File(t.Context(), holder); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if err := lock.File(ctx, late); !errors.Is(err, enough) {
		t.Fatalf("error %v, want %v", err, enough)
	}
	_ = late.Close()
	_ = holder.Close()
	if err := lock.File(t.Context(), next); err != nil {
		t.Error(err)
	}
}
