// Package lock provides locks on files between processes, with a deadline.
//
// Waiters block in the kernel, which grants the lock in the order of arrival. Polling would take so much processor
// time, with hundreds of waiters, that the holder of the lock hardly makes progress.
package lock

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// File waits for an exclusive lock on the file (flock(2)) and takes it. The lock ends when the file is closed, or with
// the process. File fails with the cause of ctx when ctx ends first, and when the file system does not support locks.
func File(ctx context.Context, file *os.File) error {
	// The wait cannot be interrupted, so it has a descriptor of its own. After ctx has ended and the caller has closed
	// the file, this is the last descriptor of the open file: a lock that is granted later ends when it is closed.
	own, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		err := unix.Flock(own, unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(own, unix.LOCK_EX)
		}
		unix.Close(own) // before File returns, so that the lock ends as soon as the caller closes the file
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
