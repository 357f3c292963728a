package gate

import (
	"fmt"
	"os"
	"testing"
)

// part names, in the environment of this test program, the part of a test that it runs in a process of its own.
const part = "GATE_TEST_PART"

var parts = map[string]func() error{"write decisions": writeFromEnvironment, "append to full log": appendToFull,
	"ask with full log": askWithFullLog, "confine": confine}

func TestMain(m *testing.M) {
	run, ok := parts[os.Getenv(part)]
	if !ok {
		os.Exit(m.Run())
	}
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
