package custody

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// fileChanges are the system calls by which a program changes files. (Go makes no others.)
var fileChanges = map[uint64]string{
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_FTRUNCATE: "ftruncate", unix.SYS_FSYNC: "fsync",
	unix.SYS_FCHMOD:  "fchmod",
	unix.SYS_MKDIRAT: "mkdirat", unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2",
	unix.SYS_UNLINKAT: "unlinkat",
}

// killAt runs a command and kills it as it enters the n-th call that changes a file, whichever of its threads makes it.
// (strace can inject signals too, but counts in each thread by itself.) Calls on a file of the name skip are not
// counted. It returns the call, and whether it came to it.
func killAt(t testing.TB, n int, skip, name string, args ...string) (at string, killed bool) {
	t.Helper()
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	cmd := softhsmtest.Command(t, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true} // a group, to wait for no child of another test
	if err := cmd.Start(); err != nil {
		softhsmtest.Missing(t, "the right to trace a process (in a container, allow ptrace)")
	}
	pid := cmd.Process.Pid
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, 0, nil); err != nil {
		t.Fatal(err)
	}
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, options); err != nil {
		t.Fatal(err)
	}
	count := 0
	inside := map[int]bool{} // threads between the entry and the exit of a call
	_ = unix.PtraceSyscall(pid, 0)
	for {
		thread, err := unix.Wait4(-pid, &status, unix.WALL, nil)
		if err != nil {
			return at, killed
		}
		if thread == pid && (status.Exited() || status.Signaled()) {
			return at, status.Signaled() && status.Signal() == unix.SIGKILL
		}
		if !status.Stopped() {
			continue
		}
		deliver := 0
		switch signal := status.StopSignal(); {
		case signal == unix.SIGTRAP|0x80: // a system call
			if inside[thread] = !inside[thread]; !inside[thread] {
				break
			}
			var registers unix.PtraceRegs
			if unix.PtraceGetRegs(thread, &registers) != nil {
				break
			}
			call, changes := fileChanges[callNumber(&registers)]
			if !changes {
				break
			}
			file, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, firstArgument(&registers)))
			// Go's threads wake each other by the latter
			if file = filepath.Base(file); file == skip || strings.Contains(file, "eventfd") {
				break
			}
			if count++; count == n {
				at = fmt.Sprintf("call %d, %s of %s", n, call, file)
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		case signal != unix.SIGTRAP && signal != unix.SIGSTOP: // a signal of its own
			deliver = int(signal)
		}
		_ = unix.PtraceSyscall(thread, deliver)
	}
}

// killAtEach kills a command at each call that changes a file, one in each run.
func killAtEach(t testing.TB, skip string, prepare func(), check func(at string), name string,
	args ...string) (kills int) {
	t.Helper()
	return killAtEvery(t, 1, 1, skip, prepare, check, name, args...)
}

// killAtEvery does so at one call of step, from the first on.
func killAtEvery(t testing.TB, first, step int, skip string, prepare func(), check func(at string), name string,
	args ...string) (kills int) {
	t.Helper()
	for ; ; kills++ {
		prepare()
		at, killed := killAt(t, first+kills*step, skip, name, args...)
		if !killed {
			return kills
		}
		check(at)
	}
}
