package harden_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/harden"
)

func TestMain(m *testing.M) {
	if os.Getenv("HARDEN_HELPER") == "" {
		os.Exit(m.Run())
	}
	if err := helper(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// TestHarden closes a process that has many threads, in a process of its own since there is no way back; as a user
// without privileges.
func TestHarden(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "HARDEN_HELPER=1")
	if os.Getuid() == 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

func helper() error {
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
	if _, err := os.Open("/proc/self/mem"); err == nil && os.Getuid() != 0 {
		return fmt.Errorf("the process is still dumpable")
	}
	var core syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &core); err != nil || core.Max != 0 {
		return fmt.Errorf("the core limit is %+v: %w", core, err)
	}
	// What it starts runs as ever, and gains no privileges either.
	out, err := exec.Command("grep", "NoNewPrivs", "/proc/self/status").Output()
	if err != nil || string(out) != "NoNewPrivs:\t1\n" {
		return fmt.Errorf("a program that it starts: %s: %w", out, err)
	}
	return nil
}
