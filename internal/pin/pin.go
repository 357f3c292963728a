// Package pin fetches a PIN from where the user keeps it, so that no PIN stands in an argument, a config that others
// read, or a log; and keeps it in memory that is overwritten after use.
//
// A source is written as env:NAME, file:/path (refused when others than this user and root can read or change it),
// "exec:command args" (the first line the command prints), prompt (asked on the terminal, never on standard input,
// which carries Notation's request) or none (the token has its own PIN pad). RFC 7512's forms file:///path and |command
// mean the same.
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

const forms = `write it as env:NAME, file:/path, "exec:command args", prompt or none`

// None is the source of a token that asks for its PIN on its own pad.
const None = "none"

// Prompt is the source that asks a person.
const Prompt = "prompt"

// Read fetches the PIN from source. The token's name is shown to a person who is asked for it. Failures are of kind
// Invalid when the source is malformed and Denied when it does not yield a PIN. The caller clears the PIN after use.
//
// Before the PIN is in its memory, the process is closed with internal/harden, and stays so. A command of the first
// source of a process is started before, so that it can gain privileges, as with sudo.
func Read(ctx context.Context, source, token string) (*Secret, error) {
	return fill(func(s *Secret) error { return s.read(ctx, source, token) })
}

// From makes a secret of a PIN that stands in the settings, of which the settings keep their copy.
func From(text string) (*Secret, error) {
	return fill(func(s *Secret) error { return s.copy(text, "the PIN in the settings") })
}

func fill(read func(*Secret) error) (*Secret, error) {
	if err := harden.Memory(); err != nil {
		return nil, failure.New(failure.Internal, "no PIN is read: %w", err).
			WithHint("report it, with the system's name and version")
	}
	s, err := newSecret()
	if err != nil {
		return nil, err
	}
	if err := read(s); err != nil {
		s.Clear()
		return nil, err
	}
	return s, nil
}

// close closes the process against gaining privileges, just before a PIN is in it.
func (s *Secret) close() {
	if err := harden.Privileges(); err != nil { // some sandboxes know no seccomp
		slog.Warn("the process could gain privileges", "error", err)
	}
}

func (s *Secret) read(ctx context.Context, source, token string) error {
	scheme, rest, _ := strings.Cut(source, ":")
	switch {
	case source == Prompt:
		return s.ask(ctx, token)
	case scheme == "env" && isVariable(rest):
		value := os.Getenv(rest)
		if value == "" {
			return failure.New(failure.Denied, "no PIN: the environment variable %s is not set", rest).
				WithHint("set " + rest + " in the environment of this command, or change pin-source")
		}
		return s.copy(value, "the environment variable "+rest)
	case scheme == "file" && rest != "":
		return s.fromFile(strings.TrimPrefix(rest, "//"))
	case filepath.IsAbs(source):
		return s.fromFile(source)
	case scheme == "exec":
		return s.fromCommand(ctx, rest)
	case strings.HasPrefix(source, "|"):
		return s.fromCommand(ctx, source[1:])
	}
	// It is not shown: someone may have written the PIN itself.
	return failure.New(failure.Invalid, "pin-source is not a place that a PIN can come from").WithHint(forms)
}

// isVariable reports whether text can be the name of an environment variable. What cannot may be a PIN.
func isVariable(text string) bool {
	for i, c := range []byte(text) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return text != ""
}

func (s *Secret) copy(text, from string) error {
	s.close()
	if len(text) > limit {
		return failure.New(failure.Denied, "no PIN: %s has more than %d bytes",
			from, limit).
			WithHint("it should hold the PIN and nothing else")
	}
	s.length = copy(s.memory, text)
	return nil
}

func (s *Secret) fromFile(path string) error {
	if !filepath.IsAbs(path) { // it is not shown: it may be the PIN
		return failure.New(failure.Invalid, "pin-source file: is not followed by a full path").
			WithHint("name the PIN file by its full path")
	}
	// Without O_NONBLOCK a named pipe would make this wait for as long as nobody writes to it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return failure.New(failure.Denied, "no PIN: can't read the PIN file: %w", err).
			WithHint("check the path and that this user can read it")
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return failure.New(failure.Denied, "no PIN: can't read the PIN file: %w", err).WithHint("check the path")
	}
	if info.IsDir() {
		return failure.New(failure.Denied, "no PIN: %s is a folder", path).WithHint("name a file in it")
	}
	if !info.Mode().IsRegular() {
		return failure.New(failure.Denied, "no PIN: %s is not a regular file", path).
			WithHint("put the PIN into a file, or use exec:")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return failure.New(failure.Denied, "the PIN file %s can be read by others (mode %04o)", path, info.Mode().Perm()).
			WithHint(fmt.Sprintf("run: chmod 600 %s (for a Kubernetes secret: defaultMode: 0400)",
				path))
	}
	if err := ownership.Check(path, os.Getuid()); err != nil {
		f := failure.From(err)
		return failure.New(failure.Denied, "no PIN: others decide what the PIN file %s holds: %w", path, f).WithHint(f.Hint)
	}
	s.close()
	if err := s.readFrom(f); err != nil {
		return failure.New(failure.Denied, "no PIN: can't read the PIN file: %w", err).WithHint("check the file")
	}
	return s.firstLine("the PIN file " + path)
}
