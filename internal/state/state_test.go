package state

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestWrite replaces files, and files alone: renaming over a device would take it from everybody.
func TestWrite(t *testing.T) {
	dir := t.TempDir()
	file, pipe := filepath.Join(dir, "new", "file"), filepath.Join(dir, "pipe")
	for _, text := range []string{"one", "two"} {
		if err := Write(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, _ := os.ReadFile(file); string(got) != text {
			t.Errorf("the file has %q, not %q", got, text)
		}
	}
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{pipe, dir} {
		if err := Write(path, nil, 0o600); err == nil {
			t.Errorf("%s was replaced", path)
		}
	}
	if info, err := os.Lstat(pipe); err != nil || info.Mode().IsRegular() {
		t.Errorf("the pipe is %v, %v", info, err)
	}
}

// TestAppend adds to a file in the place of what a write that was cut short has left, and makes no file.
func TestAppend(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := Append(file, 0, []byte("one")); err == nil {
		t.Error("a file was made")
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
