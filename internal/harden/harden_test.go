package harden_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/harden"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

func TestMain(m *testing.M) {
	helper, ok := map[string]func() error{"inspect": inspect, "thread filter": threadFilter,
		"no seccomp": noSeccomp, "restart": restart, "dumpable": dumpable}[os.Getenv("HARDEN_HELPER")]
	if !ok {
		os.Exit(m.Run())
	}
	if err := helper(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// run runs a helper in a process of its own, since there is no way back, as a user; nil is the user of the test.
func run(t *testing.T, helper string, user *syscall.Credential) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), "HARDEN_HELPER="+helper)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: user}
	if f := flag.Lookup("test.gocoverdir"); f != nil && f.Value.String() != "" && user == nil {
		cmd.Env = append(cmd.Env, "GOCOVERDIR="+f.Value.String()) // its counters count for the test's coverage
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s as %+v: %v: %s", helper, user, err, out)
	}
}

// TestHarden hardens a process that has many threads: as the user of the test, and as one without privileges.
func TestHarden(t *testing.T) {
	t.Parallel()
	run(t, "inspect", nil)
	if os.Getuid() == 0 {
		run(t, "inspect", &syscall.Credential{Uid: 65534, Gid: 65534})
	}
}

// TestRestart protects a process and its children before they run, not only once they call Memory.
func TestRestart(t *testing.T) {
	t.Parallel()
	user := &syscall.Credential{Uid: 65534, Gid: 65534}
	if os.Getuid() != 0 {
		user = nil
	}
	run(t, "restart", user)
}

// restart restarts the process that it runs in.
func restart() error {
	if err := harden.Restart(); err != nil { // the process goes on below
		return err
	}
	if err := dumpable(); err != nil {
		return err
	}
	if tracer, err := harden.Tracer(); err != nil || tracer != 0 {
		return fmt.Errorf("process %d traces this one: %w", tracer, err)
	}
	child := exec.Command("/proc/self/exe")
	child.Env = append(os.Environ(), "HARDEN_HELPER=dumpable")
	if out, err := child.CombinedOutput(); err != nil {
		return fmt.Errorf("a child: %w: %s", err, out)
	}
	return nil
}

// dumpable fails if the process has been dumpable since it was started.
func dumpable() error {
	if is, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); err != nil || is == 1 {
		return fmt.Errorf("the process is dumpable: %w", err)
	}
	return nil
}

// TestPrivilegesFail verifies that a thread to which the flag does not spread is an error, and so is a system without
// seccomp.
func TestPrivilegesFail(t *testing.T) {
	t.Parallel()
	softhsmtest.NeedRoot(t) // who sets a filter without no_new_privs
	run(t, "thread filter", nil)
	run(t, "no seccomp", nil)
}

// setFilter sets a seccomp filter for the current thread, or for all with the flag TSYNC.
func setFilter(flags uintptr, instructions ...unix.SockFilter) error {
	program := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]} //nolint:gosec // there are few
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags,
		uintptr(unsafe.Pointer(&program))); errno != 0 { //nolint:gosec // a system call takes a pointer
		return fmt.Errorf("cannot set a filter: %w", errno)
	}
	return nil
}

func expectError(text string) error {
	if err := harden.Privileges(); err == nil || !strings.Contains(err.Error(), text) {
		return fmt.Errorf("error %w, want one with %q", err, text)
	}
	return nil
}

// threadFilter has a thread with a seccomp filter of its own.
func threadFilter() error {
	result := make(chan error)
	release := make(chan struct{})
	defer close(release)
	go func() {
		runtime.LockOSThread()
		result <- setFilter(0, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
		<-release
	}()
	return errors.Join(<-result, expectError("which has a seccomp filter of its own"))
}

// noSeccomp has seccomp(2) answer as a kernel without it.
func noSeccomp() error {
	err := setFilter(unix.SECCOMP_FILTER_FLAG_TSYNC,
		unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, // the number of the system call
		unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_SECCOMP, Jf: 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	return errors.Join(err, expectError("cannot set no_new_privs in all threads: function not implemented"))
}

// inspect hardens the process that it runs in, and returns what is not as promised.
func inspect() error {
	release := make(chan struct{})
	defer close(release)
	for range 20 { // threads that exist before
		ready := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(ready)
			<-release
		}()
		<-ready
	}
	for range 3 { // again does no harm
		if err := harden.Memory(); err != nil {
			return err
		}
		if err := harden.Privileges(); err != nil {
			return err
		}
	}
	tasks, err := filepath.Glob("/proc/self/task/*/status")
	if err != nil || len(tasks) < 20 {
		return fmt.Errorf("%d threads: %w", len(tasks), err)
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if err != nil {
			return err
		}
		if !strings.Contains(string(status), "NoNewPrivs:\t1\n") ||
			!strings.Contains(string(status), "Seccomp_filters:\t1\n") {
			return fmt.Errorf("%s: %s", task, status)
		}
	}
	if file, err := os.Open("/proc/self/mem"); err == nil && os.Getuid() != 0 {
		file.Close()
		return fmt.Errorf("the process is still dumpable")
	}
	var core syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &core); err != nil || core.Max != 0 {
		return fmt.Errorf("the core limit is %+v: %w", core, err)
	}
	// A program that it starts gains no privileges either.
	out, err := exec.Command("grep", "NoNewPrivs", "/proc/self/status").Output()
	if err != nil || string(out) != "NoNewPrivs:\t1\n" {
		return fmt.Errorf("a program that it starts: %s: %w", out, err)
	}
	return nil
}
