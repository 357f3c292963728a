package agent

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// The environment variables of ssh(1) for programs that ask.
const (
	askpassVariable = "SSH_ASKPASS"
	requireVariable = "SSH_ASKPASS_REQUIRE"
	promptVariable  = "SSH_ASKPASS_PROMPT"
)

// chooseAsker returns how to ask, as ssh-agent would ask.
func chooseAsker(environ []string) (func(context.Context, string) (bool, error), error) {
	program, require := os.Getenv(askpassVariable), os.Getenv(requireVariable)
	byProgram := func(ctx context.Context, question string) (bool, error) {
		return askProgram(ctx, program, question, environ)
	}
	switch {
	case require == "force" || program != "" && require == "prefer":
		if program == "" {
			return nil, failure.New(failure.Invalid, "cannot ask for confirmations: %s is force, and %s is not set",
				requireVariable, askpassVariable).WithHint("set " + askpassVariable + " to a program that asks")
		}
		return byProgram, nil
	case onTerminal():
		return askTerminal, nil
	case program != "" && require != "never":
		return byProgram, nil
	}
	return nil, failure.New(failure.Unavailable, "cannot ask for confirmations: there is no terminal").
		WithHint("start the agent in a terminal, or set " + askpassVariable + " to a program that asks")
}

// onTerminal reports whether this process can read its terminal: a job in the background would be stopped.
func onTerminal() bool {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer tty.Close()
	return inForeground(tty) == nil
}

// inForeground fails if another job has the terminal.
func inForeground(tty *os.File) error {
	raw, err := tty.SyscallConn()
	if err != nil {
		return err
	}
	var group int
	var failed error
	if err := raw.Control(func(fd uintptr) { group, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) }); err != nil {
		return err
	}
	if failed == nil && group != unix.Getpgrp() {
		failed = errors.New("the agent is in the background of its terminal")
	}
	return failed
}

// askTerminal asks on the terminal of the process.
func askTerminal(ctx context.Context, question string) (bool, error) {
	release, err := pin.HoldTerminal(ctx) // the PIN may be asked for
	if err != nil {
		return false, err
	}
	defer release()
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return false, err
	}
	defer tty.Close()
	if err := inForeground(tty); err != nil {
		return false, err
	}
	return askOn(ctx, tty, question)
}

// askOn asks on a terminal. Only a line with yes, typed after the question, is a yes.
func askOn(ctx context.Context, tty *os.File, question string) (bool, error) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return false, err
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlSetInt(int(fd), unix.TCFLSH, unix.TCIFLUSH) })
	if err = errors.Join(err, failed); err != nil {
		return false, err
	}
	fmt.Fprintf(tty, "\n%sType yes to allow it: ", question)
	stop := context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := bufio.NewReader(io.LimitReader(tty, 1024)).ReadString('\n')
	if ctx.Err() != nil {
		fmt.Fprintln(tty, "\nNo longer asked.")
		return false, ctx.Err()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	return strings.TrimSpace(line) == "yes", nil
}

// askProgram asks by a program of the kind that ssh-agent runs: it gets the question as its argument, and ends with 0
// for yes.
func askProgram(ctx context.Context, program, question string, environ []string) (bool, error) {
	cmd := exec.CommandContext(ctx, program, question) //nolint:gosec // the program is the user's own
	cmd.Env = append(slices.Clip(environ), promptVariable+"=confirm")
	cmd.WaitDelay = time.Second // a child of the program may hold no pipe for longer
	err := cmd.Run()
	var ended *exec.ExitError
	if errors.As(err, &ended) {
		return false, nil
	}
	return err == nil, err
}
