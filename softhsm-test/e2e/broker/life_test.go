package broker

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/remote"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// A life is a token behind the shim, with the key release of EC-256, and what its agents are started with.
type life struct {
	token   *softhsmtest.Token
	program string
	socket  string
	pin     string // a file
	log     string // of the module's calls
}

func newLife(t *testing.T) *life {
	t.Helper()
	dir, err := os.MkdirTemp("", "life") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	l := &life{
		token: softhsmtest.NewToken(t, "signing"), program: softhsmtest.Build(t, "hsm-broker"),
		socket: filepath.Join(dir, "socket"), pin: filepath.Join(dir, "pin"), log: filepath.Join(dir, "calls"),
	}
	softhsmtest.NewKey(t, l.token, softhsmtest.NewNotation(t, l.token).Plugin, "EC-256", "release")
	softhsmtest.Write(t, l.pin, softhsmtest.PIN)
	for name, value := range map[string]string{
		"SHIM_LOG": l.log, "XDG_STATE_HOME": filepath.Join(dir, "state"), "XDG_RUNTIME_DIR": dir,
		"NOTATION_HSM_PIN": "", "NOTATION_HSM_PIN_SOURCE": "", "NOTATION_HSM_MODULE_PATH": "", "NOTATION_HSM_BROKER": "",
	} {
		softhsmtest.Setenv(t, name, value)
	}
	l.token.Module = softhsmtest.Shim(t, l.token.Module)
	return l
}

// args are the arguments of an agent.
func (l *life) args(more ...string) []string {
	return append([]string{"agent", "--module-path", l.token.Module, "--token", "signing", "--timeout",
		softhsmtest.Patience,
		"--pin-source", "file:" + l.pin}, more...)
}

// start starts an agent, and waits until it listens.
func (l *life) start(t *testing.T, more ...string) *softhsmtest.Service {
	t.Helper()
	service := softhsmtest.Start(t, l.program, l.args(append([]string{"--socket", l.socket}, more...)...)...)
	if !service.Ready(func() bool { return l.sign(t.Context()) == nil }) {
		t.Fatalf("the agent ended:\n%s", service.Output.String())
	}
	return service
}

// fails starts an agent that ends by itself, and returns its exit code and what it wrote.
func (l *life) fails(t *testing.T, more ...string) (int, string) {
	t.Helper()
	_, stderr, err := softhsmtest.Try(t, "", l.program, l.args(append([]string{"--socket", l.socket}, more...)...)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Fatalf("it has not failed: %v\n%s", err, stderr)
	}
	return exit.ExitCode(), stderr
}

// control runs a command of the agent, and returns its exit code and what it wrote.
func (l *life) control(t *testing.T, args ...string) (int, string) {
	t.Helper()
	stdout, stderr, err := softhsmtest.Try(t, "", l.program, append(append([]string{"agent"}, args...), "--socket",
		l.socket)...)
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), stdout + stderr
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, stdout + stderr
}

// status returns the state of the agent.
func (l *life) status(t *testing.T) (a brokerapi.Agent) {
	t.Helper()
	code, out := l.control(t, "status", "--json")
	if err := json.Unmarshal([]byte(out), &a); err != nil || code != 0 {
		t.Fatal(code, out, err)
	}
	return a
}

// logins returns how often a process has tried to log in.
func (l *life) logins(t *testing.T) int {
	t.Helper()
	return softhsmtest.Count(softhsmtest.Calls(t, l.log), "C_Login")
}

// sign signs what Notation would have signed, and verifies the signature.
func (l *life) sign(ctx context.Context) error {
	backend := remote.New()
	defer backend.Close()
	settings := &config.Settings{
		Broker: "unix:" + l.socket, Key: config.URI{Broker: true, Object: "release"}, Timeout: time.Minute,
	}
	return keystore.New(nil, backend).Reference(settings).WithKey(ctx, func(_ keystore.Store, k keystore.Key) error {
		header, content := map[string]any{
			"alg": "ES256", "crit": []string{"io.cncf.notary.signingScheme"},
			"cty": "application/vnd.cncf.notary.payload.v1+json", "io.cncf.notary.signingScheme": "notary.x509",
			"io.cncf.notary.signingTime": time.Now().UTC().Format(time.RFC3339),
		}, map[string]any{"targetArtifact": map[string]any{
			"digest": fmt.Sprintf("sha256:%x", sha256.Sum256(nil)), "mediaType": "application/vnd.oci.image.manifest.v1+json",
			"size": 525,
		}}
		var message []byte
		for _, part := range []any{header, content} {
			data, err := json.Marshal(part)
			if err != nil {
				return err
			}
			message = append(message, '.')
			message = base64.RawURLEncoding.AppendEncode(message, data)
		}
		message = message[1:]
		signer, ok := k.(interface {
			SignMessage(context.Context, []byte, crypto.SignerOpts) ([]byte, error)
		})
		if !ok {
			return errors.New("the key signs no messages")
		}
		signature, err := signer.SignMessage(ctx, message, crypto.SHA256)
		if err != nil {
			return err
		}
		digest := sha256.Sum256(message)
		public, ok := k.Public().(interface{ Equal(crypto.PublicKey) bool })
		if !ok {
			return errors.New("the key has no public half")
		}
		ec, ok := public.(*ecdsa.PublicKey)
		if !ok || !ecdsa.VerifyASN1(ec, digest[:], signature) {
			return errors.New("the signature does not verify")
		}
		return nil
	})
}

// worker returns the folder in /proc of the process that an agent of this life has for its module; "" without one.
func (l *life) worker(t *testing.T) string {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range all {
		if args, err := os.ReadFile(file); err == nil && strings.Contains(string(args),
			"\x00pkcs11-worker\x00"+l.token.Module) {
			return filepath.Dir(file)
		}
	}
	return ""
}

// until waits for a condition.
func until(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for !condition() {
		if ctx.Err() != nil {
			t.Fatalf("it never came: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// TestRefusedPIN tries a wrong PIN once, however often the agent is started, until an operator clears it.
func TestRefusedPIN(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	softhsmtest.Write(t, l.pin, "1111")
	if code, text := l.fails(t); code != 3 || !strings.Contains(text, "CKR_PIN_INCORRECT") {
		t.Errorf("%d, %s", code, text)
	}
	softhsmtest.Write(t, l.pin, softhsmtest.PIN) // the right one: nobody has said so
	for range 3 {
		if code, text := l.fails(t); code != 3 || !strings.Contains(text, "not tried again") ||
			!strings.Contains(text, "hsm-broker agent clear") {
			t.Errorf("%d, %s", code, text)
		}
	}
	softhsmtest.Setenv(t, "OTHER_PIN", "1111")
	if code, _ := l.fails(t, "--pin-source", "env:OTHER_PIN"); code != 3 {
		t.Errorf("another source: %d", code)
	}
	if logins := l.logins(t); logins != 1 {
		t.Errorf("%d logins", logins)
	}
	if _, err := os.Stat(l.socket); err == nil {
		t.Error("an agent that has not logged in has left a socket")
	}
	for _, c := range []struct {
		token string
		code  int
		text  string
	}{{"other", 4, "signing"}, {"signing", 0, `the PIN of token "signing" can be tried again`}, {"signing", 4,
		"no token"}} {
		if code, text := l.control(t, "clear", c.token); code != c.code || !strings.Contains(text, c.text) {
			t.Errorf("clear %s: %d, %s", c.token, code, text)
		}
	}
	l.start(t)
	if logins := l.logins(t); logins != 2 {
		t.Errorf("%d logins", logins)
	}
}

// TestChangedPIN changes the PIN while many sign, and has the module lose the login: the old PIN is tried once more,
// and never again, in whatever process. The agent goes on, and signs again when the PIN is cleared.
func TestChangedPIN(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	agent := l.start(t)
	const changed = "9876"
	softhsmtest.Run(t, softhsmtest.Program(t, "pkcs11-tool"), "--module", softhsmtest.Module(t), "--token-label",
		"signing",
		"--login", "--pin", softhsmtest.PIN, "--change-pin", "--new-pin", changed)
	before := l.logins(t)
	kill := func() {
		if worker := l.worker(t); worker != "" {
			pid, _ := strconv.Atoi(filepath.Base(worker))
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	kill()
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 10 {
				if err := l.sign(t.Context()); !failure.Is(err, failure.Denied) && !failure.Is(err, failure.Unavailable) {
					t.Errorf("signed with the old PIN: %v", err)
				}
			}
		})
	}
	group.Wait()
	kill()
	for range 3 {
		if err := l.sign(t.Context()); !failure.Is(err, failure.Denied) {
			t.Error(err)
		}
		if code, text := l.control(t, "lock"); code != 0 {
			t.Error(code, text)
		}
	}
	if refused := l.status(t).Refused; refused == nil || refused.CKR != "CKR_PIN_INCORRECT" {
		t.Errorf("the status says %+v", refused)
	}
	agent.Signal(t, syscall.SIGKILL)
	<-agent.Ended
	if code, text := l.fails(t); code != 3 {
		t.Errorf("started again: %d, %s", code, text)
	}
	if logins := l.logins(t) - before; logins != 1 {
		t.Errorf("the old PIN was tried %d times", logins)
	}
	softhsmtest.Write(t, l.pin, changed)
	if code, text := l.control(t, "clear"); code != 0 {
		t.Fatal(code, text)
	}
	l.start(t)
}

// TestClearRunning has a running agent try a PIN again that was cleared.
func TestClearRunning(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	agent := l.start(t)
	softhsmtest.Write(t, l.pin, "1111")
	agent.Signal(t, syscall.SIGHUP)
	until(t, "the lock", func() bool { return l.status(t).Locked })
	for range 2 {
		if err := l.sign(t.Context()); !failure.Is(err, failure.Denied) {
			t.Error(err)
		}
	}
	softhsmtest.Write(t, l.pin, softhsmtest.PIN)
	if code, text := l.control(t, "clear"); code != 0 || !strings.Contains(text, "signing") {
		t.Fatal(code, text)
	}
	if err := l.sign(t.Context()); err != nil {
		t.Error(err)
	}
	if s := l.status(t); s.Refused != nil || s.Locked {
		t.Errorf("the status says %+v", s)
	}
	if logins := l.logins(t); logins != 3 {
		t.Errorf("%d logins", logins)
	}
}

// TestLocked forgets the PIN, which is read again at the next use, and no use ends the agent.
func TestLocked(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	agent := l.start(t)
	worker := l.worker(t)
	if err := os.Remove(l.pin); err != nil {
		t.Fatal(err)
	}
	if err := l.sign(t.Context()); err != nil {
		t.Error(err)
	}
	if s := l.status(t); s.Locked || s.Uses < 2 || s.Label != "signing" || s.Unlocked.IsZero() || s.IdleLeft != nil {
		t.Errorf("the status says %+v", s)
	}
	for name, lock := range map[string]func(){
		"SIGHUP": func() { agent.Signal(t, syscall.SIGHUP) },
		"lock": func() {
			if code, text := l.control(t, "lock"); code != 0 {
				t.Error(code, text)
			}
		},
	} {
		lock()
		until(t, name, func() bool { return l.status(t).Locked })
		until(t, "the end of the module's process", func() bool { _, err := os.Stat(worker); return err != nil })
		if err := l.sign(t.Context()); !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "no such file") {
			t.Errorf("%s: %v", name, err)
		}
		softhsmtest.Write(t, l.pin, softhsmtest.PIN)
		if err := l.sign(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		worker = l.worker(t)
		if err := os.Remove(l.pin); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStop finishes a signature that is in flight, removes the socket, and ends with exit code 0.
func TestStop(t *testing.T) {
	softhsmtest.Parallel(t)
	for name, stop := range map[string]func(*testing.T, *life, *softhsmtest.Service){
		"SIGTERM": func(t *testing.T, _ *life, s *softhsmtest.Service) { s.Signal(t, syscall.SIGTERM) },
		"stop": func(t *testing.T, l *life, _ *softhsmtest.Service) {
			if code, text := l.control(t, "stop"); code != 0 {
				t.Error(code, text)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLife(t)
			softhsmtest.Setenv(t, "SHIM_DELAY_MS", "300")
			agent := l.start(t)
			begun := softhsmtest.Count(softhsmtest.Calls(t, l.log), "C_SignInit")
			signed := make(chan error, 1)
			go func() { signed <- l.sign(t.Context()) }()
			until(t, "the signature", func() bool {
				return softhsmtest.Count(softhsmtest.Calls(t, l.log),
					"C_SignInit") > begun
			})
			stop(t, l, agent)
			if err := <-signed; err != nil {
				t.Errorf("the signature in flight: %v", err)
			}
			<-agent.Ended
			if !agent.Succeeded() {
				t.Errorf("it failed:\n%s", agent.Output.String())
			}
			if _, err := os.Stat(l.socket); err == nil {
				t.Error("the socket is still there")
			}
			if code, text := l.control(t, "status"); code != 5 {
				t.Errorf("without an agent: %d, %s", code, text)
			}
		})
	}
}

// TestKilled starts an agent over the socket of a killed one, whose module's process ends with it, and none beside one
// that runs.
func TestKilled(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	first := l.start(t)
	worker := l.worker(t)
	if code, text := l.fails(t); code != 1 || !strings.Contains(text, "another agent listens") {
		t.Errorf("%d, %s", code, text)
	}
	first.Signal(t, syscall.SIGKILL)
	<-first.Ended
	until(t, "the end of the module's process", func() bool { _, err := os.Stat(worker); return err != nil })
	if _, err := os.Stat(l.socket); err != nil {
		t.Errorf("the killed agent has left no socket: %v", err)
	}
	l.start(t)
	pid, err := strconv.Atoi(filepath.Base(l.worker(t)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	until(t, "the next process of the module", func() bool { return l.sign(t.Context()) == nil })
}

// TestEnvironment keeps the variable of the PIN from the process of the module.
func TestEnvironment(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	softhsmtest.Setenv(t, "AGENT_PIN", softhsmtest.PIN)
	l.start(t, "--pin-source", "env:AGENT_PIN")
	environ, err := os.ReadFile(filepath.Join(l.worker(t), "environ"))
	if err != nil {
		softhsmtest.NeedRoot(t) // the process is not dumpable
		t.Fatal(err)
	}
	if strings.Contains(string(environ), "AGENT_PIN") || !strings.Contains(string(environ), "SHIM_LOG=") {
		t.Errorf("the environment is %q", environ)
	}
}

// TestOtherUser closes the connections of other users, also when they can reach the socket.
func TestOtherUser(t *testing.T) {
	softhsmtest.NeedRoot(t)
	softhsmtest.Parallel(t)
	l := newLife(t)
	log := filepath.Join(t.TempDir(), "log")
	softhsmtest.Setenv(t, "NOTATION_HSM_LOG", log)
	l.start(t)
	ask := func(as ...string) (string, error) {
		args := append(as, softhsmtest.Program(t, "curl"), "--silent", "--show-error", "--unix-socket", l.socket,
			"http://broker"+brokerapi.AgentPath)
		stdout, stderr, err := softhsmtest.Try(t, "", args[0], args[1:]...)
		return stdout + stderr, err
	}
	nobody := []string{softhsmtest.Program(t, "setpriv"), "--reuid", "65534", "--regid", "65534", "--clear-groups"}
	if out, err := ask(); err != nil || !strings.Contains(out, `"token"`) {
		t.Fatalf("root is refused: %v, %s", err, out)
	}
	if out, err := ask(nobody...); err == nil || strings.Contains(out, "token") {
		t.Errorf("another user: %s", out)
	}
	for path, mode := range map[string]os.FileMode{l.socket: 0o666, filepath.Dir(l.socket): 0o755} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := ask(nobody...); err == nil || strings.Contains(out, "token") {
		t.Errorf("another user who can reach the socket: %s", out)
	}
	if closed := softhsmtest.Read(t, log); !strings.Contains(closed, "user 65534 is not the agent's user") {
		t.Errorf("another user has not reached the socket: %s", closed)
	}
	if err := l.sign(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestActivation signs by notation through a socket that the service manager has made: the agent is started by the
// first connection, and who asks for the key gets the failure of the login.
func TestActivation(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	n := softhsmtest.NewNotation(t, l.token)
	activate := func(t *testing.T, more ...string) *softhsmtest.Service {
		t.Helper()
		args := []string{"--listen", l.socket}
		for _, variable := range softhsmtest.Environ(t) {
			args = append(args, "--setenv", variable)
		}
		service := softhsmtest.Start(t, softhsmtest.Program(t, "systemd-socket-activate"),
			append(append(args, l.program), l.args(more...)...)...)
		if !service.Ready(func() bool { _, err := os.Stat(l.socket); return err == nil }) {
			t.Fatal(service.Output.String())
		}
		return service
	}
	softhsmtest.Write(t, l.pin, "1111")
	service := activate(t)
	for range 2 {
		if err := l.sign(t.Context()); !failure.Is(err, failure.Denied) || failure.From(err).CKR != "CKR_PIN_INCORRECT" {
			t.Errorf("a wrong PIN: %v", err)
		}
	}
	softhsmtest.Write(t, l.pin, softhsmtest.PIN)
	if code, text := l.control(t, "clear"); code != 0 {
		t.Fatal(code, text)
	}
	_, pem := softhsmtest.NewKey(t, &softhsmtest.Token{Dir: l.token.Dir, Module: softhsmtest.Module(t), Label: "signing"},
		n.Plugin, "EC-256", "images")
	n.Trust(t, pem)
	registry := oci.StartRegistry(t)
	digest, err := oci.PushImage(t.Context(), registry+"/app:v1", "activation")
	if err != nil {
		t.Fatal(err)
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_BROKER", "unix:"+l.socket)
	image := registry + "/app@" + digest.String()
	softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", "broker:images", image)
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
	if code, text := l.control(t, "stop"); code != 0 {
		t.Error(code, text)
	}
	<-service.Ended
	if _, err := os.Stat(l.socket); err != nil {
		t.Errorf("the agent has removed the socket of the service manager: %v", err)
	}
	if !strings.Contains(service.Output.String(), "listening on unix:"+l.socket) || !service.Succeeded() {
		t.Error(service.Output.String())
	}
	if err := os.Remove(l.socket); err != nil {
		t.Fatal(err)
	}

	t.Run("no terminal", func(t *testing.T) {
		activate(t, "--pin-source", "prompt")
		err := l.sign(t.Context())
		if f := failure.From(err); !failure.Is(err, failure.Denied) || !strings.Contains(f.What, "terminal") || f.Hint == "" {
			t.Errorf("%v: %s", err, f.Hint)
		}
		if s := l.status(t); s.Refused != nil {
			t.Errorf("the status says %+v", s)
		}
		if code, text := l.control(t, "stop"); code != 0 {
			t.Error(code, text)
		}
	})
}

// TestPrompt asks for the PIN on the terminal of the agent, at the start and after a lock, and for another one after a
// wrong one.
func TestPrompt(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	terminal := softhsmtest.NewTerminal(t, `PIN for token "signing": `)
	cmd := softhsmtest.Command(t, l.program, l.args("--pin-source", "prompt", "--socket", l.socket)...)
	terminal.Control(cmd)
	cmd.Stdout, cmd.Stderr = terminal.Program(), terminal.Program()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}()
	terminal.Answer(t, softhsmtest.PIN)
	until(t, "the socket", func() bool { return l.sign(t.Context()) == nil })
	// A lock while it asks: the question is over, and the next use asks again.
	for range 2 {
		if code, text := l.control(t, "lock"); code != 0 {
			t.Fatal(code, text)
		}
		signed := make(chan error, 1)
		go func() { signed <- l.sign(t.Context()) }()
		terminal.Asked()
		if code, text := l.control(t, "lock"); code != 0 {
			t.Fatal(code, text)
		}
		if err := <-signed; err == nil {
			t.Error("it has signed without a PIN")
		}
	}
	for _, pin := range []string{"1111", softhsmtest.PIN} {
		if code, text := l.control(t, "lock"); code != 0 {
			t.Fatal(code, text)
		}
		signed := make(chan error, 1)
		go func() { signed <- l.sign(t.Context()) }()
		terminal.Answer(t, pin)
		if err := <-signed; (pin == softhsmtest.PIN) != (err == nil) || err != nil && !failure.Is(err, failure.Denied) {
			t.Errorf("after %s: %v", pin, err)
		}
	}
}

// TestUnits has systemd check the units of deploy/agent.
func TestUnits(t *testing.T) {
	softhsmtest.Parallel(t)
	dir := t.TempDir()
	var files []string
	for _, name := range []string{"hsm-broker-agent.service", "hsm-broker-agent.socket"} {
		text := softhsmtest.Read(t, filepath.Join(softhsmtest.Root(), "deploy", "agent", name))
		installed := strings.ReplaceAll(text, "/usr/local/bin/hsm-broker", softhsmtest.Build(t, "hsm-broker"))
		if name == "hsm-broker-agent.service" && installed == text {
			t.Error("the service starts another program")
		}
		files = append(files, filepath.Join(dir, name))
		softhsmtest.Write(t, files[len(files)-1], installed)
	}
	softhsmtest.Setenv(t, "XDG_RUNTIME_DIR", dir)
	stdout, stderr, err := softhsmtest.Try(t, "", softhsmtest.Program(t, "systemd-analyze"),
		append([]string{"verify", "--user", "--man=no"}, files...)...)
	if err != nil || stdout+stderr != "" {
		t.Errorf("%v\n%s%s", err, stdout, stderr)
	}
}

// TestIdleEnd ends the agent after a time without a use of a key.
func TestIdleEnd(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	out := softhsmtest.Run(t, l.program, l.args("--socket", l.socket, "--idle", "100ms")...)
	if !strings.Contains(out, "listening on unix:"+l.socket) {
		t.Errorf("it ended before it listened: %s", out)
	}
	if _, err := os.Stat(l.socket); err == nil {
		t.Error("the socket is still there")
	}
}

// TestNotify tells the service manager when the agent is ready, and when it ends.
func TestNotify(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	path := filepath.Join(filepath.Dir(l.socket), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	softhsmtest.Setenv(t, "NOTIFY_SOCKET", path)
	service := softhsmtest.Start(t, l.program, l.args("--socket", l.socket)...)
	for _, want := range []string{"READY=1", "STOPPING=1"} {
		buffer := make([]byte, 64)
		n, err := manager.Read(buffer)
		if err != nil || string(buffer[:n]) != want {
			t.Errorf("%q, %v", buffer[:n], err)
		}
		if err := l.sign(t.Context()); (want == "READY=1") != (err == nil) {
			t.Errorf("at %s: %v", want, err)
		}
		if want == "READY=1" {
			service.Signal(t, syscall.SIGTERM)
		}
	}
}

// TestInherited takes one Unix socket with a path in a folder of the user's alone from the service manager, and nothing
// else.
func TestInherited(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	open := filepath.Join(filepath.Dir(l.socket), "open")
	if err := os.Mkdir(open, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		listen []string // the first is connected to
		more   []string
		text   string
	}{
		"two":       {listen: []string{l.socket + "1", l.socket + "2"}, text: `"2" sockets, not one`},
		"abstract":  {listen: []string{"@" + l.socket}, text: "a socket without a path"},
		"TCP":       {listen: []string{softhsmtest.FreeAddresses(t, 1)[0]}, text: "a socket without a path"},
		"open":      {listen: []string{filepath.Join(open, "socket")}, text: "others can enter it"},
		"with path": {listen: []string{l.socket + "3"}, more: []string{"--socket", l.socket}, text: "--socket excludes"},
	} {
		var args []string
		for _, listen := range c.listen {
			args = append(args, "--listen", listen)
		}
		for _, variable := range softhsmtest.Environ(t) {
			args = append(args, "--setenv", variable)
		}
		service := softhsmtest.Start(t, softhsmtest.Program(t, "systemd-socket-activate"),
			append(append(args, l.program), l.args(c.more...)...)...)
		network := "unix"
		if name == "TCP" {
			network = "tcp"
		}
		service.Ready(func() bool {
			conn, err := net.Dial(network, c.listen[0])
			if err == nil {
				conn.Close()
			}
			return false // until the agent has ended
		})
		if out := service.Output.String(); service.Succeeded() || !strings.Contains(out, c.text) || !strings.Contains(out,
			"hint:") {
			t.Errorf("%s: %s", name, out)
		}
	}
	if logins := l.logins(t); logins != 0 {
		t.Errorf("%d logins", logins)
	}
}

// TestConfirmProgram asks by a program before each signature, and keeps the variable of the PIN from it.
func TestConfirmProgram(t *testing.T) {
	softhsmtest.Parallel(t)
	l := newLife(t)
	dir := t.TempDir()
	asked := filepath.Join(dir, "asked")
	program := filepath.Join(dir, "ask")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n{ env; echo \"$1\"; } >> "+asked+"\n! [ -e "+dir+"/no ]\n"),
		0o700); err != nil {
		t.Fatal(err)
	}
	softhsmtest.Setenv(t, "AGENT_PIN", softhsmtest.PIN)
	softhsmtest.Setenv(t, "SSH_ASKPASS", program)
	softhsmtest.Setenv(t, "SSH_ASKPASS_REQUIRE", "force")
	softhsmtest.Setenv(t, "NOTATION_HSM_TIMEOUT", "30s") // a setting; one with a URI may have the PIN
	l.start(t, "--pin-source", "env:AGENT_PIN", "--confirm")
	text := softhsmtest.Read(t, asked)
	if !strings.Contains(text, fmt.Sprintf("sha256:%x", sha256.Sum256(nil))) || !strings.Contains(text,
		"SSH_ASKPASS_PROMPT=confirm") {
		t.Errorf("asked: %s", text)
	}
	if strings.Contains(text, "AGENT_PIN") || strings.Contains(text, "NOTATION_HSM_") || softhsmtest.HasWord(text,
		softhsmtest.PIN) {
		t.Errorf("the program got the PIN: %s", text)
	}
	softhsmtest.Write(t, filepath.Join(dir, "no"), "")
	if err := l.sign(t.Context()); !failure.Is(err, failure.Denied) {
		t.Errorf("not confirmed: %v", err)
	}
	if s := l.status(t); !s.Confirm {
		t.Errorf("the status says %+v", s)
	}
}
