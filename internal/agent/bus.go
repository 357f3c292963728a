package agent

import (
	"context"
	"errors"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"

	"github.com/godbus/dbus/v5"
)

// defaultBus is the address of the system bus, unless DBUS_SYSTEM_BUS_ADDRESS names another.
const defaultBus = "unix:path=/var/run/dbus/system_bus_socket"

// connectBus connects to the system bus. The connection takes no file descriptors: whoever is on the bus may send a
// signal with descriptors, which would stay open here.
func connectBus(ctx context.Context, signals *signals) (*dbus.Conn, error) {
	socket, err := busSocket(os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"))
	if err != nil {
		return nil, err
	}
	var dialer net.Dialer
	stream, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	conn, err := dbus.NewConn(stream, dbus.WithContext(ctx), dbus.WithSignalHandler(signals))
	if err != nil {
		stream.Close()
		return nil, err
	}
	if err = conn.Auth(nil); err == nil {
		err = conn.Hello()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// busSocket returns the Unix socket of a bus by its address, "" for that of the system. It fails for another transport.
func busSocket(address string) (string, error) {
	if address == "" {
		address = defaultBus
	}
	first, _, _ := strings.Cut(address, ";")
	for part := range strings.SplitSeq(strings.TrimPrefix(first, "unix:"), ",") {
		name, value, _ := strings.Cut(part, "=")
		value, err := url.PathUnescape(value)
		switch {
		case err != nil || !strings.HasPrefix(first, "unix:"):
		case name == "path":
			return value, nil
		case name == "abstract":
			return "@" + value, nil
		}
	}
	return "", errors.New("the address of the system bus is not that of a Unix socket")
}

// signals are those that logind has sent. Whoever is on the bus may send signals to the agent, as many as they want:
// those of others are dropped as soon as they are read, so that they neither take memory nor keep out those of logind.
type signals struct {
	received chan *dbus.Signal
	lost     chan struct{} // has a value when there was no place in received
	ended    chan struct{} // is closed with the connection

	mu    sync.Mutex
	owner string // the connection of logind; "" if it has none
}

func newSignals() *signals {
	return &signals{received: make(chan *dbus.Signal, 64), lost: make(chan struct{}, 1), ended: make(chan struct{})}
}

// findOwner asks the bus for the connection of logind.
func (s *signals) findOwner(ctx context.Context, conn *dbus.Conn) {
	var owner string
	if conn.BusObject().CallWithContext(ctx, busName+".GetNameOwner", 0, logindName).Store(&owner) == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.owner = owner
	}
}

// DeliverSignal takes a signal from the connection, which reads nothing meanwhile.
func (s *signals) DeliverSignal(_, _ string, signal *dbus.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if signal.Sender == busName && signal.Name == busName+".NameOwnerChanged" {
		var name, before, owner string
		if dbus.Store(signal.Body, &name, &before, &owner) == nil && name == logindName {
			s.owner = owner
		}
		return
	}
	if s.owner == "" || signal.Sender != s.owner {
		return
	}
	select {
	case s.received <- signal:
	default:
		select {
		case s.lost <- struct{}{}:
		default:
		}
	}
}

// Terminate notes the end of the connection.
func (s *signals) Terminate() { close(s.ended) }
