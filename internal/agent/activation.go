package agent

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// inheritedFD is the first descriptor that a service manager hands over (sd_listen_fds(3)).
const inheritedFD = 3

// Inherited returns the listener of the socket that the service manager has made for this process, and its path; nil if
// it has made none. The variables of the protocol are removed, so that no child takes them for its own. It fails for
// anything but one Unix socket in a folder of the user's alone. The socket stays when the listener is closed.
func Inherited() (net.Listener, string, error) {
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID"} {
		_ = os.Unsetenv(name)
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, "", nil
	}
	const hint = "give the socket unit one ListenStream with a path"
	if count != "1" {
		return nil, "", failure.New(failure.Invalid, "the service manager handed over %q sockets, not one", count).
			WithHint(hint)
	}
	unix.CloseOnExec(inheritedFD)
	file := os.NewFile(inheritedFD, "inherited")
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, "", failure.New(failure.Invalid, "cannot listen to the socket of the service manager: %w", err).
			WithHint(hint)
	}
	own, ok := listener.(*net.UnixListener)
	if !ok || !filepath.IsAbs(own.Addr().String()) { // the name of an abstract socket begins with @
		listener.Close()
		return nil, "", failure.New(failure.Invalid, "the service manager handed over a socket without a path: %s",
			listener.Addr()).WithHint(hint)
	}
	own.SetUnlinkOnClose(false)
	path := own.Addr().String()
	if err := checkFolder(filepath.Dir(path)); err != nil {
		listener.Close()
		return nil, "", err
	}
	return &ownListener{UnixListener: own, ended: func() {}}, path, nil
}

// A Notifier tells the service manager the state of the process (sd_notify(3)).
type Notifier struct{ socket string }

// NewNotifier returns a Notifier, which tells nobody if there is no service manager. The variable of the protocol is
// removed, so that no child speaks for this process.
func NewNotifier() Notifier {
	n := Notifier{os.Getenv("NOTIFY_SOCKET")}
	_ = os.Unsetenv("NOTIFY_SOCKET")
	return n
}

// Notify sends a state, such as "READY=1". A failure is logged only.
func (n Notifier) Notify(state string) {
	if n.socket == "" {
		return
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: n.socket, Net: "unixgram"})
	if err == nil {
		_, err = conn.Write([]byte(state))
		conn.Close()
	}
	if err != nil {
		slog.Warn("cannot notify the service manager", "state", state, "error", err)
	}
}
