package postgres

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sys/unix"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const (
	maxConnections = 16
	// lifetime is how long a connection is used. Then another one is made, with the password of that time and to the
	// server that takes writes then.
	lifetime = 30 * time.Minute
	jitter   = 5 * time.Minute
	// connectTimeout is how long connecting to each of the hosts may take.
	connectTimeout = 2 * time.Second
	// networkTimeout is how long a connection is kept whose other side does not confirm what it was sent.
	networkTimeout = 4 * time.Second
	maxMessage     = 64 << 20 // bytes of a message of the server
)

// Connect connects to the database of a URL, and returns a pool of connections that the caller closes. Over a network
// it uses TLS and verifies the server. Of several hosts, it uses the one that takes writes, which each new connection
// finds anew, beginning with the one that was found last. password is file:/path, or "" when the URL names a passfile
// or the server needs none.
//
// It fails with Invalid for a malformed URL and for a server whose settings lose data, with Unsupported for a server
// that is not PostgreSQL 15 or newer, with Denied if the credentials are refused, and with Unavailable if no server
// that takes writes is reached. Only the URL and the password count: no environment variable and no file in the user's
// home folder does.
func Connect(ctx context.Context, url, password string) (*pgxpool.Pool, error) {
	a, err := parseURL(url)
	if err != nil {
		return nil, err
	}
	c, err := newCredentials(a, password)
	if err != nil {
		return nil, err
	}
	config, err := c.pool()
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, connectFailure(err)
	}
	if err := pool.Ping(ctx); err != nil {
		pool.Close()
		return nil, connectFailure(err)
	}
	return pool, nil
}

// pool returns the settings of a pool. The library takes settings from the environment only to begin with: all are
// replaced.
func (c *credentials) pool() (*pgxpool.Config, error) {
	for _, variable := range []string{"PGSERVICE", "PGSERVICEFILE"} {
		if os.Getenv(variable) != "" { // it names a file, which the library reads
			return nil, failure.New(failure.Invalid, "the environment variable %s is set", variable).
				WithHint("unset it: the URL of the database says everything")
		}
	}
	// sslmode and the password are set so that the library reads neither certificates nor passwords of the user's.
	config, err := pgxpool.ParseConfig("host=localhost port=5432 sslmode=disable password=none passfile=/dev/null " +
		"sslcert='' sslkey='' sslrootcert='' target_session_attrs=any connect_timeout=3 sslcertmode=allow " +
		"min_protocol_version=3.0 max_protocol_version=3.0 channel_binding=prefer require_auth=''")
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot prepare to connect to the database: %w", err)
	}
	conn := config.ConnConfig
	conn.User, conn.Database, conn.Password = c.user, c.database, ""
	conn.RuntimeParams = map[string]string{"application_name": "hsm-broker"}
	conn.SSLNegotiation, conn.KerberosSpn, conn.KerberosSrvName = "", "", ""
	conn.ConnectTimeout = connectTimeout
	conn.DialFunc = c.dial
	conn.ValidateConnect = c.validate
	conn.OnNotice = noteWarning
	conn.MaxProtocolMessageBodyLen = maxMessage
	// Without TLS, whoever listens on the port would get the password.
	if conn.RequireAuth = "!md5"; c.plain {
		conn.RequireAuth = "!md5,!password"
	}
	conn.DefaultQueryExecMode = pgx.QueryExecModeExec // prepared statements are lost behind a pooler
	conn.StatementCacheCapacity, conn.DescriptionCacheCapacity = 0, 0

	config.BeforeConnect = c.set
	config.MaxConns, config.MinConns, config.MinIdleConns = maxConnections, 0, 0
	config.MaxConnLifetime, config.MaxConnLifetimeJitter = lifetime, jitter
	config.MaxConnIdleTime = 5 * time.Minute
	config.HealthCheckPeriod = 30 * time.Second
	config.PingTimeout = networkTimeout
	return config, nil
}

// dial connects to a host by its address. A cut network is noticed within networkTimeout, whether there is something
// to send or not. Without TLS, only this machine is dialed, whatever localhost stands for.
func (c *credentials) dial(ctx context.Context, network, address string) (net.Conn, error) {
	if network != "unix" && c.plain {
		name, _, err := net.SplitHostPort(address)
		if err != nil || !net.ParseIP(name).IsLoopback() {
			return nil, failure.New(failure.Denied, "%s is not on this machine", address).
				WithHint("set sslmode=verify-full in the URL of the database")
		}
	}
	dialer := &net.Dialer{
		Timeout: connectTimeout,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 2 * time.Second, Interval: time.Second,
			Count: int(networkTimeout/time.Second) - 2},
		Control: func(network, _ string, raw syscall.RawConn) error {
			if network == "unix" {
				return nil
			}
			var failed error
			err := raw.Control(func(fd uintptr) {
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT,
					int(networkTimeout.Milliseconds()))
			})
			return errors.Join(err, failed)
		},
	}
	return dialer.DialContext(ctx, network, address)
}

// warned is the name in the data of a connection of whether the server has warned on it.
const warned = "warned"

// noteWarning logs a warning of the server, and notes it for takeWarning.
func noteWarning(conn *pgconn.PgConn, notice *pgconn.Notice) {
	if notice.SeverityUnlocalized == "WARNING" {
		slog.Warn("the database server warns", "message", notice.Message, "code", notice.Code)
		conn.CustomData()[warned] = true
	}
}

// takeWarning returns whether the server has warned on a connection since the last call. The warning of a COMMIT can be
// that its transaction is durable on this server but not known to be on the synchronous standby, since the wait for it
// was canceled. That one has no code of its own, and its text is in the server's language.
func takeWarning(conn *pgconn.PgConn) bool {
	data := conn.CustomData()
	_, has := data[warned]
	delete(data, warned)
	return has
}

// cancelNothing has the library send no requests to cancel a statement, as it does for a call that takes too long: a
// canceled COMMIT does not wait for the standby any more, and others read what the standby does not have. A request is
// a connection that is dialed when the one of the statement has been made.
func cancelNothing(config *pgx.ConnConfig) {
	dial := config.DialFunc
	var made atomic.Bool
	config.DialFunc = func(ctx context.Context, network, address string) (net.Conn, error) {
		if made.Load() {
			return nil, errors.New("statements are not canceled")
		}
		return dial(ctx, network, address)
	}
	config.AfterConnect = func(context.Context, *pgconn.PgConn) error {
		made.Store(true)
		return nil
	}
}

// connectFailure returns the failure of the first connection.
func connectFailure(err error) error {
	var known *failure.Error
	if errors.As(err, &known) {
		return failure.New(known.Kind, "cannot connect to the database: %w", known).WithHint(known.Hint)
	}
	kind, hint := failure.Unavailable, "check that the database server runs and that this machine reaches it"
	var refused *pgconn.PgError
	var unverified *tls.CertificateVerificationError
	var unknownAuthority x509.UnknownAuthorityError
	switch {
	case errors.As(err, &unverified), errors.As(err, &unknownAuthority):
		kind, hint = failure.Denied, "set sslrootcert to the CA certificates of the database, "+
			"and use the host that its certificate names"
	case errors.As(err, &refused):
		switch refused.Code {
		case invalidPassword, invalidRole:
			kind, hint = failure.Denied, "check the role, its password, and pg_hba.conf of the server"
		case noDatabase:
			kind, hint = failure.NotFound, "create the database"
		case tooManyConnections:
			hint = "raise max_connections of the server, or connect through a pooler"
		}
	}
	text := strings.Join(strings.Fields(err.Error()), " ") // the library writes a line for each host
	f := failure.New(kind, "cannot connect to the database: %s", text).WithHint(hint)
	f.Err = err
	return f
}
