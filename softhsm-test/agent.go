package softhsmtest

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

// Agent is a running 'hsm-broker agent'.
type Agent struct {
	*Service
	Program string
	Socket  string
}

// StartAgent starts an agent that holds a token, and waits until it listens.
func StartAgent(t testing.TB, token *Token, args ...string) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	a := &Agent{Program: Build(t, "hsm-broker"), Socket: filepath.Join(dir, "socket")}
	Setenv(t, "AGENT_PIN", PIN)
	Setenv(t, "XDG_STATE_HOME", filepath.Join(token.Dir, "state")) // of all agents that hold the token
	a.Service = Start(t, a.Program, append([]string{"agent", "--module-path", token.Module, "--token", token.Label,
		"--pin-source", "env:AGENT_PIN", "--timeout", Patience, "--socket", a.Socket}, args...)...)
	if !a.Ready(func() bool {
		conn, err := net.Dial("unix", a.Socket)
		if err == nil {
			conn.Close()
		}
		return err == nil
	}) {
		t.Fatalf("the agent ended:\n%s", a.Output.String())
	}
	return a
}

// Use has the programs that the test starts use keys through the agent, without a module or a PIN of their own.
func (a *Agent) Use(t testing.TB) {
	t.Helper()
	Setenv(t, "NOTATION_HSM_BROKER", "unix:"+a.Socket)
	for _, name := range []string{"PIN", "PIN_SOURCE", "MODULE_PATH"} {
		Setenv(t, "NOTATION_HSM_"+name, "")
	}
	Setenv(t, "AGENT_PIN", "")
}
