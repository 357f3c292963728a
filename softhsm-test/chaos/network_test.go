package chaos

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// network is hosts that a bridge connects. It ends with the process, also with one that is killed: nothing names the
// namespaces, and the kernel removes those that nobody uses.
type network struct {
	t      testing.TB
	bridge *host
	hosts  []*host

	mu   sync.Mutex
	cuts map[[2]*host]int // how many faults cut two hosts off from each other
}

// host is a network namespace with an address of its own.
type host struct {
	name, address, mac string

	n     *network
	calls chan func() // run on the thread that is in the namespace
	path  string      // of the namespace
}

// newNetwork makes a bridge.
func newNetwork(t testing.TB) *network {
	t.Helper()
	softhsmtest.NeedRoot(t)
	softhsmtest.Program(t, "ip")
	n := &network{t: t, cuts: map[[2]*host]int{}}
	n.bridge = n.namespace("bridge")
	if n.bridge == nil || n.bridge.ip("link", "add", "br0", "type", "bridge") != nil ||
		n.bridge.ip("link", "set", "br0", "up") != nil {
		softhsmtest.Missing(t, "the right to make network namespaces and bridges")
	}
	return n
}

// namespace makes a namespace and returns it, or nil if that is not permitted. Its thread never leaves it: what it
// starts is in the namespace, and is killed when this process ends.
func (n *network) namespace(name string) *host {
	h := &host{name: name, n: n, calls: make(chan func())}
	made := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		h.path = fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), unix.Gettid())
		made <- err
		for call := range h.calls {
			call()
		}
	}()
	if <-made != nil {
		return nil
	}
	return h
}

// add connects a new host to the bridge. Everyone knows the hardware address of everyone from the start.
func (n *network) add(name string) *host {
	n.t.Helper()
	number := len(n.hosts) + 1
	h := n.namespace(name)
	h.address, h.mac = fmt.Sprintf("192.0.2.%d", number), fmt.Sprintf("02:00:c0:00:02:%02x", number)
	port := fmt.Sprintf("port%d", number)
	all := []error{
		n.bridge.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "address", h.mac, "netns", h.path),
		n.bridge.ip("link", "set", port, "master", "br0", "up"),
		h.ip("link", "set", "lo", "up"),
		h.ip("address", "add", h.address+"/24", "dev", "eth0"),
		h.ip("link", "set", "eth0", "up"),
	}
	for _, other := range n.hosts {
		all = append(all, h.knows(other, other.mac), other.knows(h, h.mac))
	}
	for _, err := range all {
		if err != nil {
			n.t.Fatal(err)
		}
	}
	n.hosts = append(n.hosts, h)
	return h
}

// do runs a function on the thread of the namespace: sockets and processes that it makes are in it.
func (h *host) do(call func()) {
	done := make(chan struct{})
	h.calls <- func() { defer close(done); call() }
	<-done
}

// ip runs the command ip in the namespace.
func (h *host) ip(args ...string) (err error) {
	h.do(func() {
		output, failed := exec.Command("ip", args...).CombinedOutput()
		if failed != nil {
			err = fmt.Errorf("ip %v on %s: %w: %s", args, h.name, failed, output)
		}
	})
	return err
}

// knows has a host send frames for another one to a hardware address.
func (h *host) knows(other *host, mac string) error {
	return h.ip("neigh", "replace", other.address, "lladdr", mac, "dev", "eth0", "nud", "permanent")
}

// nobody is the hardware address of no host.
const nobody = "02:00:00:00:00:01"

// cut has two hosts lose all that they send to each other, until heal: no connection is refused or reset.
func (n *network) cut(a, b *host) { n.change(a, b, 1) }

// heal undoes one cut.
func (n *network) heal(a, b *host) { n.change(a, b, -1) }

func (n *network) change(a, b *host, by int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if a.address > b.address {
		a, b = b, a
	}
	pair := [2]*host{a, b}
	before := n.cuts[pair]
	n.cuts[pair] += by
	if (before > 0) == (n.cuts[pair] > 0) {
		return
	}
	macs := [2]string{a.mac, b.mac}
	if by > 0 {
		macs = [2]string{nobody, nobody}
	}
	for _, err := range []error{a.knows(b, macs[1]), b.knows(a, macs[0])} {
		if err != nil {
			n.t.Error(err)
		}
	}
}

// dial connects from the host. A thread that enters the namespace for it ends with it: connections take long while
// hosts are cut off.
func (h *host) dial(ctx context.Context, network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	dialled := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked
		ns, err := os.Open(h.path)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err != nil {
			dialled <- result{nil, err}
			return
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
		dialled <- result{conn, err}
	}()
	r := <-dialled
	return r.conn, r.err
}

// listen listens on the host until the test ends.
func (h *host) listen(network, address string) net.Listener {
	h.n.t.Helper()
	var l net.Listener
	var err error
	h.do(func() { l, err = net.Listen(network, address) })
	if err != nil {
		h.n.t.Fatal(err)
	}
	h.n.t.Cleanup(func() { l.Close() })
	return l
}

// forward passes each connection of a listener on to one that dial makes, until the listener is closed. Either side's
// end ends the other.
func forward(l net.Listener, dial func(ctx context.Context) (net.Conn, error)) {
	for {
		near, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			far, err := dial(context.Background())
			if err != nil {
				near.Close()
				return
			}
			go func() { _, _ = io.Copy(far, near); far.Close(); near.Close() }()
			_, _ = io.Copy(near, far)
			far.Close()
			near.Close()
		}()
	}
}
