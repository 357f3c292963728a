package dockercli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// ExitError is the end of docker with another exit code than 0. Docker has told its reason on standard error.
type ExitError struct{ Code int }

func (e *ExitError) Error() string { return fmt.Sprintf("docker ended with exit code %d", e.Code) }

// forwarded are the signals that a person or a service manager sends. The last three are the terminal's.
var forwarded = []os.Signal{unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGINT, unix.SIGQUIT, unix.SIGHUP}

// execute runs docker with the standard streams of this process, and waits for its end. Signals are forwarded to
// docker, which forwards them to the container. When ctx ends, docker gets a SIGTERM. The error is an ExitError if
// docker ran.
func (d Docker) execute(ctx context.Context, args ...string) error {
	// It gets a SIGTERM when ctx ends, instead of being killed.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), d.program, slices.Concat(d.options, args)...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signals := make(chan os.Signal, 16)
	signal.Notify(signals, forwarded...)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return failure.New(failure.FileKind(err), "cannot run docker: %w", err).WithHint("install Docker's command line")
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	interrupted := ctx.Done()
	for {
		select {
		case err := <-ended:
			return exitError(err)
		case s := <-signals:
			if !fromTerminal(s) {
				_ = cmd.Process.Signal(s) // it fails if docker has just ended
			}
		case <-interrupted:
			_ = cmd.Process.Signal(unix.SIGTERM)
			interrupted = nil
		}
	}
}

// exitError returns the exit code of an ended program as shells do: 128 and the signal's number for one that a signal
// has ended.
func exitError(err error) error {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return err
	}
	if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return &ExitError{128 + int(status.Signal())}
	}
	return &ExitError{exit.ExitCode()}
}

// fromTerminal reports whether a signal is one that docker has got as well: the terminal sends its signals to all
// processes of the foreground group.
func fromTerminal(s os.Signal) bool {
	if s != unix.SIGINT && s != unix.SIGQUIT && s != unix.SIGHUP {
		return false
	}
	terminal, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer terminal.Close()
	group, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPGRP) //nolint:gosec // a descriptor fits
	return err == nil && group == unix.Getpgrp()
}

// pluginSocket is the variable with the socket by which docker tells a plugin that docker itself was interrupted: it
// closes the connection.
const pluginSocket = "DOCKER_CLI_PLUGIN_SOCKET"

// Interruptible returns a context that ends when docker, which has started this process, is interrupted. Docker does
// not forward the signals that it gets.
func Interruptible(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	var dialer net.Dialer
	connection, err := dialer.DialContext(ctx, "unix", os.Getenv(pluginSocket))
	if err != nil { // started by hand, or by a docker without the socket
		return ctx, cancel
	}
	go func() {
		_, _ = io.Copy(io.Discard, connection)
		cancel()
	}()
	return ctx, func() { cancel(); connection.Close() }
}
