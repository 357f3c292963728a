package worker

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A frame is a length of 4 bytes, which counts what follows it, then the number of a call in 8 bytes, a kind in one,
// and the body. Numbers are big-endian.
type frame struct {
	call uint64
	kind kind
	body []byte
}

const (
	headSize    = 4 + 8 + 1
	frameLimit  = 32 << 20 // bytes after the length; a list of 65,536 keys has less
	queueLimit  = 2 * frameLimit
	readBuffer  = 64 << 10
	keptBuffer  = 256 << 10 // a larger write buffer is released after use
	growthLimit = 1 << 20   // a body is read in pieces of this size, so that a claimed length alone takes no memory
)

var errFrame = errors.New("invalid frame")

// readFrame reads one frame. It returns io.EOF at the end of the stream between two frames, and errFrame for a length
// that no frame has.
func readFrame(r io.Reader) (frame, error) {
	var head [headSize]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, err
	}
	length := binary.BigEndian.Uint32(head[:])
	if length < headSize-4 || length > frameLimit {
		return frame{}, fmt.Errorf("%w: its length is %d", errFrame, length)
	}
	f := frame{call: binary.BigEndian.Uint64(head[4:]), kind: kind(head[12])}
	for left := int(length) - (headSize - 4); left > 0; {
		n, start := min(left, growthLimit), len(f.body)
		f.body = append(f.body, make([]byte, n)...)
		if _, err := io.ReadFull(r, f.body[start:]); err != nil {
			return frame{}, fmt.Errorf("%w: %w", errFrame, io.ErrUnexpectedEOF)
		}
		left -= n
	}
	return f, nil
}

// appendFrame appends a frame whose body is in parts.
func appendFrame(to []byte, call uint64, k kind, parts ...[]byte) []byte {
	length := headSize - 4
	for _, part := range parts {
		length += len(part)
	}
	to = binary.BigEndian.AppendUint32(to, uint32(length)) //nolint:gosec // send has checked it
	to = binary.BigEndian.AppendUint64(to, call)
	to = append(to, byte(k))
	for _, part := range parts {
		to = append(to, part...)
	}
	return to
}

// A sender writes frames to a connection for many goroutines. Frames that are sent while another is being written are
// written together, by the goroutine that writes already. send never waits for the receiver.
type sender struct {
	raw interface {
		Write(func(uintptr) bool) error
	}
	conn io.Writer

	mu      sync.Mutex
	queue   []byte
	spare   []byte
	writing bool
	err     error
}

func newSender(conn *net.UnixConn) (*sender, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &sender{raw: raw, conn: conn}, nil
}

// send queues a frame and writes what the connection takes at once; a goroutine writes the rest. It returns the error
// of an earlier write, or one for a body or a queue that is too long.
func (s *sender) send(call uint64, k kind, parts ...[]byte) error {
	length := headSize
	for _, part := range parts {
		length += len(part)
	}
	if length > frameLimit {
		return fmt.Errorf("%w: %d bytes are more than %d", errFrame, length, frameLimit)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if len(s.queue)+length > queueLimit {
		return errors.New("the receiver reads nothing")
	}
	s.queue = appendFrame(s.queue, call, k, parts...)
	if s.writing {
		return nil
	}
	s.writing = true
	for len(s.queue) > 0 && s.err == nil {
		batch := s.take()
		s.mu.Unlock()
		rest, err := s.writeNow(batch)
		if len(rest) > 0 && err == nil {
			go s.writeRest(batch, rest)
			s.mu.Lock()
			return nil
		}
		s.mu.Lock()
		s.finish(batch, err)
	}
	s.writing = false
	return s.err
}

// take returns what is queued. The caller holds the lock.
func (s *sender) take() []byte {
	batch := s.queue
	s.queue, s.spare = s.spare[:0], nil
	return batch
}

// finish keeps the memory of a batch for the next and the error of its write. The caller holds the lock.
func (s *sender) finish(batch []byte, err error) {
	if cap(batch) <= keptBuffer {
		s.spare = batch[:0]
	}
	if err != nil {
		s.err, s.queue = err, nil
	}
}

// writeNow writes as much of a batch as the connection takes without waiting, and returns the rest.
func (s *sender) writeNow(batch []byte) (rest []byte, err error) {
	outer := s.raw.Write(func(fd uintptr) bool {
		for len(batch) > 0 {
			n, failed := transfer(unix.SYS_SENDTO, fd, batch, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if failed == unix.EAGAIN {
				return true
			}
			if failed != 0 {
				err = failed
				return true
			}
			batch = batch[n:]
		}
		return true
	})
	if err == nil {
		err = outer
	}
	return batch, err
}

// writeRest writes the rest of a batch and all that is queued meanwhile, waiting for the receiver.
func (s *sender) writeRest(batch, rest []byte) {
	_, err := s.conn.Write(rest)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.finish(batch, err)
	for len(s.queue) > 0 && s.err == nil {
		batch := s.take()
		s.mu.Unlock()
		_, err := s.conn.Write(batch)
		s.mu.Lock()
		s.finish(batch, err)
	}
	s.writing = false
}

// A receiver reads from a connection.
type receiver struct{ raw syscall.RawConn }

func newReceiver(conn *net.UnixConn) (*bufio.Reader, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	return bufio.NewReaderSize(receiver{raw}, readBuffer), nil
}

// Read reads what there is, and waits if there is nothing.
func (r receiver) Read(p []byte) (n int, err error) {
	outer := r.raw.Read(func(fd uintptr) bool {
		var failed syscall.Errno
		n, failed = transfer(unix.SYS_RECVFROM, fd, p, unix.MSG_DONTWAIT)
		if failed != 0 && failed != unix.EAGAIN {
			err = failed
		}
		return failed != unix.EAGAIN
	})
	switch {
	case outer != nil:
		return 0, outer
	case err != nil:
		return 0, err
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// transfer sends or receives without waiting, as the flags have it. Go's scheduler is not told of it,
// which would wake its monitor thread for each frame of a process that is idle between two.
func transfer(call, fd uintptr, p []byte, flags uintptr) (int, syscall.Errno) {
	for {
		//nolint:gosec // a system call takes a pointer
		n, _, failed := syscall.RawSyscall6(
			call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), flags, 0, 0)
		if failed != unix.EINTR {
			return int(n), failed
		}
	}
}
