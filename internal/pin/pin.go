// Package pin reads a PIN from where the user keeps it, into memory that is overwritten after use. So no PIN has to be
// in an argument, a log or a config file that others can read.
//
// A source is written as env:NAME, file:/path, "exec:command args", prompt or none. A file is refused when users other
// than this one and root can read or change it. Of a file and of the output of a command, the first line is the PIN.
// prompt asks on the terminal and not on standard input, which has Notation's request. none is for a token with a PIN
// pad. The forms of RFC 7512, file:///path and |command, mean the same.
package pin

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/harden"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

const formsHint = `write pin-source as env:NAME, file:/path, "exec:command args", prompt or none`

// None is the source for a token with a PIN pad.
const None = "none"

// Prompt is the source that asks a person.
const Prompt = "prompt"

// Read reads the PIN from a source. A person who is asked for it sees the name of the token. Read fails with kind
// Invalid when the source is malformed, and with Denied when it gives no PIN. The caller clears the PIN after use.
//
// Before the PIN is in its memory, the process is hardened with internal/harden, and stays so. The command of the first
// source of a process is started before that, so that it can gain privileges, as with sudo.
func Read(ctx context.Context, source, token string) (*Secret, error) {
	if ask, ok := ctx.Value(asker{}).(func(context.Context, string) (*Secret, error)); ok {
		return ask(ctx, token)
	}
	return fill(func(s *Secret) error { return s.read(ctx, source, token) })
}

// From returns the PIN that the settings hold. The settings keep their copy.
func From(text string) (*Secret, error) {
	return fill(func(s *Secret) error { return s.copy(text, "the PIN in the settings") })
}

// fill returns a new secret that read has written a PIN into.
func fill(read func(*Secret) error) (*Secret, error) {
	err := harden.Memory()
	var s *Secret
	if err == nil {
		s, err = newSecret()
	}
	if err != nil {
		return nil, failure.New(failure.Unavailable, "cannot protect the memory of the PIN: %w", err).
			WithHint("allow it where this process is confined, such as in the seccomp profile of a container")
	}
	if err := read(s); err != nil {
		s.Clear()
		return nil, err
	}
	return s, nil
}

// dropPrivileges prevents the process from gaining privileges, just before a PIN is in its memory.
func dropPrivileges() {
	if err := harden.Privileges(); err != nil { // some sandboxes have no seccomp
		slog.Warn("the process can still gain privileges", "error", err)
	}
}

// unreadable returns the failure of a source that gives no PIN.
func unreadable(format string, args ...any) *failure.Error {
	return failure.New(failure.Denied, "cannot read the PIN: "+format, args...)
}

func (s *Secret) read(ctx context.Context, source, token string) error {
	scheme, rest, _ := strings.Cut(source, ":")
	switch {
	case source == Prompt:
		return s.readTerminal(ctx, token)
	case scheme == "env" && isVariable(rest):
		value := os.Getenv(rest)
		if value == "" {
			return unreadable("the environment variable %s is not set, or empty", rest).
				WithHint("set " + rest + " in the environment of the program that logs in, or change pin-source")
		}
		return s.copy(value, "the environment variable "+rest)
	case scheme == "file" && rest != "":
		return s.readFile(strings.TrimPrefix(rest, "//"))
	case filepath.IsAbs(source):
		return s.readFile(source)
	case scheme == "exec":
		return s.readCommand(ctx, rest)
	case strings.HasPrefix(source, "|"):
		return s.readCommand(ctx, source[1:])
	}
	// The source is not shown: it may be the PIN itself.
	return failure.New(failure.Invalid, "pin-source is malformed").WithHint(formsHint)
}

// isVariable reports whether text can be the name of an environment variable. Other text may be a PIN.
func isVariable(text string) bool {
	for i, c := range []byte(text) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return text != ""
}

// copy makes text the PIN. source names where it comes from, for errors.
func (s *Secret) copy(text, source string) error {
	dropPrivileges()
	if len(text) > limit {
		return tooLong(source)
	}
	s.length = copy(s.memory, text)
	return nil
}

const pathHint = "check the path, and that this user can read the file"

// readFile makes the first line of a file the PIN.
func (s *Secret) readFile(path string) error {
	if !filepath.IsAbs(path) { // the path is not shown: it may be the PIN itself
		return failure.New(failure.Invalid, "pin-source file: needs an absolute path").WithHint("write file:/path")
	}
	// Without O_NONBLOCK, a named pipe would block until somebody writes to it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return unreadable("%w", err).WithHint(pathHint)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return unreadable("%w", err).WithHint(pathHint)
	}
	if !info.Mode().IsRegular() {
		return unreadable("%s is not a regular file", path).WithHint("name a file, or use exec:")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return unreadable("others can read %s (mode %04o)", path, info.Mode().Perm()).
			WithHint(fmt.Sprintf("run: chmod 600 %s (for a Kubernetes secret: defaultMode: 0400)", path))
	}
	if err := ownership.Check(path, os.Getuid()); err != nil {
		cause := failure.From(err)
		return unreadable("others can change %s: %w", path, cause).WithHint(cause.Hint)
	}
	dropPrivileges()
	if err := s.readFrom(f); err != nil {
		return unreadable("%w", err).WithHint(pathHint)
	}
	return s.cutLine(path)
}
