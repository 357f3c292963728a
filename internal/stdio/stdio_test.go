package stdio

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if path := os.Getenv("STDIO_HELPER"); path != "" {
		if err := help(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// help redirects to a file, if there is one, and prints as the program, and as a module does.
func help(path string) error {
	var file *os.File
	if path != "none" {
		var err error
		if file, err = os.Create(path); err != nil {
			return err
		}
	}
	if err := Redirect(file); err != nil {
		return err
	}
	fmt.Fprint(os.Stdout, "answer")
	fmt.Fprint(os.Stderr, "error")
	for _, fd := range []int{1, 2} {
		if _, err := unix.Write(fd, []byte("banner ")); err != nil {
			return err
		}
	}
	for _, stream := range []*os.File{os.Stdout, os.Stderr} {
		flags, err := unix.FcntlInt(stream.Fd(), unix.F_GETFD, 0)
		if err != nil || flags&unix.FD_CLOEXEC == 0 {
			return fmt.Errorf("a child would inherit %s: %w", stream.Name(), err)
		}
	}
	return nil
}

// TestRedirect shows that what a module prints reaches neither stream, that what the program prints reaches both, and
// that a child would inherit neither.
func TestRedirect(t *testing.T) {
	t.Parallel()
	for _, path := range []string{filepath.Join(t.TempDir(), "log"), "none"} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), "STDIO_HELPER="+path)
		var out, errors bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &errors
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
		if out.String() != "answer" || errors.String() != "error" {
			t.Errorf("standard output has %q, standard error %q", &out, &errors)
		}
		if path == "none" {
			continue
		}
		if log, err := os.ReadFile(path); err != nil || string(log) != "banner banner " {
			t.Errorf("the file has %q, %v", log, err)
		}
	}
}

// TestRedirectFails returns an error when the file cannot be written to, and changes nothing.
func TestRedirectFails(t *testing.T) {
	file, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	file.Close()
	out := os.Stdout
	if err := Redirect(file); err == nil || os.Stdout != out {
		t.Error("a closed file was accepted")
	}
}
