package replicas

import (
	"io"
	"net"
	"sync/atomic"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// balancer is a load balancer before replicas: it forwards connections to the replica that the test chooses.
type balancer struct {
	listener net.Listener
	to       atomic.Pointer[softhsmtest.TeamBroker]
}

func newBalancer(t testing.TB) *balancer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it ends with the test
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go b.forward(client)
		}
	}()
	return b
}

// url returns the URL by which callers reach the replicas.
func (b *balancer) url() string { return "https://" + b.listener.Addr().String() }

// forward copies a connection in both directions.
func (b *balancer) forward(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", b.to.Load().Address()) //nolint:noctx // it ends with the client
	if err != nil {
		return
	}
	defer server.Close()
	go func() {
		defer client.Close()
		defer server.Close()
		_, _ = io.Copy(client, server)
	}()
	_, _ = io.Copy(server, client)
}
