package pin

import (
	"bytes"
	"io"
	"log/slog"

	"golang.org/x/sys/unix"
)

// limit is how many bytes a source may give, the PIN and what follows its line. No token has a PIN near this long.
const limit = 4096

// Secret is a PIN in memory outside of Go's heap. So the garbage collector makes no copies of it. The memory is locked,
// so that it is never written to swap space, and left out of core files. The nil Secret is an empty PIN.
type Secret struct {
	memory []byte // of limit+1 bytes, so that a PIN that is too long is noticed
	length int
}

// newSecret returns an empty secret. A failure to lock the memory is logged only; most systems let a user lock more
// than these two pages.
func newSecret() (*Secret, error) {
	memory, err := unix.Mmap(-1, 0, limit+1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, err
	}
	if err := unix.Mlock(memory); err != nil {
		slog.Warn("cannot lock the memory of the PIN", "error", err)
	}
	if err := unix.Madvise(memory, unix.MADV_DONTDUMP); err != nil {
		slog.Warn("cannot keep the memory of the PIN out of core files", "error", err)
	}
	return &Secret{memory: memory}, nil
}

// Bytes returns the memory of the PIN. It must not be used after Clear.
func (s *Secret) Bytes() []byte {
	if s == nil {
		return nil
	}
	return s.memory[:s.length:s.length]
}

// Clear overwrites the PIN and unmaps its memory.
func (s *Secret) Clear() {
	if s == nil || s.memory == nil {
		return
	}
	clear(s.memory)
	_ = unix.Munmap(s.memory) // this unlocks it
	s.memory, s.length = nil, 0
}

// readFrom appends what r returns, up to limit+1 bytes in all.
func (s *Secret) readFrom(r io.Reader) error {
	for s.length < len(s.memory) {
		n, err := r.Read(s.memory[s.length:])
		s.length += n
		if err != nil {
			if err == io.EOF { //nolint:errorlint // io.Reader returns it unwrapped
				return nil
			}
			return err
		}
	}
	return nil
}

// cutLine makes the first line of what was read the PIN, and overwrites the rest. source names where it comes from, for
// errors.
func (s *Secret) cutLine(source string) error {
	if s.length > limit {
		return tooLong(source)
	}
	line, _, _ := bytes.Cut(s.memory[:s.length], []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	clear(s.memory[len(line):s.length])
	if s.length = len(line); s.length == 0 {
		return unreadable("the first line of %s is empty", source).WithHint("write the PIN into the first line")
	}
	return nil
}

func tooLong(source string) error {
	return unreadable("%s has more than %d bytes", source, limit).WithHint("it must hold the PIN only")
}
