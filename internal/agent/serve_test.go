package agent

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// serve has an agent listen, and returns a function that connects to it.
func (s *server) serve(t *testing.T) (dial func() net.Conn) {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") // the path of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "socket")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.agent.Serve(ctx, listener) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return func() net.Conn {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
}

// text returns a request for a signature as it is sent.
func text(label string) string {
	body, _ := json.Marshal(brokerapi.SignatureRequest{Payload: notation("ES256", time.Now()), Algorithm: "ECDSA-SHA-256"})
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: broker\r\nContent-Type: application/json\r\n"+
		"Content-Length: %d\r\n\r\n%s", brokerapi.SignaturesPath(label), len(body), body)
}

// status sends text and returns the status of the answer; 0 if the connection is closed without one.
func status(conn net.Conn, text string) int {
	if _, err := io.WriteString(conn, text); err != nil {
		return 0
	}
	return readStatus(bufio.NewReader(conn))
}

func readStatus(in *bufio.Reader) int {
	answer, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0
	}
	defer answer.Body.Close()
	_, _ = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode
}

// until waits for a condition on what callers use.
func (s *server) until(condition func(httpapi.Use) bool) {
	for !condition(s.agent.limits.Use()) {
		time.Sleep(time.Millisecond)
	}
}

// TestManyConnections serves a new caller while another holds as many connections as there can be.
func TestManyConnections(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	dial := s.serve(t)
	kept := dial()
	if got := status(kept, text("release")); got != 201 {
		t.Fatal(got)
	}
	idle := []net.Conn{}
	for range httpapi.MaxConnections + 100 {
		conn := dial()
		_, _ = io.WriteString(conn, "POST /v1/keys/release/signatures HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
		idle = append(idle, conn)
	}
	s.until(func(u httpapi.Use) bool { return u.Connections == httpapi.MaxConnections })
	if got := status(dial(), text("release")); got != 201 {
		t.Errorf("a new caller: %d", got)
	}
	for _, conn := range idle {
		conn.Close()
	}
	s.until(func(u httpapi.Use) bool { return u.Connections <= 2 && u.Requests == 0 && u.Large == 0 })
}

// TestCallerLeaves ends the call of a caller that closes its connection, and no other.
func TestCallerLeaves(t *testing.T) {
	t.Parallel()
	waiting := make(chan context.Context)
	goOn := make(chan struct{})
	s := newServer(t, func(o *Options) {
		o.Confirm = func(ctx context.Context, _ string, _ *payload.Artifact) error {
			waiting <- ctx
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-goOn:
				return nil
			}
		}
	})
	dial := s.serve(t)
	leaving, staying := dial(), dial()
	for _, conn := range []net.Conn{leaving, staying} {
		if _, err := io.WriteString(conn, text("release")); err != nil {
			t.Fatal(err)
		}
	}
	contexts := []context.Context{<-waiting, <-waiting}
	leaving.Close()
	select {
	case <-contexts[0].Done():
	case <-contexts[1].Done():
	}
	s.until(func(u httpapi.Use) bool { return u.Requests == 1 })
	close(goOn)
	if got := readStatus(bufio.NewReader(staying)); got != 201 {
		t.Errorf("the caller that stayed: %d", got)
	}
	if got := s.module.Calls("Sign"); got != 1 {
		t.Errorf("%d signatures", got)
	}
}

// TestPipelined answers requests that a caller sends at once one after the other.
func TestPipelined(t *testing.T) {
	t.Parallel()
	s := newServer(t, nil)
	conn := s.serve(t)()
	garbage := "GET / HTTP/1.1\r\nHost: x\r\n\r\n"
	go func() { _, _ = io.WriteString(conn, strings.Repeat(text("release")+garbage, 10)+"\x00\x01\r\n\r\n") }()
	in := bufio.NewReader(conn)
	for range 10 {
		if first, second := readStatus(in), readStatus(in); first != 201 || second != 404 {
			t.Errorf("%d, %d", first, second)
		}
	}
	if last := readStatus(in); last != 400 {
		t.Errorf("garbage: %d", last)
	}
	if _, err := in.ReadByte(); !errors.Is(err, io.EOF) {
		t.Errorf("the connection is open: %v", err)
	}
}

// pipes is a listener in memory, whose deadlines follow the clock of a synctest bubble.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	if conn, open := <-p.conns; open {
		return conn, nil
	}
	return nil, net.ErrClosed
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.conns) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

func (p *pipes) dial() net.Conn {
	client, server := net.Pipe()
	p.conns <- server
	return client
}

// TestTime bounds how long callers take, and waits for a person for longer.
func TestTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, func(o *Options) {
			o.Confirm = func(context.Context, string, *payload.Artifact) error {
				time.Sleep(3 * time.Minute)
				return nil
			}
		})
		listener := &pipes{conns: make(chan net.Conn)}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- s.agent.Serve(ctx, listener) }()

		slow := listener.dial()
		if got := status(slow, "GET /v1/keys/release HTTP/1.1\r\nHost: "); got != 0 {
			t.Errorf("slow headers: %d", got)
		}
		slow = listener.dial()
		whole := text("release")
		if got := status(slow, whole[:len(whole)-1]); got != 408 {
			t.Errorf("a slow body: %d", got)
		}
		patient := listener.dial()
		start := time.Now()
		if got := status(patient, text("release")); got != 201 || time.Since(start) < 3*time.Minute {
			t.Errorf("a slow person: %d after %s", got, time.Since(start))
		}
		if got := status(patient, text("other")); got != 404 {
			t.Errorf("the next request: %d", got)
		}
		deaf := listener.dial()
		_, _ = io.WriteString(deaf, text("release")) // and does not read the answer
		time.Sleep(4 * time.Minute)
		s.until(func(u httpapi.Use) bool { return u.Requests == 0 })
		time.Sleep(2 * httpapi.IdleTime)
		s.until(func(u httpapi.Use) bool { return u.Connections == 0 })
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestServeEnds answers the requests in flight before it returns.
func TestServeEnds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var answered atomic.Bool
		s := newServer(t, func(o *Options) {
			o.Confirm = func(context.Context, string, *payload.Artifact) error {
				time.Sleep(time.Second)
				return nil
			}
		})
		listener := &pipes{conns: make(chan net.Conn)}
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan int)
		go func() {
			status := status(listener.dial(), text("release"))
			answered.Store(true)
			got <- status
		}()
		go func() {
			time.Sleep(time.Millisecond)
			cancel()
		}()
		if err := s.agent.Serve(ctx, listener); err != nil || !answered.Load() {
			t.Errorf("answered is %v, %v", answered.Load(), err)
		}
		if status := <-got; status != 201 {
			t.Error(status)
		}
	})
}
