package worker

import (
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/crashreport"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/harden"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/stdio"
)

// argument is the first argument of the process of a module. The second is the module's path, for those who list
// processes.
const argument = "pkcs11-worker"

// The descriptors that the process of a module inherits: the socket for PINs, the shared connection, and the lanes.
const (
	pinsFD = 3 + iota
	sharedFD
)

// Main serves a keystore's parent process with the backend that open returns, and ends the process, if a Backend
// started it for that. Else it returns at once. A program whose keystore has a Backend calls it before anything else.
func Main(open func() keystore.Backend) {
	if len(os.Args) < 2 || os.Args[1] != argument {
		return
	}
	if err := serveParent(open); err != nil {
		slog.Error("serving the parent process", "error", err)
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// serveParent prepares the process for a module, and serves.
func serveParent(open func() keystore.Backend) error {
	shared, others, err := inherit()
	if err != nil {
		return err
	}
	// A thread for each lane that returns from the module goes on at once, beside one that waits for the network.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), lanes+2))
	debug.SetGCPercent(400) // the heap is small, and each signature leaves some garbage
	log, err := config.OpenLog()
	if err != nil {
		return err
	}
	if err := stdio.Redirect(log); err != nil {
		return err
	}
	if err := harden.Memory(); err != nil {
		return err
	}
	crashreport.SetFormat(func(err error) []byte { return []byte(err.Error() + "\n") })
	// The kernel sends SIGTERM when the parent ends, which closes the connection, too.
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGTERM)
	go func() {
		<-ended
		_ = shared.conn.CloseRead()
	}()
	return serve(shared, others, pinSocket(pinsFD), open())
}

// inherit returns the shared connection to the parent and the lanes.
func inherit() (shared *lane, others []*servedLane, err error) {
	for fd := pinsFD; fd <= sharedFD+lanes; fd++ {
		if err := checkSocket(fd); err != nil {
			return nil, nil, err
		}
		unix.CloseOnExec(fd)
	}
	if shared, err = newLane(os.NewFile(sharedFD, "parent")); err != nil {
		return nil, nil, err
	}
	for fd := sharedFD + 1; fd <= sharedFD+lanes; fd++ {
		l, err := newServedLane(fd)
		if err != nil {
			return nil, nil, err
		}
		others = append(others, l)
	}
	return shared, others, nil
}

// checkSocket verifies that a descriptor is a socket whose other end the parent process made.
func checkSocket(fd int) error {
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || int(peer.Pid) != os.Getppid() || int(peer.Uid) != os.Geteuid() {
		return failure.New(failure.Invalid, "%s is not a command: it is started by a process that uses a PKCS#11 module",
			argument)
	}
	return nil
}
