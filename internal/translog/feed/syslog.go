package feed

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	webhooks "github.com/notation-hsm/notation-hsm/internal/webhook"
)

// syslog sends messages of RFC 5424: over UDP (RFC 5426), or over TCP (RFC 6587) or TLS (RFC 5425) with their lengths
// before them. A syslog server confirms nothing.
type syslog struct {
	network, address string
	tls              *tls.Config // nil without TLS
	host             string
	format           formatter
	conn             net.Conn // nil before the first message and after a failure
}

const (
	priority    = 13*8 + 5 // facility log audit, severity notice
	maxDatagram = 65_000
)

func newSyslog(c Config, f formatter) (*syslog, error) {
	u, err := webhooks.ParseURL(c.Syslog, "udp", "tcp", "tls")
	if err != nil {
		return nil, err
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"udp": "514", "tcp": "514", "tls": "6514"}[u.Scheme]
	}
	if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" {
		return nil, fmt.Errorf("%s has more than a host and a port", c.Syslog)
	}
	s := &syslog{network: u.Scheme, address: net.JoinHostPort(u.Hostname(), port), format: f, host: "-"}
	if name, err := os.Hostname(); err == nil {
		s.host = printable(name, 255)
	}
	if u.Scheme == "tls" {
		roots, err := webhooks.ReadCA(c.CA)
		if err != nil {
			return nil, err
		}
		s.network, s.tls = "tcp", &tls.Config{ServerName: u.Hostname(), RootCAs: roots, MinVersion: tls.VersionTLS12}
	} else if c.CA != "" {
		return nil, fmt.Errorf("ca is for tls:// and https:// alone")
	}
	return s, nil
}

// printable returns a field of the header: printable ASCII without spaces, "-" for nothing.
func printable(text string, limit int) string {
	clean := strings.Map(func(r rune) rune {
		if r < '!' || r > '~' {
			return '_'
		}
		return r
	}, text)
	if clean == "" {
		return "-"
	}
	return clean[:min(len(clean), limit)]
}

// message returns an entry as a message.
func (s *syslog) message(r record) []byte {
	e := eventOf(r.entry)
	timestamp := "-"
	if !e.Time.IsZero() {
		timestamp = e.Time.UTC().Format("2006-01-02T15:04:05.999999Z07:00")
	}
	header := fmt.Sprintf("<%d>1 %s %s hsm-broker - %s - ", priority, timestamp, s.host, printable(e.Type, 32))
	line := s.format.line(r)
	if s.network == "udp" && len(header)+len(line) > maxDatagram {
		line = s.format.line(record{r.index, fmt.Appendf(nil, `{"truncated":true,"type":%q}`, printable(e.Type, 32))})
	}
	return append([]byte(header), line...)
}

func (s *syslog) send(ctx context.Context, records []record) error {
	if err := s.write(ctx, records); err != nil {
		if s.conn != nil {
			_ = s.conn.Close()
			s.conn = nil
		}
		return failure.New(failure.Unavailable, "cannot send to syslog %s: %w", s.address, err)
	}
	return nil
}

func (s *syslog) write(ctx context.Context, records []record) error {
	if err := s.connect(ctx); err != nil {
		return err
	}
	if deadline, ok := ctx.Deadline(); ok {
		_ = s.conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var stream []byte
	for _, r := range records {
		message := s.message(r)
		if s.network == "udp" {
			if _, err := s.conn.Write(message); err != nil {
				return err
			}
			continue
		}
		stream = append(fmt.Appendf(stream, "%d ", len(message)), message...)
	}
	if len(stream) == 0 {
		return nil
	}
	_, err := s.conn.Write(stream)
	return err
}

// closed reports whether the server has closed a connection. It discards what the server sent, such as TLS session
// tickets, and does not wait.
func closed(conn net.Conn) bool {
	transport := conn
	if secure, ok := conn.(*tls.Conn); ok {
		transport = secure.NetConn()
	}
	for range 16 { // a server that keeps sending is open
		switch n, err := peek(transport); {
		case errors.Is(err, unix.EAGAIN):
			return false
		case err != nil || n == 0:
			return true
		}
		// After a ticket, and after a part of a TLS record, the read would wait for more.
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		var failed net.Error
		if _, err := conn.Read(make([]byte, 4096)); err != nil && (!errors.As(err, &failed) || !failed.Timeout()) {
			return true
		}
	}
	return false
}

// peek returns how many bytes can be read without waiting, up to one; 0 after the end.
func peek(conn net.Conn) (n int, err error) {
	control, ok := conn.(*net.TCPConn)
	if !ok {
		return 0, errors.New("it is not a TCP connection")
	}
	raw, err := control.SyscallConn()
	if err != nil {
		return 0, err
	}
	err2 := raw.Control(func(fd uintptr) {
		n, _, err = unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	})
	return n, errors.Join(err2, err)
}

// connect connects, unless there is a connection that the server has not closed.
func (s *syslog) connect(ctx context.Context) error {
	if s.conn != nil && s.network == "tcp" && closed(s.conn) {
		_ = s.conn.Close()
		s.conn = nil
	}
	if s.conn != nil {
		return nil
	}
	var err error
	if s.tls != nil {
		s.conn, err = (&tls.Dialer{Config: s.tls}).DialContext(ctx, s.network, s.address)
	} else {
		s.conn, err = (&net.Dialer{}).DialContext(ctx, s.network, s.address)
	}
	if err != nil {
		s.conn = nil // not an interface that holds nil
	}
	return err
}
