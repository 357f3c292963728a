package softhsmtest

import "golang.org/x/sys/unix"

// At the entry of a system call, the registers hold its number and its arguments.

func callNumber(r *unix.PtraceRegs) uint64    { return r.Regs[8] }
func firstArgument(r *unix.PtraceRegs) uint64 { return r.Regs[0] }

var olderChanges map[uint64]string // there are none
