package pin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// fromCommand runs a command and takes the first line that it prints. The command has a session of its own and no
// terminal. When it has ended, has printed more than a PIN or has taken longer than ctx allows, all that is left of
// that session is killed. What has left the session on purpose, such as an agent that the command has started, stays,
// and is not waited for.
func (s *Secret) fromCommand(ctx context.Context, line string) error {
	args := strings.Fields(line)
	if len(args) == 0 {
		return failure.New(failure.Invalid, "pin-source exec: names no command").WithHint(forms)
	}
	name := fmt.Sprintf("the command %q", args[0])
	const hint = "run the command by hand to see what it says; it is started without a shell and without a terminal, so quotes and pipes belong in a script, " +
		"and sudo in it works for the first PIN of a process alone"
	failed := func(err error) error {
		return failure.New(failure.Denied, "no PIN: %s failed: %w", name, err).
			WithHint(hint)
	}
	out, in, err := os.Pipe()
	if err != nil {
		return failed(err)
	}
	defer out.Close()
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx,gosec // a context would have the command alone killed, which is the user's own
	cmd.Stdout = in                           // its standard error is dropped: it may be careless with the PIN
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	in.Close()
	if err != nil {
		return failed(err)
	}
	s.close()

	ended, enough, killed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		waitForEnd(cmd.Process.Pid)
	}()
	late := false
	go func() {
		defer close(killed)
		select {
		case <-ended:
		case <-enough:
		case <-ctx.Done():
			late = true
		}
		_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // its number is taken until Wait, and so is that of its session
		<-ended
		_ = out.SetReadDeadline(time.Unix(1, 0)) // for what has left the session and keeps the pipe open
	}()
	readErr := s.readFrom(out)
	if s.length > limit {
		close(enough)
	}
	<-killed
	err = cmd.Wait()
	if errors.Is(readErr, os.ErrDeadlineExceeded) {
		readErr = s.rest(out)
	}
	switch {
	case late:
		return failure.New(failure.Denied, "no PIN: %s has not ended in time: %w", name, ctx.Err()).
			WithHint("see why it is slow, or set a longer timeout")
	case s.length > limit:
	case err != nil:
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			err = errors.New(exit.String())
		}
		return failed(err)
	case readErr != nil:
		return failed(readErr)
	}
	return s.firstLine(name)
}

// waitForEnd waits for a child's end, and leaves it to be waited for.
func waitForEnd(pid int) {
	for {
		if err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil); !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// rest reads what is in a pipe now.
func (s *Secret) rest(pipe *os.File) error {
	if err := pipe.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	conn, err := pipe.SyscallConn()
	if err != nil {
		return err
	}
	return conn.Read(func(fd uintptr) bool {
		for s.length < len(s.memory) {
			n, err := unix.Read(int(fd), s.memory[s.length:])
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n <= 0 {
				break
			}
			s.length += n
		}
		return true
	})
}
