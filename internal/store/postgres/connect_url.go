package postgres

import (
	"maps"
	"net"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// address is where a database is and how to reach it, as its URL says. No environment variable adds to it.
type address struct {
	user, database string
	hosts          []host
	rootCert       string // path of the CA certificates; "" for those of the system
	cert, key      string // paths of the client's certificate and its key; both or none
	passfile       string // path
	plain          bool   // without TLS, as hosts on this machine may be used
}

// host is one of the servers of a database.
type host struct {
	name string // a name, an IP address, or the folder of a Unix socket
	port uint16
}

const (
	defaultPort = 5432
	maxHosts    = 16 // of one database
	urlHint     = "write store as postgres://ROLE@HOST/DATABASE?sslmode=verify-full&sslrootcert=/path"
)

// parameters are those that a URL may have. libpq knows them all, with the same meaning.
var parameters = []string{"host", "passfile", "port", "sslcert", "sslkey", "sslmode", "sslrootcert",
	"target_session_attrs"}

// invalidURL returns the failure of a URL. It shows no part of it that may be a password.
func invalidURL(format string, args ...any) *failure.Error {
	return failure.New(failure.Invalid, "invalid URL of the database: "+format, args...).WithHint(urlHint)
}

// errPasswordInURL returns the failure of a URL with a password, which would be in config files and lists of processes.
func errPasswordInURL() error {
	return invalidURL("it has a password").WithHint("write the password into a file of mode 0600, " +
		"and set store-password: file:/path")
}

// parseURL parses postgres://ROLE@HOST:PORT,HOST:PORT/DATABASE?NAME=VALUE. Hosts may be in the parameters host and port
// instead, as those of Unix sockets have to be.
func parseURL(text string) (*address, error) {
	rest, found := strings.CutPrefix(text, "postgres://")
	if !found {
		if rest, found = strings.CutPrefix(text, "postgresql://"); !found {
			return nil, invalidURL("it does not begin with postgres://")
		}
	}
	authority, rest := cutBefore(rest, "/?#")
	user, hosts := "", authority
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		user, hosts = authority[:at], authority[at+1:]
	}
	if strings.Contains(user, ":") {
		return nil, errPasswordInURL()
	}
	a := &address{}
	var err error
	if a.user, err = url.PathUnescape(user); err != nil || a.user == "" || strings.Contains(a.user, "\x00") {
		return nil, invalidURL("it names no role")
	}
	path, rest := cutBefore(rest, "?#")
	if a.database, err = url.PathUnescape(strings.TrimPrefix(path, "/")); err != nil || a.database == "" ||
		strings.ContainsAny(a.database, "\x00/") {
		return nil, invalidURL("it names no database")
	}
	if strings.Contains(rest, "#") {
		return nil, invalidURL("it has a fragment").WithHint("write # in a name as %23")
	}
	values, err := a.parameters(strings.TrimPrefix(rest, "?"))
	if err != nil {
		return nil, err
	}
	if err := a.setHosts(hosts, values["host"], values["port"]); err != nil {
		return nil, err
	}
	return a, a.setTLS(values["sslmode"])
}

// cutBefore splits a text before the first of some bytes.
func cutBefore(text, bytes string) (before, after string) {
	if at := strings.IndexAny(text, bytes); at >= 0 {
		return text[:at], text[at:]
	}
	return text, ""
}

// parameters reads the query of a URL.
func (a *address) parameters(query string) (map[string]string, error) {
	parsed, err := url.ParseQuery(query)
	if err != nil {
		return nil, invalidURL("its parameters are malformed")
	}
	values := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(parsed)) {
		switch {
		case name == "password" || name == "sslpassword":
			return nil, errPasswordInURL()
		case !slices.Contains(parameters, name):
			return nil, invalidURL("unknown parameter %q", name).
				WithHint("use only: " + strings.Join(parameters, ", "))
		case len(parsed[name]) > 1:
			return nil, invalidURL("it has the parameter %s more than once", name)
		}
		values[name] = parsed[name][0]
	}
	if attrs := values["target_session_attrs"]; attrs != "" && attrs != "read-write" {
		return nil, invalidURL("target_session_attrs=%s is not supported", attrs).
			WithHint("leave target_session_attrs out: the broker always uses the host that takes writes")
	}
	a.passfile, a.cert, a.key = values["passfile"], values["sslcert"], values["sslkey"]
	if a.rootCert = values["sslrootcert"]; a.rootCert == "system" {
		a.rootCert = ""
	}
	for name, path := range map[string]string{
		"passfile": a.passfile, "sslcert": a.cert, "sslkey": a.key, "sslrootcert": a.rootCert,
	} {
		if path != "" && !filepath.IsAbs(path) {
			return nil, invalidURL("%s is no absolute path", name).WithHint("write " + name + "=/path")
		}
	}
	if (a.cert == "") != (a.key == "") {
		return nil, invalidURL("it has only one of sslcert and sslkey").WithHint("set both, or none")
	}
	return values, nil
}

// setHosts reads the hosts, as between @ and /, or as in the parameters host and port.
func (a *address) setHosts(authority, names, ports string) error {
	if authority == "" {
		if names == "" {
			return invalidURL("it names no host")
		}
		return a.addHosts(strings.Split(names, ","), strings.Split(ports, ","))
	}
	if names != "" || ports != "" {
		return invalidURL("it names hosts twice").WithHint("write the hosts before the name of the database, " +
			"or as the parameter host")
	}
	var of struct{ names, ports []string }
	for part := range strings.SplitSeq(authority, ",") {
		name, port := part, ""
		if colon := strings.LastIndexByte(part, ':'); colon > strings.LastIndexByte(part, ']') {
			name, port = part[:colon], part[colon+1:]
			if port == "" {
				return invalidURL("a host has an empty port")
			}
		}
		if inner, ok := strings.CutPrefix(name, "["); ok {
			if name = strings.TrimSuffix(inner, "]"); name == inner || net.ParseIP(name) == nil {
				return invalidURL("a host is no IP address in brackets")
			}
		}
		if strings.HasPrefix(name, "/") {
			return invalidURL("a host is a path")
		}
		of.names, of.ports = append(of.names, name), append(of.ports, port)
	}
	return a.addHosts(of.names, of.ports)
}

// addHosts adds hosts with their ports. One port counts for all hosts, and no port is PostgreSQL's own.
func (a *address) addHosts(names, ports []string) error {
	if len(names) > maxHosts {
		return invalidURL("it names more than %d hosts", maxHosts)
	}
	if len(ports) != 1 && len(ports) != len(names) {
		return invalidURL("it has %d hosts and %d ports", len(names), len(ports))
	}
	for i, name := range names {
		text := ports[min(i, len(ports)-1)]
		port, err := strconv.ParseUint(text, 10, 16)
		if text == "" {
			port, err = defaultPort, nil
		}
		if err != nil || port == 0 { // it may be a part of a password: it is not shown
			return invalidURL("a port is no number from 1 to 65535")
		}
		if !validHost(name) {
			return invalidURL("a host is neither a name, an IP address nor an absolute path")
		}
		a.hosts = append(a.hosts, host{name, uint16(port)})
	}
	return nil
}

// validHost reports whether a text is the folder of a socket, an IP address, or can be the name of a host.
func validHost(name string) bool {
	if (host{name: name}).socket() || net.ParseIP(name) != nil {
		return !strings.Contains(name, "\x00")
	}
	for _, c := range []byte(name) {
		letter := 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
		if !letter && c != '-' && c != '.' && c != '_' {
			return false
		}
	}
	return name != ""
}

// setTLS decides whether TLS is used: always, but for hosts on this machine with sslmode=disable. A mode between these
// would send what the database holds to whoever answers.
func (a *address) setTLS(mode string) error {
	switch mode {
	case "", "verify-full":
	case "disable":
		for _, h := range a.hosts {
			if !h.local() {
				return invalidURL("sslmode=disable is for this machine only, and %s is not on it", h.name).
					WithHint("set sslmode=verify-full, and sslrootcert to the CA certificates of the database")
			}
		}
		a.plain = true
	default:
		return invalidURL("sslmode=%s does not verify the server", mode).
			WithHint("set sslmode=verify-full, and sslrootcert to the CA certificates of the database")
	}
	return nil
}

// socket reports whether a host is a Unix socket.
func (h host) socket() bool { return strings.HasPrefix(h.name, "/") }

// local reports whether a host is a Unix socket or an address of loopback.
func (h host) local() bool {
	return h.socket() || h.name == "localhost" || net.ParseIP(h.name).IsLoopback()
}
