// Package harden closes a process that is about to hold a PIN against others of the same user, and against what it
// starts.
package harden

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory makes the process not dumpable and sets its core limit to 0, for good: no core file is written, and no other
// process of the same user can read its memory, its environment or attach to it. Root still can. A program that it
// starts is dumpable again.
func Memory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot make the process not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("cannot set the core limit to 0: %w", err)
	}
	return nil
}

// Privileges has all threads of the process, and all programs started from then on, gain no privileges: setuid programs
// and file capabilities count for nothing (PR_SET_NO_NEW_PRIVS).
//
// The flag is a thread's own, and a program with C code in it cannot make a call in all its threads
// (syscall.AllThreadsSyscall). The kernel spreads the flag itself when a seccomp filter is given to all threads, so one
// that allows everything is.
func Privileges() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && set == 1 {
		return nil // by an earlier call, or by whoever started the process
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot give up new privileges: %w", err)
	}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	program := unix.SockFprog{Len: 1, Filter: &allow}
	// Without SPEC_ALLOW older kernels slow a process with a filter down.
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program))) //nolint:gosec // a system call takes a pointer
	switch {
	case errno != 0:
		return fmt.Errorf("cannot give up new privileges in all threads: %w", errno)
	case thread != 0:
		return fmt.Errorf("cannot give up new privileges in thread %d, which has a seccomp filter of its own", thread)
	}
	return nil
}
