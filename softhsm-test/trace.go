package softhsmtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// fileChanges are the system calls by which a program changes files, or writes to a socket.
var fileChanges = map[uint64]string{
	unix.SYS_WRITE: "write", unix.SYS_PWRITE64: "pwrite64", unix.SYS_PWRITEV: "pwritev", unix.SYS_FTRUNCATE: "ftruncate",
	unix.SYS_FSYNC: "fsync", unix.SYS_FDATASYNC: "fdatasync", unix.SYS_FCHMOD: "fchmod", unix.SYS_MKDIRAT: "mkdirat",
	unix.SYS_RENAMEAT: "renameat", unix.SYS_RENAMEAT2: "renameat2", unix.SYS_UNLINKAT: "unlinkat",
}

// change returns the name of a system call that changes files, and "" for another one.
func change(number uint64) string {
	if name, ok := fileChanges[number]; ok {
		return name
	}
	return olderChanges[number]
}

// Traced is a program that is killed as it enters a certain one of the system calls by which it changes files,
// whichever of its threads makes it. (strace can inject signals too, but counts in each thread by itself.)
type Traced struct {
	skip string
	ends chan struct{} // closed when it has ended
	out  bytes.Buffer

	mu     sync.Mutex
	pid    int
	count  int
	target int // 0: it is not killed
	at     string
	killed bool
}

// StartTraced starts a program that is killed at the n-th call from its start, or with 0 at none before KillAt. Calls
// on a file of the name skip are not counted.
func StartTraced(t testing.TB, n int, skip, name string, args ...string) *Traced {
	t.Helper()
	p := &Traced{skip: skip, target: n, ends: make(chan struct{})}
	cmd := Command(t, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true} // a group, to wait for no child of another test
	output, err := os.Create(filepath.Join(t.TempDir(), "output"))
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = output, output
	started := make(chan error)
	go func() {
		defer close(p.ends)
		runtime.LockOSThread() // a tracer is a thread
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			p.pid = cmd.Process.Pid
			err = p.begin()
		}
		started <- err
		if err != nil {
			return
		}
		p.trace()
		data, _ := os.ReadFile(output.Name())
		output.Close()
		p.out.Write(data)
	}()
	if err := <-started; err != nil {
		Missing(t, "the right to trace a process (in a container, allow ptrace)")
	}
	t.Cleanup(func() {
		p.Signal(unix.SIGKILL)
		<-p.ends
	})
	return p
}

// begin waits for the program's first instruction, and lets it go on.
func (p *Traced) begin() error {
	var status unix.WaitStatus
	if _, err := unix.Wait4(p.pid, &status, 0, nil); err != nil {
		return err
	}
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(p.pid, options); err != nil {
		return err
	}
	p.proceed(p.pid, 0)
	return nil
}

// proceed lets a thread go on, to its next system call when they are counted.
func (p *Traced) proceed(thread, signal int) {
	p.mu.Lock()
	counted := p.target > 0
	p.mu.Unlock()
	if counted {
		_ = unix.PtraceSyscall(thread, signal)
		return
	}
	_ = unix.PtraceCont(thread, signal)
}

// trace follows the program to its end.
func (p *Traced) trace() {
	inside := map[int]bool{} // threads between the entry and the exit of a call
	var status unix.WaitStatus
	for {
		thread, err := unix.Wait4(-p.pid, &status, unix.WALL, nil)
		if err != nil {
			return
		}
		if thread == p.pid && (status.Exited() || status.Signaled()) {
			p.mu.Lock()
			p.killed = p.at != "" && status.Signaled() && status.Signal() == unix.SIGKILL
			p.pid = 0
			p.mu.Unlock()
			return
		}
		if !status.Stopped() {
			continue
		}
		deliver := 0
		switch signal := status.StopSignal(); {
		case signal == unix.SIGTRAP|0x80: // a system call
			if inside[thread] = !inside[thread]; inside[thread] {
				p.enter(thread)
			}
		case signal != unix.SIGTRAP && signal != unix.SIGSTOP: // a signal of its own
			deliver = int(signal)
		}
		p.proceed(thread, deliver)
	}
}

// enter counts a system call that a thread enters, and kills the program when it is the one.
func (p *Traced) enter(thread int) {
	var registers unix.PtraceRegs
	if unix.PtraceGetRegs(thread, &registers) != nil {
		return
	}
	call := change(callNumber(&registers))
	if call == "" {
		return
	}
	file, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", p.pid, firstArgument(&registers)))
	// Go's threads wake each other by the latter.
	if file = filepath.Base(file); file == p.skip || strings.Contains(file, "eventfd") {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.count++; p.count == p.target {
		p.at = fmt.Sprintf("call %d, %s of %s", p.count, call, file)
		_ = unix.Kill(p.pid, unix.SIGKILL)
	}
}

// KillAt has the program killed at the n-th call from now on.
func (p *Traced) KillAt(n int) {
	p.mu.Lock()
	p.target = p.count + n
	pid := p.pid
	p.mu.Unlock()
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	for _, entry := range threads { // each stops, and then goes on to its next system call
		if thread, err := strconv.Atoi(entry.Name()); err == nil {
			_ = unix.Tgkill(pid, thread, unix.SIGSTOP)
		}
	}
}

// Signal sends the program a signal, unless it has ended.
func (p *Traced) Signal(signal syscall.Signal) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pid != 0 {
		_ = unix.Kill(p.pid, signal)
	}
}

// Ended returns a channel that is closed when the program has ended.
func (p *Traced) Ended() <-chan struct{} { return p.ends }

// Wait waits for the end of the program. It returns the call at which it was killed, and whether it came to it.
func (p *Traced) Wait() (at string, killed bool) {
	<-p.ends
	return p.at, p.killed
}

// Output returns what the program has printed, after its end.
func (p *Traced) Output() string {
	<-p.ends
	return p.out.String()
}
