package harden

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Restart starts the program of this process anew, in the same process, from a copy in memory that the user can execute
// and not read. The kernel makes such a process not dumpable when it starts it, and so every process that is started
// from /proc/self/exe of it. Memory alone leaves the time until it is called, in which another process of the user can
// open the memory, and read and write it for as long as the process lives. So Restart is called before anything else.
//
// It returns nil in a process that was started so, and in one of root's. The error says why there is no copy. The
// environment stays, and so do descriptors that are not close-on-exec.
func Restart() error {
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil {
		return fmt.Errorf("cannot read whether the process is dumpable: %w", err)
	}
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	if dumpable != 1 || os.Geteuid() == 0 || strings.HasPrefix(program, "/memfd:") {
		name(filepath.Base(os.Args[0]))
		return nil
	}
	if err := Memory(); err != nil { // nobody opens the copy while it is made
		return err
	}
	fd, err := copyProgram()
	if err != nil {
		return fmt.Errorf("cannot copy the program into memory: %w", err)
	}
	defer unix.Close(fd)
	return os.NewSyscallError("execve", unix.Exec("/proc/self/fd/"+strconv.Itoa(fd), os.Args, os.Environ()))
}

// copyProgram returns a descriptor of a copy of this program in memory.
func copyProgram() (fd int, err error) {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return -1, err
	}
	defer program.Close()
	const flags = unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err = unix.MemfdCreate("program", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3
		fd, err = unix.MemfdCreate("program", flags)
	}
	if err != nil {
		return -1, os.NewSyscallError("memfd_create", err)
	}
	file := os.NewFile(uintptr(fd), "program") //nolint:gosec // a descriptor fits
	defer file.Close()
	if _, err := io.Copy(file, program); err != nil {
		return -1, err
	}
	if err := unix.Fchmod(fd, 0o100); err != nil {
		return -1, os.NewSyscallError("fchmod", err)
	}
	const seals = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(file.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return -1, os.NewSyscallError("fcntl", err)
	}
	return unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// name gives the process a name, as lists of processes show it: the kernel has named it after a descriptor.
func name(text string) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Gettid() != unix.Getpid() { // the name of the process is that of its first thread
		return
	}
	if text, err := unix.ByteSliceFromString(text); err == nil {
		_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&text[0])), 0, 0, 0) //nolint:gosec // it takes a pointer
	}
}

// Tracer returns the process that traces this one, such as a debugger; 0 if there is none. One that did so before the
// process was protected still does.
func Tracer() (pid int, err error) {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, err
	}
	_, rest, _ := strings.Cut(string(status), "\nTracerPid:")
	line, _, _ := strings.Cut(rest, "\n")
	return strconv.Atoi(strings.TrimSpace(line))
}
