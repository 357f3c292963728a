package worker

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// lanes is how many uses of keys have a connection of their own at once: as many as there are sessions.
const lanes = 16

// A lane is a connection for one use of a key at a time. The goroutine that writes the call reads its answer, and on
// the other side the one that reads the call runs it. So a signature wakes one thread on each side, which is most of
// what it costs to use a module in another process. Calls beyond the lanes, and all that is not a use of a key, share
// one connection.
type lane struct {
	conn    *net.UnixConn
	in      *bufio.Reader
	out     *sender
	number  uint64
	started bool // the other side has a goroutine for it
}

// newLane returns a lane of a socket, which it closes.
func newLane(file *os.File) (*lane, error) {
	defer file.Close()
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, err
	}
	l := &lane{conn: conn.(*net.UnixConn)} // the only kind that a Unix socket has
	if l.in, err = newReceiver(l.conn); err == nil {
		l.out, err = newSender(l.conn)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return l, nil
}

// A servedLane is the other side of a lane. Its goroutine waits in the system call itself: a thread that Go's scheduler
// wakes would wait for others that are in the module.
type servedLane struct {
	fd int
	in *bufio.Reader
	mu sync.Mutex // is held by the one who writes
}

func newServedLane(fd int) (*servedLane, error) {
	l := &servedLane{fd: fd}
	l.in = bufio.NewReader(l)
	return l, unix.SetNonblock(fd, false)
}

// Read waits for bytes.
func (l *servedLane) Read(p []byte) (int, error) {
	for {
		n, err := unix.Read(l.fd, p)
		switch {
		case err == unix.EINTR: //nolint:errorlint // a system call's error is a number
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// send writes a frame.
func (l *servedLane) send(number uint64, k kind, parts ...[]byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	batch := appendFrame(nil, number, k, parts...)
	if len(batch) > frameLimit {
		return fmt.Errorf("%w: %d bytes are more than %d", errFrame, len(batch), frameLimit)
	}
	n, _ := transfer(unix.SYS_SENDTO, uintptr(l.fd), batch, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	for batch = batch[max(n, 0):]; len(batch) > 0; batch = batch[n:] {
		var err error
		if n, err = unix.Write(l.fd, batch); err != nil && err != unix.EINTR { //nolint:errorlint // as above
			return err
		}
		n = max(n, 0)
	}
	return nil
}

// serveLane runs the calls of a lane until the parent or close ends it.
func (s *server) serveLane(ctx context.Context, l *servedLane) {
	for {
		f, err := readFrame(l.in)
		if err != nil || f.kind >= operations {
			return
		}
		s.begin(ctx, f, l).run()
	}
}

// closeLanes ends the lanes' goroutines when they have answered.
func (s *server) closeLanes() {
	for _, l := range s.lanes {
		_ = unix.Shutdown(l.fd, unix.SHUT_RD)
	}
}
