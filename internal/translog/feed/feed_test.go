package feed

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const origin = "broker.example.com/log"

// entry returns the entry at an index.
func entry(index int64) []byte {
	return fmt.Appendf(nil, `{"n":%d,"time":"2026-01-02T03:04:05.678Z","type":"signed"}`, index)
}

// testLog is a log that a test lets grow.
type testLog struct {
	sync.Mutex
	size int64
}

func (l *testLog) grow(size int64) {
	l.Lock()
	defer l.Unlock()
	l.size = size
}

func (l *testLog) log() Log {
	return Log{
		Origin: origin,
		Size: func(context.Context) (int64, error) {
			l.Lock()
			defer l.Unlock()
			return l.size, nil
		},
		Entries: func(_ context.Context, first, end int64, each func(int64, []byte) error) error {
			for i := first; i < end; i++ {
				if err := each(i, entry(i)); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// run runs a feed until the test ends, and returns a function that waits until a position was saved.
func run(t *testing.T, f *Feed, from int64) (wait func(position int64)) {
	t.Helper()
	f.backoff = func(int) time.Duration { return time.Millisecond }
	saved := make(chan int64, 1000)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- f.Run(ctx, from, func(_ context.Context, position int64) error {
			saved <- position
			return nil
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("the feed ended: %v", err)
		}
	})
	return func(position int64) {
		t.Helper()
		f.Notify()
		for p := range saved {
			if p >= position {
				return
			}
		}
	}
}

func newFeed(t *testing.T, c Config, l *testLog) *Feed {
	t.Helper()
	f, err := New(c, l.log(), "1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestFile appends to a file with a line that was cut off, which is rotated, and starts in the middle of the log.
func TestFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.json")
	if err := os.WriteFile(path, []byte(`{"cut`), 0o600); err != nil {
		t.Fatal(err)
	}
	l := &testLog{size: 700}
	f := newFeed(t, Config{File: path}, l)
	wait := run(t, f, 2)
	wait(700)
	if f.Position() != 700 {
		t.Errorf("position %d", f.Position())
	}
	rotated := path + ".1"
	if err := os.Rename(path, rotated); err != nil {
		t.Fatal(err)
	}
	l.grow(701)
	wait(701)
	first, err := os.ReadFile(rotated)
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(first)+string(second)), "\n")
	if len(lines) != 700 || lines[0] != `{"cut` {
		t.Fatalf("%d lines, first %q", len(lines), lines[0])
	}
	for i, line := range lines[1:] {
		want := fmt.Sprintf(`{"log":"%s","index":%d,"entry":%s}`, origin, i+2, entry(int64(i+2)))
		if line != want {
			t.Fatalf("line %d is %s, want %s", i, line, want)
		}
	}
}

// TestSyslogUDP receives messages of RFC 5424 in datagrams.
func TestSyslogUDP(t *testing.T) {
	t.Parallel()
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l := &testLog{size: 3}
	f := newFeed(t, Config{Syslog: "udp://" + server.LocalAddr().String(), Format: "cef"}, l)
	f.sink.(*syslog).host = "host"
	run(t, f, 0)(3)
	for i := range 3 {
		data := make([]byte, 1<<16)
		n, _, err := server.ReadFrom(data)
		if err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf(`<109>1 2026-01-02T03:04:05.678Z host hsm-broker - signed - CEF:0|notation-hsm|hsm-broker|1.2.3|`+
			`signed|signed|3|rt=1767323045678 externalId=%d cs1Label=log cs1=%s msg=%s`, i, origin, entry(int64(i)))
		if got := string(data[:n]); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	padded := bytes.Replace(entry(5), []byte("{"), []byte(`{"a":"`+strings.Repeat("x", maxDatagram)+`",`), 1)
	large := f.sink.(*syslog).message(record{5, padded})
	if len(large) > 1000 || !strings.Contains(string(large), `"truncated":true`) {
		t.Errorf("an entry larger than a datagram: %.2000s", large)
	}
}

// receive reads messages with their lengths before them, until it has read the one that ends with the last entry.
func receive(t *testing.T, from io.Reader, last int64) (messages []string) {
	t.Helper()
	reader := bufio.NewReader(from)
	for {
		length, err := reader.ReadString(' ')
		if err != nil {
			t.Fatalf("after %d messages: %v", len(messages), err)
		}
		n, err := strconv.Atoi(strings.TrimSpace(length))
		if err != nil {
			t.Fatal(err)
		}
		message := make([]byte, n)
		if _, err := io.ReadFull(reader, message); err != nil {
			t.Fatal(err)
		}
		messages = append(messages, string(message))
		if bytes.Contains(message, entry(last)) {
			return messages
		}
	}
}

// TestSyslogTCP loses its connection and connects again.
func TestSyslogTCP(t *testing.T) {
	t.Parallel()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	l := &testLog{size: 300}
	f := newFeed(t, Config{Syslog: "tcp://" + server.Addr().String()}, l)
	wait := run(t, f, 0)
	for round := range 3 {
		conn, err := server.Accept()
		if err != nil {
			t.Fatal(err)
		}
		last := int64(300 + round - 1)
		messages := receive(t, conn, last)
		if want := []int{300, 1, 1}[round]; len(messages) != want ||
			!strings.HasPrefix(messages[0], "<109>1 2026-01-02T03:04:05.678Z ") ||
			!strings.HasSuffix(messages[0], fmt.Sprintf(`"entry":%s}`, entry(last+1-int64(want)))) {
			t.Errorf("round %d: %d messages, first %s", round, len(messages), messages[0])
		}
		wait(last + 1)
		if err := conn.Close(); err != nil {
			t.Fatal(err)
		}
		l.grow(last + 2)
		f.Notify()
	}
}

// TestSyslogTLS verifies the server's certificate.
func TestSyslogTLS(t *testing.T) {
	t.Parallel()
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS() // for its certificate
	defer web.Close()
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	ca := writeCertificate(t, web)
	messages := make(chan []string, 2)
	go func() {
		for {
			conn, err := server.Accept()
			if err != nil {
				return
			}
			go serveTLS(t, web, conn, messages)
		}
	}()
	address := "tls://" + server.Addr().String()
	l := &testLog{size: 4}
	wait := run(t, newFeed(t, Config{Syslog: address, CA: ca}, l), 0)
	wait(4)
	if got := <-messages; len(got) != 4 {
		t.Errorf("%d messages", len(got))
	}
	l.grow(5)
	wait(5)
	if got := <-messages; len(got) != 1 { // over the same connection, after session tickets
		t.Errorf("then %d messages", len(got))
	}
	distrusting := newFeed(t, Config{Syslog: address}, &testLog{size: 4})
	if _, err := distrusting.deliver(t.Context(), 0); !failure.Is(err, failure.Unavailable) {
		t.Errorf("a server whose certificate no authority issued: %v", err)
	}
}

// writeCertificate writes the certificate of a server to a file.
func writeCertificate(t *testing.T, server *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	data := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func serveTLS(t *testing.T, web *httptest.Server, conn net.Conn, messages chan<- []string) {
	secure := tls.Server(conn, web.TLS)
	if err := secure.Handshake(); err != nil {
		_ = conn.Close()
		return
	}
	messages <- receive(t, secure, 3)
	messages <- receive(t, secure, 4)
}

// TestWebhook delivers to a server that fails, redirects, and then answers; and checks signatures as a receiver does.
func TestWebhook(t *testing.T) {
	t.Parallel()
	secret := []byte("0123456789abcdef0123456789abcdef")
	path := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(path, []byte("whsec_"+base64.StdEncoding.EncodeToString(secret)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	type request struct {
		header http.Header
		body   []byte
	}
	requests := make(chan request, 100)
	calls := 0
	server := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		requests <- request{r.Header, body}
		if r.URL.Path != "/hook" {
			t.Errorf("a request to %s: the redirect was followed", r.URL)
		}
		if calls++; calls == 1 {
			w.WriteHeader(http.StatusInternalServerError)
		} else if calls == 2 {
			http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
		}
	}))
	defer server.Close()
	ca := writeCertificate(t, server)
	f := newFeed(t, Config{Webhook: server.URL + "/hook?token=x", Secret: path, CA: ca}, &testLog{size: 300})
	if f.Name() != server.URL {
		t.Errorf("name %s", f.Name())
	}
	run(t, f, 0)(300)
	if len(requests) != 4 {
		t.Fatalf("%d requests", len(requests))
	}
	next, id := int64(0), ""
	for i := range 4 {
		r := <-requests
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(r.header.Get("webhook-id") + "." + r.header.Get("webhook-timestamp") + "."))
		mac.Write(r.body)
		if r.header.Get("webhook-signature") != "v1,"+base64.StdEncoding.EncodeToString(mac.Sum(nil)) {
			t.Errorf("request %d: signature %s", i, r.header.Get("webhook-signature"))
		}
		var message struct {
			Type string
			Data struct {
				Log     string
				First   int64
				Entries []json.RawMessage
			}
		}
		if err := json.Unmarshal(r.body, &message); err != nil {
			t.Fatal(err)
		}
		if i > 0 && i < 3 && r.header.Get("webhook-id") != id {
			t.Errorf("request %d: another identifier for the same entries", i)
		}
		id = r.header.Get("webhook-id")
		if i == 3 {
			next = batchEntries
		}
		if message.Type != "log.entries" || message.Data.Log != origin || message.Data.First != next ||
			!bytes.Equal(message.Data.Entries[0], entry(next)) {
			t.Errorf("request %d: %.300s", i, r.body)
		}
	}
}

// TestSaveFails goes on when a position could not be saved, and fails for entries that the log does not have.
func TestSaveFails(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log.json")
	f := newFeed(t, Config{File: path}, &testLog{size: 1})
	f.backoff = func(int) time.Duration { return 0 }
	ctx, cancel := context.WithCancel(t.Context())
	calls := 0
	err := f.Run(ctx, 0, func(context.Context, int64) error {
		if calls++; calls == 1 {
			cancel()
		}
		return errors.New("the database is locked")
	})
	if !errors.Is(err, context.Canceled) || calls != 1 {
		t.Errorf("%d calls: %v", calls, err)
	}
	f.log.Entries = func(_ context.Context, _, _ int64, each func(int64, []byte) error) error { return each(1, entry(1)) }
	if next, err := f.deliver(t.Context(), 0); !failure.Is(err, failure.Internal) || next != 0 {
		t.Errorf("a log without its first entry: %d: %v", next, err)
	}
	f.log.Entries = func(context.Context, int64, int64, func(int64, []byte) error) error { return nil }
	if next, err := f.deliver(t.Context(), 0); !failure.Is(err, failure.Internal) || next != 0 {
		t.Errorf("a log without its entries: %d: %v", next, err)
	}
}

// TestCEF escapes what CEF must escape.
func TestCEF(t *testing.T) {
	t.Parallel()
	f := formatter{log: `a=b\c`, version: "1|2", cef: true}
	got := string(f.line(record{7, []byte(`{"time":"2026-01-02T03:04:05Z","type":"a|b\\=\n","x":"=|\\"}`)}))
	want := `CEF:0|notation-hsm|hsm-broker|1\|2|a\|b\\= |a\|b\\= |3|rt=1767323045000 externalId=7 cs1Label=log ` +
		`cs1=a\=b\\c msg={"time":"2026-01-02T03:04:05Z","type":"a|b\\\\\=\\n","x":"\=|\\\\"}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// TestConfig verifies which configs are refused.
func TestConfig(t *testing.T) {
	t.Parallel()
	short := filepath.Join(t.TempDir(), "short")
	if err := os.WriteFile(short, []byte("whsec_YWJj"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]Config{
		"nothing":        {},
		"two":            {File: "/a", Syslog: "udp://127.0.0.1"},
		"relative path":  {File: "a"},
		"format":         {File: "/a", Format: "xml"},
		"secret of file": {File: "/a", Secret: short},
		"scheme":         {Syslog: "http://127.0.0.1"},
		"path":           {Syslog: "tcp://127.0.0.1/path"},
		"ca of tcp":      {Syslog: "tcp://127.0.0.1", CA: short},
		"ca":             {Syslog: "tls://127.0.0.1", CA: short},
		"http":           {Webhook: "http://example.com/"},
		"no host":        {Webhook: "https:///"},
		"user":           {Webhook: "https://user:password@example.com/"},
		"no secret":      {Webhook: "https://example.com/", Secret: short + "x"},
		"short secret":   {Webhook: "https://example.com/", Secret: short},
	} {
		if _, err := New(c, Log{}, ""); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := New(Config{Webhook: "http://127.0.0.1:1/"}, Log{}, ""); err != nil {
		t.Error(err)
	}
}

// TestBackoff verifies that the wait grows up to its limit.
func TestBackoff(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 7: time.Minute,
		1000000: time.Minute} {
		if got := backoff(failures); got != want {
			t.Errorf("after %d failures %v, want %v", failures, got, want)
		}
	}
}
