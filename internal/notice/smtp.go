package notice

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/smtp"
	"net/textproto"
	"os"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// mailServer is a server that takes mail, over TLS alone.
type mailServer struct {
	address     string      // HOST:PORT
	implicit    bool        // TLS from the first byte on; otherwise STARTTLS
	tls         *tls.Config // for the host
	credentials string      // path of a file; "" for none
}

const (
	maxReplies  = 1 << 20 // bytes that a server may send in one connection
	quitTimeout = 2 * time.Second
)

// send sends a mail over a connection of its own. It ends when ctx does.
func (s *mailServer) send(ctx context.Context, from, to string, mail []byte) (err error) {
	defer func() {
		if err != nil && ctx.Err() != nil { // it has closed the connection
			err = ctx.Err()
		}
		if err != nil {
			err = failure.New(failure.Unavailable, "cannot send mail through %s: %w", s.address, err)
		}
	}()
	plain, err := (&net.Dialer{}).DialContext(ctx, "tcp", s.address)
	if err != nil {
		return err
	}
	defer plain.Close()
	defer context.AfterFunc(ctx, func() { plain.Close() })()
	client, err := s.connect(ctx, &boundedConn{plain, maxReplies})
	if err != nil {
		return err
	}
	if err := s.login(client); err != nil {
		return err
	}
	if err := client.Mail(from); err != nil {
		return err
	}
	if err := client.Rcpt(to); err != nil {
		var refused *textproto.Error
		if errors.As(err, &refused) {
			return &recipientError{err}
		}
		return err
	}
	data, err := client.Data()
	if err != nil {
		return err
	}
	if _, err := data.Write(mail); err != nil {
		return err
	}
	if err := data.Close(); err != nil {
		return err
	}
	_ = plain.SetDeadline(time.Now().Add(quitTimeout)) // the server has the mail, whatever it answers now
	_ = client.Quit()
	return nil
}

// connect returns a client whose connection is TLS. It fails if the server does not have STARTTLS and TLS does not come
// first.
func (s *mailServer) connect(ctx context.Context, plain net.Conn) (*smtp.Client, error) {
	conn := plain
	if s.implicit {
		secure := tls.Client(plain, s.tls)
		if err := secure.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		conn = secure
	}
	client, err := smtp.NewClient(conn, s.tls.ServerName)
	if err != nil {
		return nil, err
	}
	if err := client.Hello(helloName()); err != nil {
		return nil, err
	}
	if s.implicit {
		return client, nil
	}
	if ok, _ := client.Extension("STARTTLS"); !ok {
		return nil, errors.New("the server does not have STARTTLS")
	}
	return client, client.StartTLS(s.tls)
}

// helloName returns the name by which this host says hello.
func helloName() string {
	name, err := os.Hostname()
	if err != nil || name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return "localhost"
	}
	return name
}

// login presents the credentials, if there are any. It is called once the connection is TLS.
func (s *mailServer) login(client *smtp.Client) error {
	if s.credentials == "" {
		return nil
	}
	c, err := readCredentials(s.credentials)
	if err != nil {
		return err
	}
	_, mechanisms := client.Extension("AUTH")
	for _, mechanism := range strings.Fields(strings.ToUpper(mechanisms)) {
		switch mechanism {
		case "PLAIN":
			return client.Auth(smtp.PlainAuth("", c.Username, c.Password, s.tls.ServerName))
		case "LOGIN":
			return client.Auth(&loginAuth{answers: []string{c.Username, c.Password}})
		}
	}
	return errors.New("the server has neither of the mechanisms PLAIN and LOGIN")
}

// loginAuth is the mechanism LOGIN, which the standard library does not have.
type loginAuth struct{ answers []string }

// Start begins. It fails without TLS.
func (a *loginAuth) Start(server *smtp.ServerInfo) (string, []byte, error) {
	if !server.TLS {
		return "", nil, errors.New("the connection is not TLS")
	}
	return "LOGIN", nil, nil
}

// Next answers the questions of the server: for the username, then for the password.
func (a *loginAuth) Next(_ []byte, more bool) ([]byte, error) {
	if !more {
		return nil, nil
	}
	if len(a.answers) == 0 {
		return nil, errors.New("the server asks for more than a username and a password")
	}
	answer := a.answers[0]
	a.answers = a.answers[1:]
	return []byte(answer), nil
}

// boundedConn is a connection from which a number of bytes can be read.
type boundedConn struct {
	net.Conn
	left int
}

// Read reads up to the bound, and then fails.
func (c *boundedConn) Read(into []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("the server sent too much")
	}
	n, err := c.Conn.Read(into[:min(len(into), c.left)])
	c.left -= n
	return n, err
}
