package broker

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestInitCommands runs the commands that 'hsm-broker init' prints: they make the keys, check the config with the
// module, and start a broker.
func TestInitCommands(t *testing.T) {
	dir, err := os.MkdirTemp("", "init") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	token := softhsmtest.NewToken(t, "signing")
	program := softhsmtest.Build(t, "hsm-broker")
	softhsmtest.Setenv(t, "PATH", filepath.Dir(softhsmtest.Build(t, "notation-hsm"))+":"+filepath.Dir(program)+":"+
		os.Getenv("PATH"))
	softhsmtest.Setenv(t, "XDG_STATE_HOME", filepath.Join(dir, "state"))
	for _, name := range []string{"PIN", "PIN_SOURCE", "MODULE_PATH", "BROKER"} {
		softhsmtest.Setenv(t, "NOTATION_HSM_"+name, "")
	}
	folder := filepath.Join(dir, "broker")
	out := softhsmtest.Run(t, program, "init", folder, "--public-url", "https://"+freePort(t), "--module-path",
		token.Module)
	softhsmtest.Write(t, filepath.Join(folder, "pin"), softhsmtest.PIN)
	file := filepath.Join(folder, "config.yaml")
	config := strings.ReplaceAll(softhsmtest.Read(t, file), "127.0.0.1:9464", freePort(t))
	// No test asks the issuer of GitHub.
	before, after, _ := strings.Cut(config, "  oidc:\n")
	_, after, _ = strings.Cut(after, "    type: github\n")
	softhsmtest.Write(t, file, before+after)

	parts := strings.Split(out, "\n\n")
	if len(parts) != 3 {
		t.Fatalf("init prints:\n%s", out)
	}
	keys, rest, _ := strings.Cut(parts[1], "; done\n")
	commands := strings.Split(rest, "\n")
	if len(commands) != 2 {
		t.Fatalf("init prints:\n%s", out)
	}
	check := strings.Fields(commands[0])
	fails := func(want string) {
		t.Helper()
		out, err := exec.Command(check[0], check[1:]...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("check-config does not say %q:\n%s", want, out)
		}
	}
	fails("config.yaml: log.key: ")
	softhsmtest.Run(t, "sh", "-c", keys+"; done")
	if out := softhsmtest.Run(t, check[0], check[1:]...); !strings.Contains(out,
		"warning: "+file+": keys.release has no certificate beside it on the token, and no certificate-chain") ||
		!strings.Contains(out, "config.yaml: valid; warnings: 2\n") {
		t.Error(out)
	}

	softhsmtest.Run(t, "notation-hsm", "key", "generate", "--module-path", token.Module, "--token", "signing",
		"--pin-source", "file:"+folder+"/pin", "--spec", "RSA-2048", "--label", "rsa")
	config = softhsmtest.Read(t, file)
	softhsmtest.Write(t, file, strings.ReplaceAll(config, "object=broker-log", "object=rsa"))
	fails("config.yaml: log.key: the log's key is no EC key (generate one with --spec EC-256)")
	softhsmtest.Write(t, file, config)
	policy := softhsmtest.Read(t, filepath.Join(folder, "policy.yaml"))
	softhsmtest.Write(t, filepath.Join(folder, "policy.yaml"), strings.ReplaceAll(policy, "object=release",
		"object=broker-log;type=private"))
	fails("policy.yaml: keys.release: it is the log's key (make a key of its own for the log)")
	softhsmtest.Write(t, filepath.Join(folder, "policy.yaml"), policy)
	softhsmtest.Write(t, file, strings.ReplaceAll(config, "  mtls: {}\n", "  mtls: {}\n  oidc: [{issuer: \"https://"+
		freePort(t)+"\", audience: a, type: other}]\n"))
	fails("config.yaml: callers.oidc https://127.0.0.1:")
	softhsmtest.Write(t, file, config)

	serve := strings.Fields(commands[1])
	service := softhsmtest.Start(t, serve[0], serve[1:]...)
	if !service.Ready(func() bool {
		conn, err := net.Dial("unix", filepath.Join(folder, "broker.sock"))
		if err == nil {
			conn.Close()
		}
		return err == nil
	}) {
		t.Fatalf("the broker ended:\n%s", service.Output.String())
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER", "unix:"+filepath.Join(folder, "broker.sock"))
	if out := softhsmtest.Run(t, program, "key", "list"); !strings.Contains(out, "release") {
		t.Error(out)
	}
}

// freePort returns an address of loopback with a port that is free at this moment.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
