package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/peercred"
)

// maxPath is how many bytes the path of a socket has at most (sun_path of unix(7), without the zero byte).
const maxPath = 107

// ownFolder names no folder to change the mode or the owner of: others may need it, such as / and /tmp, or the runtime
// directory of the user who became root by su.
const ownFolder = "use --socket with a path in a folder of its own: mode 0700 or not there yet, below folders " +
	"that only you or root can change"

// A Socket is the path that an agent listens to. The agent that holds its lock has it alone.
type Socket struct {
	Path string
	lock *os.File
}

// Reserve locks the path of a socket. It creates the folder if there is none, with mode 0700. It fails with Conflict
// when an agent listens there or the path is not a socket, and with Denied for a folder that is a link or that others
// can enter or change.
func Reserve(path string) (*Socket, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot find the socket: %w", err).WithHint("name it by its full path")
	}
	if err := checkPath(path); err != nil {
		return nil, err
	}
	created := os.Mkdir(filepath.Dir(path), 0o700)
	if err := created; err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, failure.New(failure.FileKind(err), "cannot create the folder of the socket: %w", err).
			WithHint("create the folders above it, or name another path with --socket")
	}
	if err := checkFolder(filepath.Dir(path)); err != nil {
		if created == nil { // it would stand in the way of whose folder this is
			_ = os.Remove(filepath.Dir(path))
		}
		return nil, err
	}
	s := &Socket{Path: path}
	if err := s.takeLock(); err != nil {
		return nil, err
	}
	if err := s.removeStale(); err != nil {
		s.Release()
		return nil, err
	}
	return s, nil
}

func checkPath(path string) error {
	if len(path) <= maxPath {
		return nil
	}
	return failure.New(failure.Invalid, "the path of the socket has %d bytes, and a socket's has %d at most: %s",
		len(path), maxPath, path).WithHint("name a shorter path with --socket")
}

// checkFolder verifies that this user and root alone can enter and change the folder of a socket.
func checkFolder(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot use the folder of the socket: %w", err).
			WithHint("create it with mode 0700")
	}
	if !info.IsDir() {
		return failure.New(failure.Denied, "cannot use %s for a socket: it is a symbolic link or a file, not a folder", dir).
			WithHint("name a socket in a folder of your own with --socket")
	}
	if err := ownership.Check(dir, os.Geteuid()); err != nil {
		return failure.New(failure.Denied, "cannot use %s for a socket: %w", dir, failure.From(err)).WithHint(ownFolder)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return failure.New(failure.Denied, "cannot use %s for a socket: others can enter it (mode %04o)", dir, mode).
			WithHint(ownFolder)
	}
	return nil
}

// takeLock takes the lock of the path, a file beside it that stays. The kernel drops the lock of a process that ends.
func (s *Socket) takeLock() error {
	const flags = os.O_CREATE | os.O_RDWR | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	file, err := os.OpenFile(s.Path+".lock", flags, 0o600)
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot lock the socket: %w", err).
			WithHint("check what is at this path, or name another socket with --socket")
	}
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil { //nolint:gosec // a descriptor fits
		file.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return s.taken()
		}
		return failure.New(failure.Unsupported, "cannot lock %s: %w", s.Path, err).
			WithHint("name a socket on a local file system")
	}
	s.lock = file
	return nil
}

func (s *Socket) taken() error {
	return failure.New(failure.Conflict, "another agent listens to %s", s.Path).
		WithHint("use it, end it with 'hsm-broker agent stop', or name another socket with --socket")
}

// removeStale removes the socket of an agent that has ended without doing so. Anything else stays.
func (s *Socket) removeStale() error {
	info, err := os.Lstat(s.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		return failure.New(failure.Conflict, "cannot listen to %s: it exists and is not a socket", s.Path).
			WithHint("remove it, or name another socket with --socket")
	}
	if err == nil {
		var conn net.Conn
		var dialer net.Dialer
		if conn, err = dialer.DialContext(context.Background(), "unix", s.Path); err == nil {
			conn.Close()
			return s.taken() // such as the service manager, which starts the agent on demand
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			err = os.Remove(s.Path)
		}
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.FileKind(err), "cannot replace the socket %s: %w", s.Path, err).
			WithHint("remove it, or name another socket with --socket")
	}
	return nil
}

// Release drops the lock.
func (s *Socket) Release() { s.lock.Close() }

// Listen creates the socket, with mode 0600, and listens to it. The listener returns connections of this user's and
// root's processes alone. Close removes the socket, if it is still the same, and drops the lock.
func (s *Socket) Listen() (net.Listener, error) {
	var info fs.FileInfo
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Path, Net: "unix"})
	if err == nil {
		listener.SetUnlinkOnClose(false) // it would remove the socket of another agent, too
		// Until here, the folder alone keeps others away. The umask of a process is that of all its threads.
		if err = os.Chmod(s.Path, 0o600); err == nil {
			info, err = os.Lstat(s.Path)
		}
	}
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot listen to %s: %w", s.Path, err).
			WithHint("name another socket with --socket")
	}
	return &ownListener{UnixListener: listener, ended: func() {
		if now, err := os.Lstat(s.Path); err == nil && os.SameFile(info, now) {
			_ = os.Remove(s.Path)
		}
		s.Release()
	}}, nil
}

// ownListener accepts connections of this user and of root.
type ownListener struct {
	*net.UnixListener
	ended func()
}

// Accept returns the next connection of this user or of root. It closes those of others.
func (l *ownListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if err := checkPeer(conn); err != nil {
			slog.Warn("a connection was closed", "error", err)
			conn.Close()
			continue
		}
		return conn, nil
	}
}

// Close ends the listener. It may be called again.
func (l *ownListener) Close() error {
	err := l.UnixListener.Close()
	if err == nil {
		l.ended()
	}
	return err
}

// checkPeer fails unless the process at the other end belongs to this user or to root.
func checkPeer(conn *net.UnixConn) error {
	peer, err := peercred.Of(conn)
	if err == nil && peer.Uid != 0 && int(peer.Uid) != os.Geteuid() {
		err = fmt.Errorf("user %d is not the agent's user", peer.Uid)
	}
	return err
}
