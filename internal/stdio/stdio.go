// Package stdio keeps PKCS#11 modules away from standard output and standard error.
//
// Vendor libraries print to file descriptors 1 and 2: licence banners, debug lines, connection warnings. One such byte
// on the plugin's pipes and Notation calls the plugin malformed. Guard moves the real streams to other descriptors,
// where os.Stdout and os.Stderr go on reaching them, and leaves 1 and 2 to the module.
package stdio

import (
	"os"

	"golang.org/x/sys/unix"
)

// Guard gives descriptors 1 and 2 to sink (the log file, or nil for /dev/null) and keeps the real streams for
// os.Stdout and os.Stderr. It is called once, before a module is loaded.
func Guard(sink *os.File) error {
	if sink == nil {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		sink = null
	}
	for _, s := range []struct {
		fd   int
		file **os.File
	}{{1, &os.Stdout}, {2, &os.Stderr}} {
		// Close-on-exec: a program started for a PIN has no business on the contract's pipes either.
		saved, err := unix.FcntlInt(uintptr(s.fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		if err := unix.Dup3(int(sink.Fd()), s.fd, 0); err != nil {
			return err
		}
		*s.file = os.NewFile(uintptr(saved), (*s.file).Name())
	}
	return nil
}
