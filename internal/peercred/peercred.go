// Package peercred reads which process is at the other end of a Unix socket.
package peercred

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Of returns the id, the user and the group of the process that connected to a Unix socket, or that listens to it, as
// they were then (SO_PEERCRED of unix(7)). The process may have ended since.
func Of(conn syscall.Conn) (unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return unix.Ucred{}, err
	}
	var found *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		found, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) //nolint:gosec // a descriptor fits
	})
	if err = errors.Join(err, failed); err != nil {
		return unix.Ucred{}, os.NewSyscallError("getsockopt", err)
	}
	return *found, nil
}
