package pin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const number = "hunter-29417" // a PIN

func place(t *testing.T, name, text string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func script(t *testing.T, lines string) string {
	return place(t, "script", "#!/bin/sh\n"+lines+"\n", 0o700)
}

func read(t *testing.T, source string) (string, error) {
	t.Helper()
	s, err := Read(t.Context(), source, "signing")
	if err != nil {
		return "", err
	}
	defer s.Clear()
	return string(s.Bytes()), nil
}

// TestSources reads a PIN from every kind of source.
func TestSources(t *testing.T) {
	t.Setenv("TEST_PIN", number)
	whole := strings.Repeat("p", limit)
	long := place(t, "long", whole, 0o600)
	for source, want := range map[string]string{
		"env:TEST_PIN": number,
		"file:" + place(t, "pin", number+"\nmore\n", 0o400):          number,
		"file://" + place(t, "pin", number+"\r\n", 0o600):            number,
		place(t, "pin", number, 0o600):                               number,
		long:                                                         whole,
		"exec:" + script(t, "echo "+number+"; echo more"):            number,
		"|" + script(t, "printf "+number):                            number,
		"exec:" + script(t, "exec cat "+long):                        whole,
		"exec:" + script(t, "setsid sleep 60 & echo "+number):        number, // sleep keeps the pipe open
		"exec:" + script(t, "echo "+number+"; exec >&-; sleep 0.01"): number,
	} {
		if got, err := read(t, source); err != nil || got != want {
			t.Errorf("%s: %q, %v", source, got, err)
		}
	}
	if s, err := From(number); err != nil || string(s.Bytes()) != number {
		t.Errorf("%v", err)
	} else {
		s.Clear()
		if len(s.Bytes()) > 0 {
			t.Error("a PIN is left after Clear")
		}
		s.Clear()
	}
	var none *Secret // of a token with a PIN pad
	if len(none.Bytes()) > 0 {
		t.Error("nil is not an empty PIN")
	}
	none.Clear()
}

// TestRestCleared overwrites what a source gives after the PIN, such as another PIN.
func TestRestCleared(t *testing.T) {
	t.Parallel()
	s, err := Read(t.Context(), "file:"+place(t, "pin", "1234\r\n"+number+"\n", 0o600), "")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Clear()
	if string(s.Bytes()) != "1234" || cap(s.Bytes()) != len("1234") ||
		len(bytes.Trim(s.memory[len("1234"):], "\x00")) > 0 {
		t.Errorf("the memory has %q", s.memory)
	}
}

// TestRefusedSources names what is wrong with a source, and repeats nothing that may be the PIN.
func TestRefusedSources(t *testing.T) {
	t.Parallel()
	open, fifo := place(t, "pin", number, 0o644), filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for source, message := range map[string]string{
		number:                                   "pin-source is malformed",
		"vault:" + number:                        "pin-source is malformed",
		"env:29417-hunter":                       "pin-source is malformed",
		"env:":                                   "pin-source is malformed",
		"file:" + number:                         "needs an absolute path",
		"env:NO_SUCH_PIN":                        "NO_SUCH_PIN is not set",
		"file:/no/such/pin":                      "no such file",
		"file:" + t.TempDir():                    "is not a regular file",
		"file:" + fifo:                           "is not a regular file",
		"file:" + open:                           "others can read",
		"file:" + place(t, "pin", number, 0o640): "others can read",
		"file:" + place(t, "pin", number, 0o604): "others can read",
		"file:" + place(t, "pin", "\n"+number, 0o600):                        "is empty",
		"file:" + place(t, "pin", number+strings.Repeat("\n", limit), 0o600): "more than 4096 bytes",
		"exec:": "names no command",
		"exec:" + script(t, "echo "+number+"; exit 3"):     "exit status 3",
		"exec:" + script(t, "echo "+number+" >&2; exit 1"): "exit status 1",
		"exec:" + script(t, "true"):                        "is empty",
		"exec:/no/such/command":                            "no such file",
	} {
		_, err := read(t, source)
		if err == nil || !strings.Contains(err.Error(), message) {
			t.Errorf("%s: %v, want %q", source, err, message)
			continue
		}
		if strings.Contains(fmt.Sprint(err, failure.From(err).Hint), "hunter") {
			t.Errorf("the PIN is repeated: %v", err)
		}
	}
}

// TestEndlessCommand kills commands that print without end or do not end, with the processes that they started. None
// takes more memory than a PIN.
func TestEndlessCommand(t *testing.T) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := read(t, "exec:"+script(t, "exec yes "+number)); err == nil ||
		!strings.Contains(err.Error(), "more than 4096 bytes") {
		t.Errorf("%v", err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("it took %d bytes of memory", used)
	}
	for name, lines := range map[string]string{
		"prints": "sleep 600 & echo $! >%s; echo $$ >>%[1]s; yes; ",
		"waits":  "sleep 600 & echo $! >%s; echo $$ >>%[1]s; echo 1; kill -USR1 %[2]d; wait",
		"ignores": "trap '' TERM INT HUP; sh -c 'trap \"\" TERM INT HUP; sleep 600' & echo $! >%s; echo $$ >>%[1]s; " +
			"kill -USR1 %[2]d; wait",
		"ends before": "sleep 600 & echo $! >%s; echo $$ >>%[1]s; echo 1",
	} {
		pids := filepath.Join(t.TempDir(), "pids")
		ctx, cancel := context.WithCancel(t.Context())
		signalled := make(chan os.Signal, 1)
		signal.Notify(signalled, syscall.SIGUSR1)
		go func() {
			select {
			case <-signalled: // the command has started its processes
				cancel()
			case <-ctx.Done():
			}
		}()
		s, err := Read(ctx, "exec:"+script(t, fmt.Sprintf(lines, pids, os.Getpid())), "")
		s.Clear()
		cancel()
		if (err == nil) != (name == "ends before") {
			t.Errorf("%s: %v", name, err)
		}
		text, err := os.ReadFile(pids)
		if err != nil {
			t.Fatal(err)
		}
		for field := range strings.FieldsSeq(string(text)) {
			pid, _ := strconv.Atoi(field)
			waitGone(t, name, pid)
		}
	}
}

// waitGone waits until a killed process has ended.
func waitGone(t *testing.T, name string, pid int) {
	for range 30_000 { // five minutes
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%s: process %d outlives the command", name, pid)
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// TestPINFileOwner refuses a PIN file that others own or can replace, and accepts a mounted Kubernetes secret.
func TestPINFileOwner(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	folder := filepath.Join(dir, "folder")
	file := filepath.Join(folder, "pin")
	if err := errors.Join(os.Mkdir(folder, 0o700), os.WriteFile(file, []byte(number), 0o400)); err != nil {
		t.Fatal(err)
	}
	if _, err := read(t, "file:"+file); err != nil {
		t.Errorf("a file of this user: %v", err)
	}
	if err := os.Chmod(folder, 0o777); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{file, link} {
		if _, err := read(t, "file:"+path); !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), folder) ||
			!strings.Contains(failure.From(err).Hint, "chmod go-w") {
			t.Errorf("%s in a folder that all can write to: %v", path, err)
		}
	}
	if err := os.Chmod(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(file, 65534, 65534); err != nil {
			t.Fatal(err)
		}
		if _, err := read(t, "file:"+file); !failure.Is(err, failure.Denied) ||
			!strings.Contains(err.Error(), "user 65534 owns") {
			t.Errorf("a file of another user: %v", err)
		}
	}

	// The kubelet mounts a secret like this, on a tmpfs that all can write to, with the sticky bit.
	secret := filepath.Join(dir, "secret")
	version := filepath.Join(secret, "..2026_01_02_03_04_05.1234567")
	if err := errors.Join(os.Mkdir(secret, 0o700), os.Chmod(secret, 0o777|fs.ModeSticky), os.Mkdir(version, 0o755),
		os.WriteFile(filepath.Join(version, "pin"), []byte(number), 0o400),
		os.Symlink(filepath.Base(version), filepath.Join(secret, "..data")),
		os.Symlink("..data/pin", filepath.Join(secret, "pin"))); err != nil {
		t.Fatal(err)
	}
	if got, err := read(t, "file:"+filepath.Join(secret, "pin")); err != nil || got != number {
		t.Errorf("a Kubernetes secret: %q, %v", got, err)
	}
}
