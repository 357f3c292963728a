package remote

import (
	"context"
	"net"
	"net/http"
	"os"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/peercred"
)

// newTransport returns a transport whose connections all go to the socket at path.
func newTransport(path string) *http.Transport {
	return &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
		MaxIdleConnsPerHost: 64, MaxResponseHeaderBytes: headerLimit, DisableCompression: true,
	}
}

// dial connects to a socket that a process of this user or of root listens to. Another user's broker would learn what
// is signed, and decide what it is signed with. Who can write to the folder of the socket, or to a symbolic link on the
// way to it, decides which process answers, so that process is asked for its user, and not the file for its owner.
func dial(ctx context.Context, path string) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, err
	}
	if err := checkPeer(conn.(*net.UnixConn), path, os.Geteuid()); err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// checkPeer fails with Denied unless the process that listens to a socket is a user's or root's.
func checkPeer(conn *net.UnixConn, path string, user int) error {
	peer, err := peercred.Of(conn)
	if err != nil {
		return err
	}
	if peer.Uid != 0 && int(peer.Uid) != user {
		return failure.New(failure.Denied, "cannot use the broker at %s: another user (uid %d) runs it", path, peer.Uid).
			WithHint("set NOTATION_HSM_BROKER to the socket of your own agent")
	}
	return nil
}
