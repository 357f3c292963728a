package softhsmtest

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Terminal is a pseudo-terminal, at which a program asks and the test answers.
type Terminal struct {
	person  *os.File
	program *os.File
	asked   chan string
}

// NewTerminal makes a terminal for programs that end a question with prompt.
func NewTerminal(t testing.TB, prompt string) *Terminal {
	t.Helper()
	person, program := PseudoTerminal(t)
	t.Cleanup(func() { person.Close(); program.Close() })
	terminal := &Terminal{person: person, program: program, asked: make(chan string)}
	go terminal.watch(prompt)
	return terminal
}

// watch reads what programs show, and hands it on at each question.
func (terminal *Terminal) watch(prompt string) {
	seen := ""
	for buffer := make([]byte, 256); ; {
		n, err := terminal.person.Read(buffer)
		if err != nil {
			return
		}
		if seen += string(buffer[:n]); strings.HasSuffix(seen, prompt) {
			terminal.asked <- seen
			seen = ""
		}
	}
}

// Control makes it the controlling terminal of a command that has not been started.
func (terminal *Terminal) Control(cmd *exec.Cmd) {
	cmd.Stdin = terminal.program
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
}

// Program is the end of programs: their standard output, for example.
func (terminal *Terminal) Program() *os.File { return terminal.program }

// Asked waits for a question, and returns what was shown since the last.
func (terminal *Terminal) Asked() string { return <-terminal.asked }

// Answer waits for a question and types a line. It fails if the terminal has shown the line before.
func (terminal *Terminal) Answer(t testing.TB, line string) {
	t.Helper()
	if shown := terminal.Asked(); strings.Contains(shown, line) {
		t.Errorf("the answer is shown: %q", shown)
	}
	if _, err := terminal.person.WriteString(line + "\n"); err != nil {
		t.Fatal(err)
	}
}

// PseudoTerminal returns the two ends of a pseudo-terminal: the person's and the program's. The caller closes both.
func PseudoTerminal(t testing.TB) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return person, program
}
