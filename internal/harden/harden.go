// Package harden protects the current process: its memory against other processes of the same user, and the machine
// against programs that it starts. It is called before a PIN is read, and before a process confines itself.
//
// Nothing here can be undone in the same process.
package harden

import (
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Memory makes the process not dumpable and sets its core limit to 0. After that no core file is written, and other
// processes of the same user can neither read its memory and its environment nor attach to it; root can. A program that
// the process starts is dumpable again.
func Memory() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot make the process not dumpable: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("cannot set the core limit to 0: %w", err)
	}
	return nil
}

// Privileges sets no_new_privs in all threads of the process (PR_SET_NO_NEW_PRIVS): programs that it starts gain no
// privileges by set-user-ID, set-group-ID or file capabilities. It fails when the kernel has no seccomp.
//
// The flag belongs to a thread, and a program with C code cannot call prctl(2) in all its threads
// (syscall.AllThreadsSyscall). The kernel copies the flag to all threads when a seccomp filter is set for all of them,
// so a filter that allows everything is set.
func Privileges() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && set == 1 {
		return nil // set by an earlier call, or by the parent process
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot set no_new_privs: %w", err)
	}
	allow := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW}
	program := unix.SockFprog{Len: 1, Filter: &allow}
	// Without SPEC_ALLOW, kernels before 5.16 turn on mitigations that slow the process down.
	const flags = unix.SECCOMP_FILTER_FLAG_TSYNC | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	thread, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags,
		uintptr(unsafe.Pointer(&program))) //nolint:gosec // a system call takes a pointer
	switch {
	case errno != 0:
		return fmt.Errorf("cannot set no_new_privs in all threads: %w", errno)
	case thread != 0:
		return fmt.Errorf("cannot set no_new_privs in thread %d, which has a seccomp filter of its own", thread)
	}
	return nil
}
