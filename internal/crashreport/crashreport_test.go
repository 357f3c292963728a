//go:build cgo

package crashreport

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	switch os.Getenv("CRASHREPORT_HELPER") {
	case "":
		os.Exit(m.Run())
	case "module":
		prepare()
		crash()
	case "elsewhere":
		SetOutput(os.Stdout)
		prepare()
		crash()
	case "unprepared":
		crash()
	case "long":
		SetFormat(func(err error) []byte { return []byte(err.Error()) })
		Expect(errors.New(strings.Repeat("x", 10_000)))
		crash()
	}
}

func prepare() {
	SetFormat(func(err error) []byte { return fmt.Appendf(nil, "{%v}", err) })
	Expect(errors.New("the module crashed"))
	Expect(errors.New("the second module crashed"))
}

// crash runs an invalid instruction outside of the code of this program, as a faulty module does.
func crash() {
	code, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC,
		unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		panic(err)
	}
	if runtime.GOARCH == "amd64" {
		copy(code, "\x0f\x0b") // ud2; on arm64 zeros are an invalid instruction
	}
	address := &code[0]
	function := &address
	(*(*func())(unsafe.Pointer(&function)))()
}

// run runs this program as a helper.
func run(t *testing.T, helper string) (code int, stderr string) {
	t.Helper()
	code, _, stderr = runBoth(t, helper)
	return code, stderr
}

func runBoth(t *testing.T, helper string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "CRASHREPORT_HELPER="+helper)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// TestModuleCrash writes the error that was prepared last, and nothing else.
func TestModuleCrash(t *testing.T) {
	t.Parallel()
	if code, stderr := run(t, "module"); code != 1 || stderr != "{the second module crashed}" {
		t.Errorf("exit code %d, %q", code, stderr)
	}
	if code, stderr := run(t, "long"); code != 1 || stderr != strings.Repeat("x", 8192) {
		t.Errorf("a long error: exit code %d, %d bytes", code, len(stderr))
	}
	code, stdout, stderr := runBoth(t, "elsewhere")
	if code != 1 || stdout != "{the second module crashed}" || stderr != "" {
		t.Errorf("on standard output: exit code %d, %q, %q", code, stdout, stderr)
	}
	if code, stderr := run(t, "unprepared"); code != 2 || !strings.Contains(stderr, "SIGILL") {
		t.Errorf("without Expect, Go's runtime ends the process with exit code 2 and not %d: %q", code, stderr)
	}
}

// TestOwnFault recovers from a fault in Go code, as Go programs rely on.
func TestOwnFault(t *testing.T) {
	prepare()
	defer func() {
		if err, ok := recover().(runtime.Error); !ok || !strings.Contains(err.Error(), "nil pointer") {
			t.Errorf("a nil pointer ended in %v", err)
		}
	}()
	var nothing *int
	*nothing = 1
}

// TestNoFormat prepares nothing without a format, and no empty error.
func TestNoFormat(*testing.T) {
	SetFormat(nil)
	Expect(errors.New("no format"))
	SetFormat(func(error) []byte { return nil })
	Expect(errors.New("empty"))
}
