package softhsmtest

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Service is a program that runs beside a test and ends with it.
type Service struct {
	cancel  context.CancelFunc
	process *os.Process
	Output  Output        // of both streams; complete when ended is closed
	Ended   chan struct{} // closed when the program has ended

	succeeded bool
}

// Output is what a program has printed until now.
type Output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write adds to the output.
func (o *Output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

// String returns the output.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// Start starts a program with the environment of the test.
func Start(t testing.TB, name string, args ...string) *Service {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s := &Service{cancel: cancel, Ended: make(chan struct{})}
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = Environ(t)
	cmd.Stdout, cmd.Stderr = &s.Output, &s.Output
	// so that it can put away sockets and shared memory
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = time.Minute // then it is killed
	if err := cmd.Start(); err != nil {
		cancel()
		t.Fatal(err)
	}
	s.process = cmd.Process
	go func() {
		s.succeeded = cmd.Wait() == nil
		close(s.Ended)
	}()
	t.Cleanup(func() { s.Stop() })
	return s
}

// Ready waits until a condition holds. It returns false when the program has ended before.
func (s *Service) Ready(condition func() bool) bool {
	for {
		select {
		case <-s.Ended:
			return false
		case <-time.After(10 * time.Millisecond):
		}
		if condition() {
			return true
		}
	}
}

// Signal sends the program a signal.
func (s *Service) Signal(t testing.TB, signal syscall.Signal) {
	t.Helper()
	if err := s.process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// PID returns the number of the program's process.
func (s *Service) PID() int { return s.process.Pid }

// Stop ends the program and returns its output.
func (s *Service) Stop() string {
	s.cancel()
	<-s.Ended
	return s.Output.String()
}

// Succeeded waits for the end of the program, and returns whether its exit code was 0.
func (s *Service) Succeeded() bool {
	<-s.Ended
	return s.succeeded
}

// FreeAddresses are loopback addresses that nobody listened on a moment ago.
func FreeAddresses(t testing.TB, count int) (addresses []string) {
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
