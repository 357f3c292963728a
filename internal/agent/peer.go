package agent

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"

	"github.com/notation-hsm/notation-hsm/internal/peercred"
)

// peer is the process that made a connection. It can have ended since, and a process can run any program under the name
// of another. So a peer tells a person who asks, and decides nothing about a key.
type peer struct {
	pid        int32
	uid        uint32
	executable string // "" if it cannot be read
}

// peerOf returns the process that connected to a Unix socket, and an empty peer for another connection.
func peerOf(conn net.Conn) (p peer) {
	socket, ok := conn.(syscall.Conn)
	if !ok {
		return p
	}
	found, err := peercred.Of(socket)
	if err != nil {
		return p
	}
	p.pid, p.uid = found.Pid, found.Uid
	p.executable, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
	return p
}

// key returns the key by which the requests and connections of a process are counted.
func (p peer) key() string { return strconv.Itoa(int(p.pid)) }

type peerKey struct{}

// peerIn returns the process that made a request; an empty peer if it came by no connection, as in tests of a handler.
func peerIn(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}
