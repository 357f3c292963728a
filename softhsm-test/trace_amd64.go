package softhsmtest

import "golang.org/x/sys/unix"

// At the entry of a system call, the registers hold its number and its arguments.

func callNumber(r *unix.PtraceRegs) uint64    { return r.Orig_rax }
func firstArgument(r *unix.PtraceRegs) uint64 { return r.Rdi }

// olderChanges are calls that later architectures do not have. SQLite makes them.
var olderChanges = map[uint64]string{unix.SYS_UNLINK: "unlink", unix.SYS_RENAME: "rename", unix.SYS_MKDIR: "mkdir"}
