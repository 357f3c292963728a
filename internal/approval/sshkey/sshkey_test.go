package sshkey

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

const passphrase = "correct horse"

// keygen runs ssh-keygen, and returns what it prints.
func keygen(t *testing.T, stdin []byte, args ...string) []byte {
	t.Helper()
	program := exec.CommandContext(t.Context(), softhsmtest.Program(t, "ssh-keygen"), args...)
	program.Stdin = bytes.NewReader(stdin)
	var messages bytes.Buffer
	program.Stderr = &messages
	out, err := program.Output()
	if err != nil {
		t.Fatalf("ssh-keygen %s: %v: %s%s", strings.Join(args, " "), err, out, messages.Bytes())
	}
	return out
}

// makeKey has ssh-keygen make a key, and returns the path of its file.
func makeKey(t *testing.T, passphrase string, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "id")
	keygen(t, nil, append([]string{"-q", "-N", passphrase, "-C", "alice@example.com", "-f", path}, args...)...)
	return path
}

// document returns an approval, in its encoding.
func document(t *testing.T) []byte {
	t.Helper()
	a := approval.Approval{Approver: "id", Decision: approval.Approve, Statement: approval.Hash(nil),
		Time: time.Unix(1_800_000_000, 0)}
	data, err := a.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// verify verifies an envelope with our verifier, as one of a key.
func verify(t *testing.T, public ssh.PublicKey, signature []byte) error {
	t.Helper()
	c := &approval.Credential{Approver: "id", Kind: approval.SSH, Public: public.Marshal()}
	encoded, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	e := &approval.Envelope{Approval: document(t), Credential: approval.Hash(encoded), Signature: signature}
	_, err = e.Verify(c)
	return err
}

func open(t *testing.T, path string, o Options) *Key {
	t.Helper()
	k, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func failed(t *testing.T, err error, kind failure.Kind, text string) {
	t.Helper()
	var f *failure.Error
	if !errors.As(err, &f) || f.Kind != kind || !strings.Contains(f.What, text) || f.Hint == "" {
		t.Errorf("got %v, want %v with %q", err, kind, text)
	}
}

// TestOpenSSH checks that OpenSSH verifies what we sign, and that we verify what OpenSSH signs.
func TestOpenSSH(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-t", "ed25519"}, {"-t", "ecdsa", "-b", "256"}, {"-t", "ecdsa", "-b", "384"},
		{"-t", "ecdsa", "-b", "521"}, {"-t", "rsa", "-b", "2048"}, {"-t", "rsa", "-b", "2048", "-m", "PEM"}} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Parallel()
			path := makeKey(t, "", args...)
			for _, name := range []string{path, path + ".pub"} {
				k := open(t, name, Options{})
				e, err := k.Sign(t.Context(), document(t), "")
				if err != nil {
					t.Fatal(err)
				}
				if err := verify(t, k.Public, e.Signature); err != nil {
					t.Error(err)
				}
				dir := t.TempDir()
				allowed, signature := filepath.Join(dir, "allowed"), filepath.Join(dir, "signature")
				write(t, allowed, append([]byte("alice "), ssh.MarshalAuthorizedKey(k.Public)...))
				write(t, signature, e.Signature)
				out := keygen(t, document(t), "-Y", "verify", "-f", allowed, "-I", "alice", "-n", "approval@notation-hsm",
					"-s", signature)
				if !bytes.Contains(out, []byte("Good")) {
					t.Errorf("%s", out)
				}
			}
			public := open(t, path+".pub", Options{})
			if public.Comment != "alice@example.com" {
				t.Error(public.Comment)
			}
			for _, hash := range []string{"sha256", "sha512"} {
				theirs := keygen(t, document(t), "-Y", "sign", "-n", "approval@notation-hsm", "-O", "hashalg="+hash, "-f", path)
				if err := verify(t, public.Public, theirs); err != nil {
					t.Error(hash, err)
				}
			}
			theirs := keygen(t, document(t), "-Y", "sign", "-n", "login@notation-hsm", "-f", path)
			failed(t, verify(t, public.Public, theirs), failure.Denied, "namespace")
		})
	}
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestPassphrase checks that a passphrase is asked for when it is needed, and that a wrong one is refused.
func TestPassphrase(t *testing.T) {
	t.Parallel()
	path := makeKey(t, passphrase, "-t", "ed25519")
	var answer string
	var askErr error
	asked := 0
	k := open(t, path, Options{Passphrase: func(_ context.Context, of string) ([]byte, error) {
		if asked++; of != path {
			t.Errorf("it asks for %s", of)
		}
		return []byte(answer), askErr
	}})
	if asked > 0 {
		t.Error("opening a key asks for its passphrase")
	}
	answer = "wrong"
	_, err := k.Sign(t.Context(), document(t), "")
	failed(t, err, failure.Denied, "passphrase is wrong")
	answer = passphrase
	e, err := k.Sign(t.Context(), document(t), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, k.Public, e.Signature); err != nil {
		t.Error(err)
	}
	askErr = errors.New("no terminal")
	if _, err = k.Sign(t.Context(), document(t), ""); !errors.Is(err, askErr) {
		t.Error(err)
	}
	_, err = open(t, path, Options{}).Sign(t.Context(), document(t), "")
	failed(t, err, failure.Denied, "has a passphrase")
}

// startAgent starts ssh-agent, and returns its socket.
func startAgent(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	program := exec.CommandContext(t.Context(), softhsmtest.Program(t, "ssh-agent"), "-D", "-a", socket)
	out, err := program.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := program.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = program.Process.Kill()
		_ = program.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // it listens before it prints
		t.Fatal(err)
	}
	return socket
}

// TestAgent checks that keys in a real agent sign, by the file of the public key.
func TestAgent(t *testing.T) {
	t.Parallel()
	socket := startAgent(t)
	for _, args := range [][]string{{"-t", "ed25519"}, {"-t", "rsa", "-b", "2048"}, {"-t", "ecdsa"}} {
		path := makeKey(t, "", args...)
		add := exec.CommandContext(t.Context(), softhsmtest.Program(t, "ssh-add"), path)
		add.Env = append(os.Environ(), "SSH_AUTH_SOCK="+socket)
		if out, err := add.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		k := open(t, path+".pub", Options{Agent: socket})
		e, err := k.Sign(t.Context(), document(t), "")
		if err != nil {
			t.Fatal(err)
		}
		if err := verify(t, k.Public, e.Signature); err != nil {
			t.Error(err)
		}
	}
	path := makeKey(t, "", "-t", "ed25519")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for _, socket := range []string{socket, "", filepath.Join(t.TempDir(), "none")} {
		_, err := open(t, path+".pub", Options{Agent: socket}).Sign(t.Context(), document(t), "")
		failed(t, err, failure.NotFound, "no agent has its private key")
	}
}

// ourAgent is an agent with one key, which it may refuse to use.
type ourAgent struct {
	agent.Agent
	public ssh.PublicKey
	sign   func(data []byte) (*ssh.Signature, error)
}

func (a *ourAgent) List() ([]*agent.Key, error) {
	return []*agent.Key{{Format: a.public.Type(), Blob: a.public.Marshal()}}, nil
}

func (a *ourAgent) Sign(_ ssh.PublicKey, data []byte) (*ssh.Signature, error) { return a.sign(data) }

// serve serves an agent, and returns its socket.
func serve(t *testing.T, a agent.Agent) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent")
	if err != nil {
		t.Fatal(err)
	}
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		listener.Close()
		os.RemoveAll(dir)
	})
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				_ = agent.ServeAgent(a, connection)
			}()
		}
	}()
	return listener.Addr().String()
}

// TestAgentRefuses checks that a refusal of the agent's user is final, that a wrong signature is noticed, and that
// waiting for the user ends with the context.
func TestAgentRefuses(t *testing.T) {
	t.Parallel()
	path := makeKey(t, passphrase, "-t", "ed25519")
	public := open(t, path, Options{}).Public
	ask := func(context.Context, string) ([]byte, error) {
		t.Error("it asks for a passphrase though the agent has the key")
		return nil, errors.New("not asked")
	}
	refuses := serve(t, &ourAgent{public: public, sign: func([]byte) (*ssh.Signature, error) {
		return nil, errors.New("refused")
	}})
	_, err := open(t, path, Options{Agent: refuses, Passphrase: ask}).Sign(t.Context(), document(t), "")
	failed(t, err, failure.Denied, "agent failed")

	lies := serve(t, &ourAgent{public: public, sign: func([]byte) (*ssh.Signature, error) {
		return &ssh.Signature{Format: ssh.KeyAlgoED25519, Blob: make([]byte, 64)}, nil
	}})
	_, err = open(t, path, Options{Agent: lies, Passphrase: ask}).Sign(t.Context(), document(t), "")
	failed(t, err, failure.Internal, "wrong")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	defer close(done)
	waits := serve(t, &ourAgent{public: public, sign: func([]byte) (*ssh.Signature, error) {
		cancel()
		<-done
		return nil, errors.New("too late")
	}})
	_, err = open(t, path, Options{Agent: waits, Passphrase: ask}).Sign(ctx, document(t), "")
	if failed(t, err, failure.Denied, "agent failed"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// securityKey is a FIDO security key in software.
type securityKey struct {
	private ed25519.PrivateKey
	public  ssh.PublicKey
	path    string // of the file that OpenSSH has of one: with a handle, and no private key
}

func newSecurityKey(t *testing.T) *securityKey {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s := &securityKey{private: private, path: filepath.Join(t.TempDir(), "id_ed25519_sk")}
	wire := ssh.Marshal(struct {
		Type        string
		Key         []byte
		Application string
	}{ssh.KeyAlgoSKED25519, public, "ssh:"})
	if s.public, err = ssh.ParsePublicKey(wire); err != nil {
		t.Fatal(err)
	}
	file := append([]byte("openssh-key-v1\x00"), ssh.Marshal(struct {
		Cipher, KDF, KDFOptions string
		Keys                    uint32
		Public, Private         []byte
	}{"none", "none", "", 1, wire, []byte("a handle")})...)
	write(t, s.path, pem.EncodeToMemory(&pem.Block{Type: "OPENSSH PRIVATE KEY", Bytes: file}))
	return s
}

// sign signs as a key that was touched.
func (s *securityKey) sign(data []byte) (*ssh.Signature, error) {
	application, message := sha256.Sum256([]byte("ssh:")), sha256.Sum256(data)
	rest := []byte{1, 0, 0, 0, 9}
	signed := append(append(application[:], rest...), message[:]...)
	return &ssh.Signature{Format: ssh.KeyAlgoSKED25519, Blob: ed25519.Sign(s.private, signed), Rest: rest}, nil
}

// signer is a security key as ssh has keys.
type signer struct{ *securityKey }

func (s signer) PublicKey() ssh.PublicKey { return s.public }

func (s signer) Sign(_ io.Reader, data []byte) (*ssh.Signature, error) { return s.sign(data) }

// TestSecurityKeyInAgent checks that an agent with a security key signs.
func TestSecurityKeyInAgent(t *testing.T) {
	t.Parallel()
	s := newSecurityKey(t)
	k := open(t, s.path, Options{Agent: serve(t, &ourAgent{public: s.public, sign: s.sign})})
	e, err := k.Sign(t.Context(), document(t), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, s.public, e.Signature); err != nil {
		t.Error(err)
	}
}

// TestSecurityKeyByKeygen checks that ssh-keygen is asked to sign with a security key, and that what it says reaches
// the user. No security key is there, so that a program in its place gives a signature that the test has made.
func TestSecurityKeyByKeygen(t *testing.T) {
	s := newSecurityKey(t)
	dir := t.TempDir()
	signature, err := armour(signer{s}, document(t), "approval@notation-hsm")
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "signature"), signature)
	script := fmt.Sprintf("#!/bin/sh\necho \"$*\" >%[1]s/args\ncat >%[1]s/stdin\necho 'Confirm user presence' >&2\n"+
		"cat %[1]s/signature\n", dir)
	if err := os.WriteFile(filepath.Join(dir, "ssh-keygen"), []byte(script),
		0o700); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	var messages bytes.Buffer
	e, err := open(t, s.path, Options{Messages: &messages}).Sign(t.Context(), document(t), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, s.public, e.Signature); err != nil {
		t.Error(err)
	}
	args, _ := os.ReadFile(filepath.Join(dir, "args"))
	stdin, _ := os.ReadFile(filepath.Join(dir, "stdin"))
	if string(args) != "-Y sign -n approval@notation-hsm -f "+s.path+"\n" || !bytes.Equal(stdin, document(t)) ||
		messages.String() != "Confirm user presence\n" {
		t.Errorf("%s %s %s", args, stdin, &messages)
	}
	write(t, filepath.Join(dir, "signature"), []byte("no signature"))
	_, err = open(t, s.path, Options{}).Sign(t.Context(), document(t), "")
	failed(t, err, failure.Internal, "wrong")
	t.Setenv("PATH", t.TempDir())
	_, err = open(t, s.path, Options{}).Sign(t.Context(), document(t), "")
	failed(t, err, failure.Denied, "ssh-keygen failed")
}

// TestRealKeygen checks that the real ssh-keygen takes the arguments that it gets for a security key.
func TestRealKeygen(t *testing.T) {
	t.Parallel()
	softhsmtest.Program(t, "ssh-keygen")
	path := makeKey(t, "", "-t", "ed25519")
	k := open(t, path, Options{})
	signature, err := k.runKeygen(t.Context(), document(t), "approval@notation-hsm")
	if err != nil {
		t.Fatal(err)
	}
	if err := verify(t, k.Public, signature); err != nil {
		t.Error(err)
	}
}

// TestRefused checks that other files and keys are refused, and other documents not signed.
func TestRefused(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, c := range map[string]struct {
		data string
		kind failure.Kind
		text string
	}{
		"empty": {"", failure.Invalid, "no key"},
		"text":  {"ssh-ed25519 AAAA", failure.Invalid, "no key"},
		"pem": {"-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n", failure.Invalid,
			"no key"},
		"large.pub": {strings.Repeat("a", maxFile+1), failure.Invalid, "larger"},
	} {
		path := filepath.Join(dir, name)
		write(t, path, []byte(c.data))
		_, err := Open(path, Options{})
		failed(t, err, c.kind, c.text)
	}
	_, err := Open(filepath.Join(dir, "none"), Options{})
	failed(t, err, failure.NotFound, "none")
	_, err = Open(makeKey(t, "", "-t", "rsa", "-b", "1024"), Options{})
	failed(t, err, failure.Unsupported, "1024 bits")
	_, err = Open(makeKey(t, passphrase, "-t", "rsa", "-b", "2048", "-m", "PEM"), Options{})
	failed(t, err, failure.Invalid, "OpenSSH's format")
	k := open(t, makeKey(t, "", "-t", "ed25519"), Options{})
	_, err = k.Sign(t.Context(), []byte("something else"), "")
	failed(t, err, failure.Invalid, "approval")
}
