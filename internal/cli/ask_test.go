package cli

import (
	"bufio"
	"context"
	"io"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// terminal is a reader of what a person types, and a writer of what they see.
type terminal struct {
	io.Reader
	shown strings.Builder
}

func (t *terminal) Write(p []byte) (int, error) { return t.shown.Write(p) }

// TestAsk goes on with the wanted answer alone.
func TestAsk(t *testing.T) {
	t.Parallel()
	for answer, confirmed := range map[string]bool{
		"yes\n": true, "  yes \r\n": true, "yes": true,
		"y\n": false, "YES\n": false, "\n": false, "": false, "no\nyes\n": false,
	} {
		tty := &terminal{Reader: strings.NewReader(answer)}
		err := askOn(t.Context(), tty, "type yes to delete it", "yes")
		if confirmed != (err == nil) || err != nil && !failure.Is(err, failure.Denied) {
			t.Errorf("%q: %v", answer, err)
		}
		if tty.shown.String() != "type yes to delete it: " {
			t.Errorf("shown is %q", tty.shown.String())
		}
	}
}

// TestAskInterrupted ends with the process's signal, without an answer.
func TestAskInterrupted(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	silence, w := io.Pipe()
	defer w.Close()
	err := askOn(ctx, &terminal{Reader: silence}, "type yes", "yes")
	if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "nothing was changed") {
		t.Error(err)
	}
}

// terminals keeps pseudo-terminals open to the end of the process: an interrupted askPassphraseOn still reads its own,
// by a descriptor that must not become another test's.
var terminals sync.Map

// pseudoTerminal returns the two ends of a pseudo-terminal: the person's and the program's.
func pseudoTerminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, program = softhsmtest.PseudoTerminal(t)
	terminals.Store(program, person)
	return person, program
}

// untilSilent waits until a terminal does not echo what is typed.
func untilSilent(tty *os.File) {
	for {
		now, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		if err != nil || now.Lflag&unix.ECHO == 0 {
			return
		}
		runtime.Gosched()
	}
}

// TestAskPassphrase shows the path without control characters, and what is typed not at all.
func TestAskPassphrase(t *testing.T) {
	t.Parallel()
	for typed, want := range map[string]string{"correct horse\n": "correct horse", "\n": ""} {
		person, program := pseudoTerminal(t)
		shown := make(chan string, 1)
		go func() {
			seen := bufio.NewReader(person)
			prompt, _ := seen.ReadString(':')
			untilSilent(program)
			_, _ = person.WriteString(typed)
			rest, _ := seen.ReadString('\n')
			shown <- prompt + rest
		}()
		passphrase, err := askPassphraseOn(t.Context(), program, "\x1b[2Jbob")
		if string(passphrase) != want || (want == "") != failure.Is(err, failure.Denied) {
			t.Errorf("%q, %v", passphrase, err)
		}
		if text := <-shown; text != "passphrase of \ufffd[2Jbob: \r\n" {
			t.Errorf("shown is %q", text)
		}
	}
}

// TestAskPassphraseInterrupted gives the terminal its echo back.
func TestAskPassphraseInterrupted(t *testing.T) {
	t.Parallel()
	person, program := pseudoTerminal(t)
	before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		seen := bufio.NewReader(person)
		_, _ = seen.ReadString(':')
		untilSilent(program)
		cancel()
	}()
	if _, err := askPassphraseOn(ctx, program, "bob"); !failure.Is(err, failure.Denied) {
		t.Error(err)
	}
	after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	if err != nil || after.Lflag != before.Lflag {
		t.Errorf("the terminal's flags are %x, and were %x: %v", after.Lflag, before.Lflag, err)
	}
}

// TestNoTerminal says what to do where nobody can be asked.
func TestNoTerminal(t *testing.T) {
	t.Parallel()
	file, err := os.CreateTemp(t.TempDir(), "file")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	_, err = askPassphraseOn(t.Context(), file, "bob")
	if f := failure.From(err); err == nil || f.Kind != failure.Denied || f.Hint != "run it in a terminal" {
		t.Errorf("%+v", f)
	}
}
