package peercred_test

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/peercred"
)

// TestOf reads this process from both ends of a socket, and fails for a socket that is none or closed.
func TestOf(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	client, err := net.Dial("unix", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	for _, conn := range []net.Conn{client, server} {
		peer, err := peercred.Of(conn.(*net.UnixConn))
		if err != nil || int(peer.Pid) != os.Getpid() || int(peer.Uid) != os.Geteuid() || int(peer.Gid) != os.Getegid() {
			t.Errorf("%+v, %v", peer, err)
		}
		conn.Close()
		if _, err := peercred.Of(conn.(*net.UnixConn)); err == nil {
			t.Error("a closed socket has a peer")
		}
	}
	if file, err := os.Open(os.DevNull); err != nil {
		t.Fatal(err)
	} else if _, err := peercred.Of(file); err == nil {
		t.Error("a file has a peer")
	}
}
