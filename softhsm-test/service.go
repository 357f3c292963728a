package softhsmtest

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// A service is a program that runs beside a test and ends with it.
type service struct {
	cancel  context.CancelFunc
	process *os.Process
	output  bytes.Buffer  // of both streams; complete when ended is closed
	ended   chan struct{} // closed when the program has ended
}

func start(t testing.TB, name string, args ...string) *service {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &service{cancel: cancel, ended: make(chan struct{})}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &s.output, &s.output
	// so that it can put away sockets and shared memory
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second // then it is killed
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	s.process = cmd.Process
	go func() {
		_ = cmd.Wait()
		close(s.ended)
	}()
	t.Cleanup(func() { s.stop() })
	return s
}

// ready waits until a condition holds, and returns whether it does: not when the program has ended, nor when it takes
// too long.
func (s *service) ready(condition func() bool) bool {
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); {
		select {
		case <-s.ended:
			return false
		case <-time.After(10 * time.Millisecond):
		}
		if condition() {
			return true
		}
	}
	return false
}

func (s *service) signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if err := s.process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// stop ends the program and returns what it has said.
func (s *service) stop() string {
	s.cancel()
	<-s.ended
	return s.output.String()
}

// freeAddresses are loopback addresses that nobody listened on a moment ago.
func freeAddresses(t testing.TB, count int) (addresses []string) {
	t.Helper()
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		addresses = append(addresses, listener.Addr().String())
	}
	return addresses
}
