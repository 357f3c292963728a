// Package lock makes processes wait for each other: in the kernel, which wakes them as they came, and not by asking
// again and again, which with hundreds of them leaves no processor for the one that has the lock.
package lock

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// File waits until no other process has a lock on the file, and takes it. The lock ends when the file is closed, or
// with the process. It fails with the cause of ctx when that ends first, and when the file system has no locks
// (flock(2)).
func File(ctx context.Context, file *os.File) error {
	// The wait can't be interrupted. When it is abandoned, the descriptor of its own is the last one of the open file: the
	// lock that it gets at last goes with it.
	own, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	done := make(chan error, 1)
	go func() {
		defer unix.Close(own)
		for {
			err := unix.Flock(own, unix.LOCK_EX)
			if !errors.Is(err, unix.EINTR) {
				done <- err
				return
			}
		}
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
