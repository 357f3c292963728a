package softhsmtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Shim compiles the module that stands in front of another one and misbehaves as the SHIM_ variables say (shim/shim.c
// lists them), points it at module, and returns its path.
func Shim(t testing.TB, module string) string {
	t.Helper()
	headers := strings.TrimSpace(Run(t, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/miekg/pkcs11"))
	shim := filepath.Join(t.TempDir(), "softhsm-shim.so")
	Run(t, Program(t, "cc"), "-shared", "-fPIC", "-I"+headers, "-o", shim,
		filepath.Join(Root(), "softhsm-test", "shim", "shim.c"), "-ldl", "-lpthread")
	Setenv(t, "SHIM_MODULE", module)
	return shim
}

// Calls returns the names of the calls that a shim with SHIM_LOG, or pkcs11-spy with PKCS11SPY_OUTPUT, wrote to a file.
func Calls(t testing.TB, log string) []string {
	t.Helper()
	data, err := os.ReadFile(log)
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	var calls []string
	for line := range strings.Lines(string(data)) {
		// The spy numbers its calls ("3: C_Login") and prints their arguments on lines of their own.
		number, name, spied := strings.Cut(strings.TrimSpace(line), ": ")
		if !spied {
			name = number
		}
		if strings.HasPrefix(name, "C_") && !strings.ContainsAny(name, " =") {
			calls = append(calls, name)
		}
	}
	return calls
}

// Count returns how often a name is among calls.
func Count(calls []string, name string) int {
	n := 0
	for _, call := range calls {
		if call == name {
			n++
		}
	}
	return n
}
