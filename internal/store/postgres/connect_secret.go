package postgres

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgpassfile"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

const (
	maxPassword = 16 << 10 // bytes of the file; tokens of clouds are long
	maxCerts    = 1 << 20  // bytes of a file of certificates, or of many passwords
)

// credentials are what a broker proves to a database who it is with. The files are read for each connection, so that
// they can be replaced while the broker runs.
type credentials struct {
	*address
	password string       // path of the file with the password, or ""
	first    atomic.Int32 // index of the host that a connection was made to last: the next one tries it first
}

// newCredentials returns the credentials of an address. password is file:/path, or "".
func newCredentials(a *address, password string) (*credentials, error) {
	if password == "" {
		return &credentials{address: a}, nil
	}
	path, found := strings.CutPrefix(password, "file:")
	path = strings.TrimPrefix(path, "//")
	if !found || !filepath.IsAbs(path) { // it is not shown: it may be the password itself
		return nil, failure.New(failure.Invalid, "store-password is malformed").WithHint("write it as file:/path")
	}
	if a.passfile != "" {
		return nil, failure.New(failure.Invalid, "the password of the database is in two files").
			WithHint("set store-password, or passfile in the URL, but not both")
	}
	return &credentials{address: a, password: path}, nil
}

// set reads the files, and sets the password and the TLS settings of a connection that is about to be made.
func (c *credentials) set(_ context.Context, config *pgx.ConnConfig) error {
	var err error
	if config.Password, err = c.readPassword(); err != nil {
		return err
	}
	var shared *tls.Config
	if !c.plain {
		if shared, err = c.readTLS(); err != nil {
			return err
		}
	}
	config.Fallbacks = nil
	for i := range c.hosts {
		h := c.hosts[(i+int(c.first.Load()))%len(c.hosts)]
		var settings *tls.Config // nil for a socket, as in libpq
		if shared != nil && !h.socket() {
			settings = shared.Clone()
			settings.ServerName = h.name
		}
		if i == 0 {
			config.Host, config.Port, config.TLSConfig = h.name, h.port, settings
			continue
		}
		config.Fallbacks = append(config.Fallbacks,
			&pgconn.FallbackConfig{Host: h.name, Port: h.port, TLSConfig: settings})
	}
	cancelNothing(config)
	return nil
}

// validate checks a server that has just been connected to, and remembers its host: of two hosts, one that answers
// nothing would take connectTimeout of each new connection.
func (c *credentials) validate(ctx context.Context, conn *pgconn.PgConn) error {
	if err := checkServer(ctx, conn); err != nil {
		return err
	}
	address, ok := conn.Conn().RemoteAddr().(*net.TCPAddr)
	if !ok {
		return nil
	}
	name := address.IP.String()
	if secured, ok := conn.Conn().(*tls.Conn); ok && secured.ConnectionState().ServerName != "" { // as for IP addresses
		name = secured.ConnectionState().ServerName
	}
	for i, h := range c.hosts {
		if int(h.port) == address.Port && (c.plain || strings.EqualFold(h.name, name)) {
			c.first.Store(int32(i)) //nolint:gosec // at most maxHosts
		}
	}
	return nil
}

// readPassword returns the password, or "" when no file is named.
func (c *credentials) readPassword() (string, error) {
	switch {
	case c.password != "":
		data, err := readPrivate("the password of the database", c.password, maxPassword)
		if err != nil {
			return "", err
		}
		line, _, _ := bytes.Cut(data, []byte("\n"))
		if line = bytes.TrimSuffix(line, []byte("\r")); len(line) == 0 {
			return "", failure.New(failure.Denied,
				"cannot read the password of the database: the first line of %s is empty", c.password).
				WithHint("write the password into the first line")
		}
		return string(line), nil
	case c.passfile != "":
		return c.findPassword()
	}
	return "", nil
}

// findPassword returns the first password in the passfile that is for one of the hosts. All hosts have the same roles:
// they are copies of one another.
func (c *credentials) findPassword() (string, error) {
	data, err := readPrivate("the passwords of databases", c.passfile, maxCerts)
	if err != nil {
		return "", err
	}
	passwords, err := pgpassfile.ParsePassfile(bytes.NewReader(data))
	if err != nil { // the cause may be a part of a line
		return "", failure.New(failure.Denied, "cannot read the passwords of databases: %s is malformed", c.passfile).
			WithHint("write lines HOST:PORT:DATABASE:ROLE:PASSWORD")
	}
	for _, h := range c.hosts {
		name := h.name
		if h.socket() {
			name = "localhost"
		}
		port := strconv.Itoa(int(h.port))
		if found := passwords.FindPassword(name, port, c.database, c.user); found != "" {
			return found, nil
		}
	}
	return "", failure.New(failure.Denied, "%s has no password for role %s of database %s", c.passfile, c.user,
		c.database).WithHint("add a line HOST:PORT:DATABASE:ROLE:PASSWORD with the host as in the URL of the database")
}

// readTLS reads the CA certificates, and the client's own.
func (c *credentials) readTLS() (*tls.Config, error) {
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.rootCert != "" {
		data, err := readPublic("the CA certificates of the database", c.rootCert, maxCerts)
		if err != nil {
			return nil, err
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(data) {
			return nil, failure.New(failure.Invalid, "%s has no certificate", c.rootCert).
				WithHint("set sslrootcert to a file of PEM certificates")
		}
	}
	if c.cert == "" {
		return settings, nil
	}
	cert, err := readPublic("the certificate for the database", c.cert, maxCerts)
	if err != nil {
		return nil, err
	}
	key, err := readPrivate("the key for the database", c.key, maxCerts)
	if err != nil {
		return nil, err
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot use the certificate %s with the key %s: %w", c.cert, c.key,
			err).WithHint("set sslcert and sslkey to PEM files that belong together")
	}
	settings.Certificates = []tls.Certificate{pair}
	return settings, nil
}

// readPrivate returns the content of a file that only this user can read, and nobody else but root can change.
func readPrivate(what, path string, limit int) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, unreadable(what, err)
	}
	if mode := info.Mode(); mode.Perm()&0o077 != 0 {
		return nil, failure.New(failure.Denied, "cannot read %s: others can read %s (mode %04o)", what, path,
			mode.Perm()).WithHint("run: chmod 600 " + path + " (for a Kubernetes secret: defaultMode: 0400)")
	}
	return readPublic(what, path, limit)
}

// readPublic returns the content of a file that nobody but this user and root can change.
func readPublic(what, path string, limit int) ([]byte, error) {
	if err := ownership.Check(path, os.Geteuid()); err != nil {
		cause := failure.From(err)
		return nil, failure.New(cause.Kind, "cannot read %s: %w", what, cause).WithHint(cause.Hint)
	}
	data, err := bound.ReadFile(path, limit)
	if err != nil {
		return nil, unreadable(what, err)
	}
	return data, nil
}

func unreadable(what string, err error) error {
	return failure.New(failure.FileKind(err), "cannot read %s: %w", what, err).
		WithHint("check the path, and that this user can read the file")
}
