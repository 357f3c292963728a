// Package pin fetches a PIN from where the user keeps it, so that no PIN stands in an argument, a config that others
// read, or a log.
//
// A source is written as env:NAME, file:/path (refused when group or others can read it), "exec:command args" (the
// first line the command prints), prompt (asked on the terminal, never on standard input, which carries Notation's
// request) or none (the token has its own PIN pad). RFC 7512's forms file:///path and |command mean the same.
package pin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/term"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const (
	forms = `write it as env:NAME, file:/path, "exec:command args", prompt or none`
	limit = 4096 // bytes; no token takes a PIN near this long
)

// None is the source of a token that asks for its PIN on its own pad.
const None = "none"

// Prompt is the source that asks a person.
const Prompt = "prompt"

// Read fetches the PIN from source. The token's name is shown to a person who is asked for it. Failures are of kind
// Invalid when the source is malformed and Denied when it does not yield a PIN. The caller clears the PIN after use.
func Read(ctx context.Context, source, token string) ([]byte, error) {
	scheme, rest, _ := strings.Cut(source, ":")
	switch {
	case source == Prompt:
		return ask(ctx, token)
	case scheme == "env" && rest != "":
		value, ok := os.LookupEnv(rest)
		if !ok || value == "" {
			return nil, failure.New(failure.Denied, "set "+rest+" in the environment of this command, or change pin-source",
				"no PIN: the environment variable %s is not set", rest)
		}
		return []byte(value), nil
	case scheme == "file" && rest != "":
		return fromFile(strings.TrimPrefix(rest, "//"))
	case filepath.IsAbs(source):
		return fromFile(source)
	case scheme == "exec":
		return fromCommand(ctx, rest)
	case strings.HasPrefix(source, "|"):
		return fromCommand(ctx, source[1:])
	}
	// It is not shown: someone may have written the PIN itself.
	return nil, failure.New(failure.Invalid, forms, "pin-source is not a place that a PIN can come from")
}

func fromFile(path string) ([]byte, error) {
	if !filepath.IsAbs(path) {
		return nil, failure.New(failure.Invalid, "name the PIN file by its full path", "pin-source file:%s is not a full path", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.New(failure.Denied, "check the path and that this user can read it", "no PIN: can't read the PIN file: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, failure.New(failure.Denied, "check the path", "no PIN: can't read the PIN file: %w", err)
	}
	if info.IsDir() {
		return nil, failure.New(failure.Denied, "name a file in it", "no PIN: %s is a folder", path)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, failure.New(failure.Denied, fmt.Sprintf("run: chmod 600 %s (for a Kubernetes secret: defaultMode: 0400)", path),
			"the PIN file %s can be read by others (mode %04o)", path, info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, failure.New(failure.Denied, "check the file", "no PIN: can't read the PIN file: %w", err)
	}
	return firstLine(data, "the PIN file "+path)
}

func fromCommand(ctx context.Context, line string) ([]byte, error) {
	args := strings.Fields(line)
	if len(args) == 0 {
		return nil, failure.New(failure.Invalid, forms, "pin-source exec: names no command")
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	out, err := cmd.Output() // its stderr is dropped: it may be careless with the PIN
	defer clear(out)
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = errors.New(exit.String())
		}
		return nil, failure.New(failure.Denied, "run the command by hand to see what it says; it is started without a shell, so quotes and pipes belong in a script", "no PIN: the command %q failed: %w", args[0], err)
	}
	return firstLine(out, fmt.Sprintf("the command %q", args[0]))
}

func firstLine(data []byte, from string) ([]byte, error) {
	if len(data) > limit {
		return nil, failure.New(failure.Denied, "it should hold the PIN and nothing else", "no PIN: %s gives more than %d bytes", from, limit)
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, failure.New(failure.Denied, "it should hold the PIN in its first line", "no PIN: %s gives an empty first line", from)
	}
	return bytes.Clone(line), nil
}

// ask reads the PIN from the terminal, which is there even when standard input and output are Notation's pipes.
func ask(ctx context.Context, token string) ([]byte, error) {
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return nil, failure.New(failure.Denied, "run it in a terminal, or use another pin-source", "no PIN: there is no terminal to ask on: %w", err)
	}
	defer tty.Close()
	state, err := term.GetState(int(tty.Fd()))
	if err != nil {
		return nil, failure.New(failure.Denied, "run it in a terminal, or use another pin-source", "no PIN: can't use the terminal: %w", err)
	}
	fmt.Fprintf(tty, "PIN for token %q: ", token)
	type answer struct {
		pin []byte
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		pin, err := term.ReadPassword(int(tty.Fd()))
		answered <- answer{pin, err}
	}()
	select {
	case a := <-answered:
		fmt.Fprintln(tty)
		if a.err != nil || len(a.pin) == 0 {
			return nil, failure.New(failure.Denied, "type the PIN when asked", "no PIN: none was typed")
		}
		return a.pin, nil
	case <-ctx.Done():
		_ = term.Restore(int(tty.Fd()), state) // echo was off
		fmt.Fprintln(tty)
		return nil, failure.New(failure.Denied, "", "no PIN: interrupted")
	}
}
