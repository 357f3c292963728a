package pin

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// terminal is held by the one who asks on the terminal of the process. Two questions at once would take each other's
// answers, and the first that ends would have the terminal show the PIN that the other one asks for.
var terminal = make(chan struct{}, 1)

// HoldTerminal waits until nobody asks on the terminal of the process, and keeps others from asking until release. It
// fails with the cause of ctx if ctx ends before.
func HoldTerminal(ctx context.Context) (release func(), err error) {
	select {
	case terminal <- struct{}{}:
		return func() { <-terminal }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// readTerminal asks for the PIN on the terminal of the process, also when standard input and output are Notation's
// pipes. The terminal writes the line, which it does not show, straight into the memory of the secret.
func (s *Secret) readTerminal(ctx context.Context, token string) error {
	const hint = "start the program that logs in from a terminal, or use another pin-source"
	release, err := HoldTerminal(ctx)
	if err != nil {
		return unreadable("interrupted").WithHint("run it again")
	}
	defer release()
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return unreadable("there is no terminal: %w", err).WithHint(hint)
	}
	defer tty.Close()
	if inBackground(tty) {
		return unreadable("another program has the terminal").
			WithHint("bring the program that logs in to the foreground (fg), or use another pin-source")
	}
	restore, err := hideInput(tty)
	if err != nil {
		return unreadable("there is no terminal: %w", err).WithHint(hint)
	}
	defer fmt.Fprintln(tty)
	defer restore()
	fmt.Fprintf(tty, "PIN for token %q: ", token)
	stop := context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	dropPrivileges()
	for !bytes.ContainsRune(s.memory[:s.length], '\n') && s.length < len(s.memory) {
		n, err := tty.Read(s.memory[s.length:])
		if err != nil {
			break
		}
		s.length += n
	}
	if ctx.Err() != nil {
		return unreadable("interrupted").WithHint("run it again")
	}
	return s.cutLine("the answer")
}

// servesOthers reports whether the process asks questions for other processes, at any time. Such a process ignores that
// it would be stopped when it asks in the background.
func servesOthers() bool { return signal.Ignored(syscall.SIGTTIN) }

// inBackground reports whether another job than that of this process, which serves others, has the terminal.
func inBackground(tty *os.File) bool {
	if !servesOthers() {
		return false
	}
	conn, err := tty.SyscallConn()
	if err != nil {
		return false
	}
	var group int
	var failed error
	err = conn.Control(func(fd uintptr) { group, failed = unix.IoctlGetInt(int(fd), unix.TIOCGPGRP) })
	return err == nil && failed == nil && group != unix.Getpgrp()
}

// hideInput makes the terminal return whole lines and not show what is typed. In a process that serves others it drops
// what was typed before, which was meant for another question; a person who starts a command may type ahead. restore
// undoes this.
func hideInput(tty *os.File) (restore func(), err error) {
	conn, err := tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	control := func(do func(fd int) error) error {
		var failed error
		if err := conn.Control(func(fd uintptr) { failed = do(int(fd)) }); err != nil {
			return err
		}
		return failed
	}
	var before *unix.Termios
	get := func(fd int) (err error) { before, err = unix.IoctlGetTermios(fd, unix.TCGETS); return err }
	if err := control(get); err != nil {
		return nil, err
	}
	set := func(request uint, state *unix.Termios) error {
		return control(func(fd int) error { return unix.IoctlSetTermios(fd, request, state) })
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	hidden.Lflag |= unix.ICANON | unix.ISIG
	hidden.Iflag |= unix.ICRNL
	request := uint(unix.TCSETS)
	if servesOthers() {
		request = unix.TCSETSF
	}
	if err := set(request, &hidden); err != nil {
		return nil, err
	}
	return func() { _ = set(unix.TCSETS, before) }, nil
}
