package main

import (
	"io"
	"strings"
	"testing"
)

// TestUnknownCommand names a command that the agent does not have.
func TestUnknownCommand(t *testing.T) {
	t.Parallel()
	c := command()
	c.SetArgs([]string{"agent", "statsu"})
	c.SetOut(io.Discard)
	c.SetErr(io.Discard)
	if err := c.Execute(); err == nil || !strings.Contains(err.Error(), `unknown command "statsu"`) {
		t.Error(err)
	}
}

// TestSocketPath takes the address of a socket as the agent prints it for a path.
func TestSocketPath(t *testing.T) {
	t.Parallel()
	for value, path := range map[string]string{"": "", "/run/a.sock": "/run/a.sock", "unix:/run/a.sock": "/run/a.sock"} {
		if got := socketPath(value); got != path {
			t.Errorf("%q is the path %q", value, got)
		}
	}
}
