package softhsmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Trap is a library and a command that leave a file behind: when the one is loaded, or the other is run.
type Trap struct {
	Library string // the path of a library that is no PKCS#11 module
	Command string // prints nothing
	file    string
}

// NewTrap compiles the library.
func NewTrap(t testing.TB) *Trap {
	t.Helper()
	dir := t.TempDir()
	trap := &Trap{Library: filepath.Join(dir, "trap.so"), file: filepath.Join(dir, "sprung")}
	trap.Command = Program(t, "touch") + " " + trap.file
	source := filepath.Join(dir, "trap.c")
	code := strings.ReplaceAll(
		"#include <fcntl.h>\n__attribute__((constructor)) static void spring(void) { creat(\"FILE\", 0600); }\n", "FILE",
		trap.file)
	if err := os.WriteFile(source, []byte(code), 0o600); err != nil {
		t.Fatal(err)
	}
	Run(t, Program(t, "cc"), "-shared", "-fPIC", "-o", trap.Library, source)
	return trap
}

// Sprung reports whether the library was loaded or the command was run since it was last asked.
func (trap *Trap) Sprung() bool { return os.Remove(trap.file) == nil }
