// Package stdio keeps the output of PKCS#11 modules out of standard output and standard error.
//
// Vendor libraries print to file descriptors 1 and 2: licence banners, debug lines, connection warnings. One such byte
// on the pipes of the plugin, and Notation reads a malformed answer.
package stdio

import (
	"os"

	"golang.org/x/sys/unix"
)

// Redirect makes descriptors 1 and 2 write to a file, or to /dev/null if it is nil. os.Stdout and os.Stderr still write
// to what these descriptors were before. It is called once, before a module is loaded.
func Redirect(file *os.File) error {
	if file == nil {
		null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		file = null
	}
	for _, stream := range []struct {
		fd   int
		file **os.File
	}{{1, &os.Stdout}, {2, &os.Stderr}} {
		// Close-on-exec: a program that is started for a PIN must not inherit the pipes of the plugin contract either.
		saved, err := unix.FcntlInt(uintptr(stream.fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		if err := unix.Dup3(int(file.Fd()), stream.fd, 0); err != nil {
			return err
		}
		*stream.file = os.NewFile(uintptr(saved), (*stream.file).Name())
	}
	return nil
}
