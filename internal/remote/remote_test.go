package remote

import (
	"bufio"
	"context"
	"crypto"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// listenAs is the variable with the socket to which the test's program listens instead of testing.
const listenAs = "REMOTE_TEST_LISTEN"

func TestMain(m *testing.M) {
	if path := os.Getenv(listenAs); path != "" {
		listener, err := net.Listen("unix", path)
		if err == nil {
			err = os.Chmod(path, 0o777)
		}
		if err != nil {
			os.Exit(1)
		}
		os.Stdout.WriteString("ready\n")
		_, _ = listener.Accept()
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// failsWith verifies the kind of a failure, and that its message has a text.
func failsWith(t *testing.T, err error, kind failure.Kind, text string) {
	t.Helper()
	if !failure.Is(err, kind) || !strings.Contains(err.Error(), text) {
		t.Errorf("the error is %v, not of kind %s with %q", err, kind, text)
	}
}

// TestKey signs a message by the key's name, and lists the keys.
func TestKey(t *testing.T) {
	t.Parallel()
	f, b := newFake(t), New()
	store, k := f.open(t, b)
	signature, err := k.SignMessage(t.Context(), []byte("message"), crypto.SHA256)
	if err != nil || len(signature) == 0 {
		t.Errorf("%x, %v", signature, err)
	}
	if token := store.Describe(); token.URI != "pkcs11:token=signing" || token.Label != "signing" {
		t.Errorf("the token is %+v", token)
	}
	settings := f.settings()
	for name, holds := range map[string]bool{"": true, "signing": true, "other": false} {
		settings.Key = config.URI{Token: name}
		listed, err := b.Open(t.Context(), settings)
		if !holds {
			failsWith(t, err, failure.NotFound, "does not hold the token")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		keys, err := listed.Keys(t.Context())
		if err != nil || len(keys) != 1 {
			t.Errorf("%d keys, %v", len(keys), err)
		}
		listed.Close()
	}
}

// TestAnswers has the broker answer with everything but what the API says. Each answer is refused, and named.
func TestAnswers(t *testing.T) {
	t.Parallel()
	says := func(status int, mediaType, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", mediaType)
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
		}
	}
	problem := func(status int, body string) http.HandlerFunc { return says(status, brokerapi.ProblemType, body) }
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		kind   failure.Kind
		text   string
	}{
		"no JSON":          {says(200, "text/html", "<html>"), failure.Internal, "it is not JSON"},
		"nothing":          {says(200, "application/json", ""), failure.Internal, "it is not JSON"},
		"another type":     {says(200, "application/json", `{"public": 7}`), failure.Internal, "cannot unmarshal"},
		"two names":        {says(200, "application/json", `{"name": "a", "name": "b"}`), failure.Internal, "twice"},
		"no key":           {says(200, "application/json", `{"token": "pkcs11:token=a"}`), failure.Internal, "public key"},
		"no token":         {says(200, "application/json", `{}`), failure.Internal, "token"},
		"deep":             {says(200, "application/json", strings.Repeat("[", 20)), failure.Internal, "invalid answer"},
		"endless":          {endless, failure.Internal, "invalid answer"},
		"a redirect":       {http.RedirectHandler("/v1/keys", http.StatusFound).ServeHTTP, failure.Internal, "302"},
		"no details":       {says(500, "application/json", `{"detail": "x"}`), failure.Internal, "no problem details"},
		"an empty problem": {problem(403, `{}`), failure.Internal, "empty or too long"},
		"a long problem": {problem(403, `{"detail": "`+strings.Repeat("x", detailLimit+1)+`"}`), failure.Internal,
			"too long"},
		"a refusal":         {problem(403, `{"kind": "denied", "detail": "not allowed"}`), failure.Denied, "not allowed"},
		"throttled":         {problem(429, `{"kind": "throttled", "detail": "busy"}`), failure.Throttled, "busy"},
		"a kind of its own": {problem(400, `{"kind": "new", "detail": "x"}`), failure.Internal, "x"},
		"long header": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("X-Long", strings.Repeat("x", 2*headerLimit))
			answer(w, struct{}{})
		}, failure.Unavailable, "exceeded"},
		"a break": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, failure.Unavailable, "EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFake(t)
			f.answers[brokerapi.KeyPath("release")] = c.answer
			_, err := New().Open(t.Context(), f.settings())
			failsWith(t, err, c.kind, c.text)
		})
	}
}

// endless writes more than an answer may have.
func endless(w http.ResponseWriter, _ *http.Request) {
	chunk := []byte(strings.Repeat(" ", 1<<20))
	for range answerLimits.Bytes/len(chunk) + 10 {
		if _, err := w.Write(chunk); err != nil {
			return
		}
	}
}

// TestWrongKey refuses keys, certificates, signatures and layer keys that are none.
func TestWrongKey(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	good := f.key
	f.key.Chain = [][]byte{{1, 2, 3}}
	_, err := New().Open(t.Context(), f.settings())
	failsWith(t, err, failure.Internal, "certificate")
	f.key = good
	f.key.Public = []byte{1, 2, 3}
	_, err = New().Open(t.Context(), f.settings())
	failsWith(t, err, failure.Internal, "public key")
	f.key = good

	_, k := f.open(t, New())
	for name, body := range map[string]brokerapi.Signature{"empty": {}, "wrong": {Signature: []byte{48, 6, 2, 1, 1, 2, 1,
		1}}} {
		f.answers[brokerapi.SignaturesPath("release")] = func(w http.ResponseWriter, _ *http.Request) { answer(w, body) }
		_, err := k.SignMessage(t.Context(), []byte(name), crypto.SHA256)
		failsWith(t, err, failure.Internal, "it does not verify")
	}
	f.answers[brokerapi.LayerKeysPath("release")] = func(w http.ResponseWriter, _ *http.Request) {
		answer(w, brokerapi.LayerKey{})
	}
	_, err = k.(*remoteKey).UnwrapLayerKey(t.Context(), []byte("{}"))
	failsWith(t, err, failure.Internal, "it is empty")
	_, err = k.Sign(t.Context(), make([]byte, 32), crypto.SHA256)
	failsWith(t, err, failure.Denied, "bare hash")
	_, err = k.Decrypt(t.Context(), nil, nil)
	failsWith(t, err, failure.Denied, "does not decrypt")
}

// TestTimeout gives two users of one broker the timeouts of their own settings.
func TestTimeout(t *testing.T) {
	t.Parallel()
	f, b := newFake(t), New()
	f.open(t, b) // with an hour
	held := make(chan struct{})
	defer close(held)
	f.mu.Lock()
	f.answers[brokerapi.KeyPath("release")] = func(http.ResponseWriter, *http.Request) { <-held }
	f.mu.Unlock()
	settings := f.settings()
	settings.Timeout = time.Millisecond
	_, err := b.Open(t.Context(), settings)
	failsWith(t, err, failure.Timeout, "did not answer within 1ms")
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = b.Open(ended, f.settings())
	failsWith(t, err, failure.Internal, "interrupted")
}

// TestClosed closes the connection when its last store is closed.
func TestClosed(t *testing.T) {
	t.Parallel()
	f, b := newFake(t), New()
	first, _ := f.open(t, b)
	second, _ := f.open(t, b)
	for _, store := range []io.Closer{first, first, second} { // closing one twice counts once
		if f.count(http.StateClosed) > 0 {
			t.Error("a connection was closed while a store was open")
		}
		store.Close()
	}
	for f.count(http.StateClosed) == 0 {
		time.Sleep(time.Millisecond)
	}
	if made := f.count(http.StateNew); made != 1 {
		t.Errorf("%d connections were made", made)
	}
}

// TestStaleConnection has the broker close a connection instead of answering to it, as one that was restarted does. The
// request is made again over another connection, with the same idempotency key.
func TestStaleConnection(t *testing.T) {
	t.Parallel()
	f, b := newFake(t), New()
	_, k := f.open(t, b)
	first := true
	f.answers[brokerapi.SignaturesPath("release")] = func(w http.ResponseWriter, r *http.Request) {
		if first {
			first = false
			conn, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				conn.Close()
			}
			return
		}
		f.sign(w, r)
	}
	if _, err := k.SignMessage(t.Context(), []byte("message"), crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	if _, err := k.SignMessage(t.Context(), []byte("other"), crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, r := range f.requests {
		if r.Method == http.MethodPost {
			keys = append(keys, r.Header.Get("Idempotency-Key"))
		}
	}
	if len(keys) != 3 || keys[0] != keys[1] || keys[1] == keys[2] || len(keys[0]) != 66 {
		t.Errorf("the idempotency keys are %q", keys)
	}
}

// TestUnreachable fails with Unavailable for a socket that nobody listens to, and with Denied for another user's.
func TestUnreachable(t *testing.T) {
	t.Parallel()
	f := newFake(t)
	settings := f.settings()
	for name, path := range map[string]string{"no file": filepath.Join(t.TempDir(), "none"), "a folder": t.TempDir()} {
		settings.Broker = "unix:" + path
		_, err := New().Open(t.Context(), settings)
		failsWith(t, err, failure.Unavailable, "cannot reach the broker at unix:"+path)
		if hint := failure.From(err).Hint; !strings.Contains(hint, "hsm-broker agent") {
			t.Errorf("%s: the hint is %q", name, hint)
		}
	}
	link := filepath.Join(t.TempDir(), "link") // as good as what it leads to
	if err := os.Symlink(f.socket, link); err != nil {
		t.Fatal(err)
	}
	settings.Broker = "unix:" + link
	store, err := New().Open(t.Context(), settings)
	if err != nil {
		t.Fatal(err)
	}
	store.Close()
}

// TestAnotherUser refuses a socket to which a process of another user listens.
func TestAnotherUser(t *testing.T) {
	softhsmtest.NeedRoot(t)
	t.Parallel()
	dir, err := os.MkdirTemp("", "remote")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil { //nolint:gosec // it is the point
		t.Fatal(err)
	}
	// The other user may not reach the test's own program.
	program := filepath.Join(dir, "program")
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, data, 0o755); err != nil { //nolint:gosec // as above
		t.Fatal(err)
	}
	const nobody = 65534
	cmd := exec.Command(program)
	cmd.Env = []string{listenAs + "=" + filepath.Join(dir, "s")}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { stdin.Close(); _ = cmd.Wait() }()
	if line, err := bufio.NewReader(stdout).ReadString('\n'); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	_, err = New().Open(t.Context(), &config.Settings{Broker: "unix:" + filepath.Join(dir, "s"),
		Key: config.URI{Broker: true, Object: "release"}, Timeout: time.Hour})
	failsWith(t, err, failure.Denied, "another user (uid 65534) runs it")
}
