package pin

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// ask reads the PIN from the terminal, which is there even when standard input and output are Notation's pipes. The
// terminal gives a line as it is typed, without showing it, straight into the secret's memory.
func (s *Secret) ask(ctx context.Context, token string) error {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return failure.New(failure.Denied, "no PIN: there is no terminal to ask on: %w", err).
			WithHint("run it in a terminal, or use another pin-source")
	}
	defer tty.Close()
	visible, err := hide(tty)
	if err != nil {
		return failure.New(failure.Denied, "no PIN: can't use the terminal: %w", err).
			WithHint("run it in a terminal, or use another pin-source")
	}
	defer fmt.Fprintln(tty)
	defer visible()
	fmt.Fprintf(tty, "PIN for token %q: ", token)
	stop := context.AfterFunc(ctx, func() { _ = tty.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	s.close()
	for !bytes.ContainsRune(s.memory[:s.length], '\n') && s.length < len(s.memory) {
		n, err := tty.Read(s.memory[s.length:])
		if err != nil {
			break
		}
		s.length += n
	}
	if ctx.Err() != nil {
		return failure.New(failure.Denied, "no PIN: interrupted")
	}
	if s.length == 0 || s.memory[0] == '\n' {
		return failure.New(failure.Denied, "no PIN: none was typed").WithHint("type the PIN when asked")
	}
	return s.firstLine("the terminal")
}

// hide has the terminal give whole lines and not show what is typed, until visible is called.
func hide(tty *os.File) (visible func(), err error) {
	conn, err := tty.SyscallConn()
	if err != nil {
		return nil, err
	}
	var before *unix.Termios
	set := func(state *unix.Termios) error {
		var failed error
		err := conn.Control(func(fd uintptr) { failed = unix.IoctlSetTermios(int(fd), unix.TCSETS, state) })
		if err != nil {
			return err
		}
		return failed
	}
	var failed error
	if err := conn.Control(func(fd uintptr) { before, failed = unix.IoctlGetTermios(int(fd), unix.TCGETS) }); err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	hidden := *before
	hidden.Lflag &^= unix.ECHO
	hidden.Lflag |= unix.ICANON | unix.ISIG
	hidden.Iflag |= unix.ICRNL
	if err := set(&hidden); err != nil {
		return nil, err
	}
	return func() { _ = set(before) }, nil
}
