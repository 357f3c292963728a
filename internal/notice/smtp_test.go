package notice

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http/httptest"
	"net/mail"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/broker"
)

// mailbox is a mail server with the certificate of a web server.
type mailbox struct {
	t        *testing.T
	web      *httptest.Server // for its certificate
	listener net.Listener
	implicit bool   // TLS comes first
	extends  string // with what, after STARTTLS
	plain    string // before STARTTLS
	refuse   string // recipient that is refused
	password string
	hang     func(verb string) // is called before each answer

	sync.Mutex
	mails   []received
	clear   []string // commands that came without TLS
	replies map[string]string
}

// received is a mail that a mailbox has.
type received struct{ from, to, user, data string }

// newMailbox starts a server. change may change it before.
func newMailbox(t *testing.T, change func(*mailbox)) *mailbox {
	t.Helper()
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	t.Cleanup(web.Close)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &mailbox{t: t, web: web, listener: listener, extends: "AUTH PLAIN LOGIN", plain: "STARTTLS",
		password: "pass word", hang: func(string) {}, replies: map[string]string{}}
	if change != nil {
		change(b)
	}
	var group sync.WaitGroup
	group.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			group.Go(func() { b.serve(conn) })
		}
	})
	t.Cleanup(func() { listener.Close(); group.Wait() })
	return b
}

// seen returns what the server has got.
func (b *mailbox) seen() (mails []received, unencrypted []string) {
	b.Lock()
	defer b.Unlock()
	return slices.Clone(b.mails), slices.Clone(b.clear)
}

// channel returns the channel that sends mail to the server.
func (b *mailbox) channel() Channel {
	scheme := "smtp"
	if b.implicit {
		scheme = "smtps"
	}
	return Channel{Name: "mail", Email: scheme + "://" + b.listener.Addr().String(), From: "hsm-broker@example.com",
		CA: writeCA(b.t, b.web), Credentials: writeFile(b.t, "username: broker\npassword: pass word\n")}
}

// serve speaks SMTP (RFC 5321) until the client goes.
func (b *mailbox) serve(conn net.Conn) {
	defer func() { conn.Close() }()
	secure := b.implicit
	if secure {
		conn = tls.Server(conn, b.web.TLS)
	}
	lines := bufio.NewReader(conn)
	say := func(text string) { fmt.Fprintf(conn, "%s\r\n", text) }
	read := func() (string, bool) {
		line, err := lines.ReadString('\n')
		return strings.TrimRight(line, "\r\n"), err == nil
	}
	answer := func(verb, text string) bool {
		b.hang(verb)
		b.Lock()
		defer b.Unlock()
		if other, exists := b.replies[verb]; exists {
			say(other)
			return strings.HasPrefix(other, "2") || strings.HasPrefix(other, "3")
		}
		say(text)
		return true
	}
	answer("", "220 ready")
	var m received
	for {
		line, ok := read()
		if !ok {
			return
		}
		if !secure {
			b.Lock()
			b.clear = append(b.clear, line)
			b.Unlock()
		}
		verb, rest, _ := strings.Cut(line, " ")
		switch strings.ToUpper(verb) {
		case "EHLO":
			extensions := b.plain
			if secure {
				extensions = b.extends
			}
			for _, one := range strings.Split("mailbox\n"+extensions, "\n") {
				fmt.Fprintf(conn, "250-%s\r\n", one)
			}
			say("250 8BITMIME")
		case "STARTTLS":
			if !answer("STARTTLS", "220 go on") {
				continue
			}
			conn = tls.Server(conn, b.web.TLS)
			lines, secure = bufio.NewReader(conn), true
		case "AUTH":
			m.user = b.login(rest, say, read)
			if m.user == "" {
				say("535 no")
				continue
			}
			say("235 yes")
		case "MAIL":
			m.from = rest
			answer("MAIL", "250 ok")
		case "RCPT":
			m.to = rest
			if b.refuse != "" && strings.Contains(rest, b.refuse) {
				say("550 5.1.1 no such user")
				continue
			}
			answer("RCPT", "250 ok")
		case "DATA":
			if !answer("DATA", "354 go on") {
				continue
			}
			for {
				line, ok := read()
				if !ok {
					return
				}
				if line == "." {
					break
				}
				m.data += strings.TrimPrefix(line, ".") + "\r\n"
			}
			b.Lock()
			if b.replies["BODY"] == "" {
				b.mails = append(b.mails, m)
			}
			b.Unlock()
			answer("BODY", "250 ok")
			m = received{}
		case "QUIT":
			answer("QUIT", "221 bye")
			return
		default:
			say("502 what?")
		}
	}
}

// login returns the user of an AUTH command, or "".
func (b *mailbox) login(rest string, say func(string), read func() (string, bool)) string {
	mechanism, first, _ := strings.Cut(rest, " ")
	var user, password string
	switch mechanism {
	case "PLAIN":
		data, err := base64.StdEncoding.DecodeString(first)
		if parts := strings.Split(string(data), "\x00"); err == nil && len(parts) == 3 {
			user, password = parts[1], parts[2]
		}
	case "LOGIN":
		for _, one := range []struct {
			question string
			into     *string
		}{{"Username:", &user}, {"Password:", &password}} {
			say("334 " + base64.StdEncoding.EncodeToString([]byte(one.question)))
			line, _ := read()
			data, err := base64.StdEncoding.DecodeString(line)
			if err != nil {
				return ""
			}
			*one.into = string(data)
		}
	}
	if password != b.password {
		return ""
	}
	return user
}

// contacts are those of the tests.
var contacts = map[string]string{"alice": "alice@example.com", "bob": "bob.b+tag@example.com"}

// TestMail sends mail over TLS that comes first and after STARTTLS, with both mechanisms and without credentials.
func TestMail(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(*mailbox){
		"starttls": nil,
		"tls":      func(b *mailbox) { b.implicit = true },
		"login":    func(b *mailbox) { b.extends = "AUTH CRAM-MD5 LOGIN" },
		"no user":  func(b *mailbox) { b.extends = "SIZE" },
	} {
		b := newMailbox(t, change)
		c := b.channel()
		user := "broker"
		if name == "no user" {
			c.Credentials, user = "", ""
		}
		f := newFixture(t, Config{Channels: []Channel{c}, Contacts: contacts})
		f.queue(event("r1", broker.NoticePending))
		rows := f.waiting()
		f.drain(t.Context(), f.channels[0])
		f.drain(t.Context(), f.channels[0])
		mails, unencrypted := b.seen()
		if len(f.waiting()) != 0 || len(mails) != 2 {
			t.Fatalf("%s: %d rows, %d mails", name, len(f.waiting()), len(mails))
		}
		for i, m := range mails {
			address := contacts[rows[i].Recipient]
			parsed, err := mail.ReadMessage(strings.NewReader(m.data))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(parsed.Body)
			if err != nil {
				t.Fatal(err)
			}
			if m.user != user || !strings.HasPrefix(m.to, "TO:<"+address+">") || parsed.Header.Get("To") != address ||
				!strings.HasPrefix(m.from, "FROM:<hsm-broker@example.com>") ||
				parsed.Header.Get("Message-ID") != "<"+rows[i].ID+"@example.com>" ||
				!strings.Contains(string(body), publicURL+"/requests/r1") {
				t.Errorf("%s: %+v", name, m)
			}
		}
		for _, line := range unencrypted {
			if !strings.HasPrefix(line, "EHLO ") && line != "STARTTLS" {
				t.Errorf("%s: without TLS, the server got %q", name, line)
			}
		}
	}
}

// TestMailFails keeps notices, and says nothing to a server that it does not trust.
func TestMailFails(t *testing.T) {
	t.Parallel()
	for name, one := range map[string]struct {
		change func(*mailbox)
		spoil  func(*Channel)
		want   string
	}{
		"no starttls":      {func(b *mailbox) { b.plain = "AUTH PLAIN" }, nil, "does not have STARTTLS"},
		"starttls refused": {func(b *mailbox) { b.replies["STARTTLS"] = "454 no" }, nil, "454"},
		"untrusted":        {nil, func(c *Channel) { c.CA = "" }, "certificate"},
		"untrusted tls":    {func(b *mailbox) { b.implicit = true }, func(c *Channel) { c.CA = "" }, "certificate"},
		"another host": {nil, func(c *Channel) { c.Email = strings.Replace(c.Email, "127.0.0.1", "localhost", 1) },
			"localhost"},
		"password":       {func(b *mailbox) { b.password = "other" }, nil, "535"},
		"mechanisms":     {func(b *mailbox) { b.extends = "AUTH XOAUTH2" }, nil, "neither of the mechanisms"},
		"busy":           {func(b *mailbox) { b.replies[""] = "421 busy" }, nil, "421"},
		"sender":         {func(b *mailbox) { b.replies["MAIL"] = "550 who?" }, nil, "550"},
		"data":           {func(b *mailbox) { b.replies["DATA"] = "554 no" }, nil, "554"},
		"body":           {func(b *mailbox) { b.replies["BODY"] = "552 too large" }, nil, "552"},
		"endless reply":  {func(b *mailbox) { b.replies[""] = strings.Repeat("220-x\r\n", 1<<19) }, nil, "sent too much"},
		"endless line":   {func(b *mailbox) { b.replies[""] = "220 " + strings.Repeat("x", 4<<20) }, nil, "sent too much"},
		"nobody listens": {nil, func(c *Channel) { c.Email = "smtps://127.0.0.1:1" }, "refused"},
	} {
		b := newMailbox(t, one.change)
		c := b.channel()
		if one.spoil != nil {
			one.spoil(&c)
		}
		f := newFixture(t, Config{Channels: []Channel{c}, Contacts: contacts})
		f.queue(event("r1", broker.NoticePending))
		rows := f.waiting()
		err := f.channels[0].sender.send(t.Context(), &rows[0])
		if err == nil || !strings.Contains(err.Error(), one.want) || strings.Contains(err.Error(), "pass word") {
			t.Errorf("%s: %.300v", name, err)
		}
		mails, unencrypted := b.seen()
		for _, line := range unencrypted {
			if !strings.HasPrefix(line, "EHLO ") && line != "STARTTLS" {
				t.Errorf("%s: without TLS, the server got %q", name, line)
			}
		}
		if len(mails) != 0 {
			t.Errorf("%s: %d mails", name, len(mails))
		}
	}
}

// TestMailHangs ends when its time is over, wherever the server hangs.
func TestMailHangs(t *testing.T) {
	t.Parallel()
	for _, verb := range []string{"", "STARTTLS", "MAIL", "BODY"} {
		hang := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		b := newMailbox(t, func(b *mailbox) {
			b.hang = func(at string) {
				if at == verb {
					cancel()
					<-hang
				}
			}
		})
		f := newFixture(t, Config{Channels: []Channel{b.channel()}, Contacts: contacts})
		f.queue(event("r1", broker.NoticePending))
		rows := f.waiting()
		if err := f.channels[0].sender.send(ctx, &rows[0]); err == nil || !strings.Contains(err.Error(), "context canceled") {
			t.Errorf("it hangs at %q: %v", verb, err)
		}
		close(hang)
	}
}

// TestMailRecipient lets one recipient that the server refuses delay nobody else.
func TestMailRecipient(t *testing.T) {
	t.Parallel()
	b := newMailbox(t, func(b *mailbox) { b.refuse = "alice" })
	f := newFixture(t, Config{Channels: []Channel{b.channel()}, Contacts: contacts})
	f.queue(event("r1", broker.NoticePending))
	if pause := f.drain(t.Context(), f.channels[0]); pause != pollInterval {
		t.Errorf("the channel pauses for %s", pause)
	}
	rows := f.waiting()
	mails, _ := b.seen()
	if len(rows) != 1 || rows[0].Recipient != "alice" || rows[0].Attempts != 1 || len(mails) != 1 {
		t.Errorf("%+v, %d mails", rows, len(mails))
	}
	f.Notices = f.another(Config{Channels: []Channel{b.channel()}, Contacts: map[string]string{"bob": "bob@example.com"}},
		f.store)
	f.clock.advance(time.Hour)
	f.drain(t.Context(), f.channels[0])
	if rows := f.waiting(); len(rows) != 0 {
		t.Errorf("a person without a contact: %+v", rows)
	}
}
