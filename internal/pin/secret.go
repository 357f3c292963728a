package pin

import (
	"bytes"
	"io"
	"log/slog"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// limit is the length of the longest PIN, in bytes, with all that may stand after its line; no token takes a PIN near
// this long.
const limit = 4096

// Secret is a PIN in memory of its own: outside of Go's heap, so that nothing copies it when it moves or grows things,
// locked, so that it is never written to swap space, and in no core file. The nil Secret is an empty PIN.
type Secret struct {
	memory []byte // limit+1 bytes, so that one that is too long is seen
	length int
}

// newSecret makes an empty one. Locking its memory is tried; most systems allow a user more than these two pages.
func newSecret() (*Secret, error) {
	memory, err := unix.Mmap(-1, 0, limit+1, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return nil, failure.New(failure.Internal, "no memory for the PIN: %w", err).WithHint("free some memory")
	}
	if err := unix.Mlock(memory); err != nil {
		slog.Warn("the PIN's memory cannot be locked", "error", err)
	}
	if err := unix.Madvise(memory, unix.MADV_DONTDUMP); err != nil {
		slog.Warn("the PIN's memory cannot be kept out of core files", "error", err)
	}
	return &Secret{memory: memory}, nil
}

// Bytes returns the PIN itself, until Clear.
func (s *Secret) Bytes() []byte {
	if s == nil {
		return nil
	}
	return s.memory[:s.length:s.length]
}

// Clear overwrites the PIN and gives its memory back. What Bytes returned must not be used afterwards.
func (s *Secret) Clear() {
	if s == nil || s.memory == nil {
		return
	}
	clear(s.memory)
	_ = unix.Munmap(s.memory) // which unlocks it
	s.memory, s.length = nil, 0
}

// readFrom appends what a file has until its end, as far as there is room.
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

// firstLine makes the first line of what was read the PIN, and overwrites the rest.
func (s *Secret) firstLine(from string) error {
	if s.length > limit {
		return failure.New(failure.Denied, "no PIN: %s gives more than %d bytes",
			from, limit).
			WithHint("it should hold the PIN and nothing else")
	}
	line, _, _ := bytes.Cut(s.memory[:s.length], []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	clear(s.memory[len(line):s.length])
	if s.length = len(line); s.length == 0 {
		return failure.New(failure.Denied, "no PIN: %s gives an empty first line",
			from).
			WithHint("it should hold the PIN in its first line")
	}
	return nil
}
