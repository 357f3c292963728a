package notice

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"mime"
	"mime/quotedprintable"
	"net"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/store"
	"github.com/notation-hsm/notation-hsm/internal/webhook"
)

// emailSender sends a mail to each person.
type emailSender struct {
	server   mailServer
	from     string
	contacts map[string]string
}

func newEmail(c Channel, o Options) (*emailSender, []mistake) {
	var all []mistake
	u, err := webhook.ParseURL(c.Email, "smtps", "smtp")
	if err == nil && (strings.Trim(u.Path, "/") != "" || u.RawQuery != "") {
		err = errors.New("it has more than a host and a port")
	}
	if err != nil {
		return nil, []mistake{{".email", "write it like smtps://mail.example.com:465", err}}
	}
	port := u.Port()
	if port == "" {
		port = map[string]string{"smtps": "465", "smtp": "587"}[u.Scheme]
	}
	if !isAddress(c.From) {
		all = append(all, mistake{".from", "write it like hsm-broker@example.com",
			fmt.Errorf("%.100q is not an address of mail", c.From)})
	}
	roots, err := webhook.ReadCA(c.CA)
	if err != nil {
		all = append(all, mistakeOf(".ca", err))
	}
	if c.Credentials != "" {
		if _, err := readCredentials(c.Credentials); err != nil {
			all = append(all, mistakeOf(".credentials", err))
		}
	}
	return &emailSender{from: c.From, contacts: o.Contacts, server: mailServer{
		address: net.JoinHostPort(u.Hostname(), port), implicit: u.Scheme == "smtps", credentials: c.Credentials,
		tls: &tls.Config{ServerName: u.Hostname(), RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}, all
}

func (s *emailSender) send(ctx context.Context, n *store.Notice) error {
	to := s.contacts[n.Recipient]
	if to == "" {
		return &neverError{fmt.Errorf("%q has no contact any more", n.Recipient)}
	}
	m, err := decode(n.Body)
	if err != nil {
		return &neverError{err}
	}
	return s.server.send(ctx, s.from, to, m.mail(n.ID, s.from, to))
}

// mail returns a message as a mail (RFC 5322). from and to are addresses that isAddress accepts.
func (m *message) mail(id, from, to string) []byte {
	var mail bytes.Buffer
	_, domain, _ := strings.Cut(from, "@")
	title := strings.ReplaceAll(m.title(), "=?", "=\ufffd") // or what is in it could be read as an encoded word
	subject := strings.ReplaceAll(mime.QEncoding.Encode("utf-8", title), "?= =?", "?=\r\n =?")
	for _, header := range []string{
		"Date: " + m.Time.Format(time.RFC1123Z), "From: " + from, "To: " + to, "Subject: " + subject,
		"Message-ID: <" + id + "@" + domain + ">", // the same when the same is sent again
		"Auto-Submitted: auto-generated",          // RFC 3834: nothing answers by itself
		"MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8", "Content-Transfer-Encoding: quoted-printable",
	} {
		mail.WriteString(header + "\r\n")
	}
	mail.WriteString("\r\n")
	body := quotedprintable.NewWriter(&mail)
	_, _ = body.Write([]byte(m.text())) // to a buffer, which does not fail
	_ = body.Close()
	return mail.Bytes()
}

// text returns a message as plain text. The page comes before all that others have written.
func (m *message) text() string {
	text := m.title() + "\n\nPage: " + m.Data.URL + "\n"
	for _, l := range m.lines() {
		text += l.label + ": " + l.value + "\n"
	}
	if closing := m.closing(); closing != "" {
		text += "\n" + closing + "\n"
	}
	return text
}
