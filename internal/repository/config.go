package repository

import (
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// Config lists the registries that may be asked.
type Config struct {
	Registries []Registry `yaml:"registries"`
}

// Registry is a registry and what it needs.
type Registry struct {
	Host        string   `yaml:"host"`        // HOST or HOST:PORT, as in the names of its images
	Credentials string   `yaml:"credentials"` // a file, see Credentials; "" for none
	CA          string   `yaml:"ca"`          // PEM file with the issuers of its certificates; "": those of the system
	PlainHTTP   bool     `yaml:"plain-http"`  // HTTP without TLS; for a loopback host alone
	Loopback    bool     `yaml:"loopback"`    // host names may resolve to loopback addresses
	Hosts       []string `yaml:"hosts"`       // other hosts for tokens and redirects, HOST or HOST:PORT
}

// Credentials is the content of a credentials file, in YAML: a username and a password, or a token that is sent to the
// registry as it is (Bearer).
type Credentials struct {
	Username string `yaml:"username"`
	Password string `yaml:"password"`
	Token    string `yaml:"token"`
}

const (
	dockerHub     = "docker.io"            // in the names of images
	dockerHubHost = "registry-1.docker.io" // the host that serves them

	maxCredentials = 64 << 10 // bytes of a credentials file
	maxCA          = 1 << 20  // bytes of a CA file
)

// Check returns every mistake in the configuration, including files that cannot be used.
func (c Config) Check() []error {
	_, mistakes := c.read()
	return mistakes
}

// read returns the registries by the host in the names of their images, or every mistake.
func (c Config) read() (map[string]*registry, []error) {
	registries := map[string]*registry{}
	var mistakes []error
	for i, settings := range c.Registries {
		r, found := settings.read()
		for _, err := range found {
			e := failure.From(err)
			mistakes = append(mistakes, failure.New(e.Kind, "registry %d (%s): %w", i+1, settings.Host, err).
				WithHint(e.Hint))
		}
		if r == nil {
			continue
		}
		if registries[r.name] != nil {
			mistakes = append(mistakes, failure.New(failure.Invalid, "registry %d (%s): %s is listed twice", i+1,
				settings.Host, r.name).WithHint("remove one of the two"))
		}
		registries[r.name] = r
	}
	return registries, mistakes
}

// read returns the registry, or nil and every mistake.
func (s Registry) read() (*registry, []error) {
	var mistakes []error
	mistake := func(hint, format string, args ...any) {
		mistakes = append(mistakes, failure.New(failure.Invalid, format, args...).WithHint(hint))
	}
	const hostHint = "write HOST or HOST:PORT, without https:// and a path"
	r := &registry{settings: s, hosts: map[string]bool{}, literals: map[netip.Addr]bool{}, scheme: "https",
		lookup: lookup}
	if s.PlainHTTP {
		r.scheme = "http"
	}
	address, err := parseHost(s.Host)
	if err != nil {
		mistake(hostHint, "host: %w", err)
	} else {
		canonical, _ := scope.Canonical(address + "/x/x")
		r.name, _, _ = strings.Cut(canonical, "/")
		if r.address = address; r.name == dockerHub {
			r.address = dockerHubHost
		}
		r.list(r.address)
	}
	for _, host := range s.Hosts {
		if address, err := parseHost(host); err != nil {
			mistake(hostHint, "hosts: %w", err)
		} else {
			r.list(address)
		}
	}
	for literal := range r.literals {
		if literal.IsUnspecified() || literal.IsMulticast() {
			mistake("name the registry's own address", "%s is not the address of one host", literal)
		}
	}
	if s.PlainHTTP && err == nil && !isLoopback(hostname(address)) {
		mistake("remove plain-http, and set ca if the registry has a private CA", "plain-http is for loopback hosts alone")
	}
	if s.PlainHTTP && s.CA != "" {
		mistake("remove ca or plain-http", "ca has no effect with plain-http")
	}
	if hostname(address) == "localhost" && !s.Loopback {
		mistake("set loopback: true", "localhost resolves to loopback addresses")
	}
	if s.CA != "" {
		if r.roots, err = readCA(s.CA); err != nil {
			mistakes = append(mistakes, err)
		}
	}
	if s.Credentials != "" {
		if _, err := readCredentials(s.Credentials); err != nil {
			mistakes = append(mistakes, err)
		}
	}
	if len(mistakes) > 0 {
		return nil, mistakes
	}
	r.open()
	return r, nil
}

// list adds a host that may be connected to.
func (r *registry) list(address string) {
	host, port := hostname(address), ""
	if _, p, err := net.SplitHostPort(address); err == nil {
		port = p
	}
	if port == "" {
		port = defaultPort(r.scheme)
	}
	r.hosts[net.JoinHostPort(host, port)] = true
	if literal, err := netip.ParseAddr(host); err == nil {
		r.literals[literal.Unmap()] = true
	}
}

// defaultPort returns the port of a URL without one.
func defaultPort(scheme string) string {
	if scheme == "http" {
		return "80"
	}
	return "443"
}

// parseHost returns HOST or HOST:PORT in its normal form.
func parseHost(text string) (string, error) {
	if text == "" || strings.ContainsAny(text, "/@") {
		return "", fmt.Errorf("%q is not a host", text)
	}
	name, err := scope.Name(text + "/x")
	return strings.TrimSuffix(name, "/x"), err
}

// hostname returns the host of HOST or HOST:PORT, without brackets.
func hostname(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return strings.Trim(address, "[]")
}

// isLoopback reports whether a host is on this machine by its name.
func isLoopback(host string) bool {
	address, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && address.Unmap().IsLoopback()
}

// readCA reads a CA file. Only root and the user of this process may be able to change it.
func readCA(path string) (*x509.CertPool, error) {
	if err := ownership.Check(path, os.Geteuid()); err != nil {
		return nil, err
	}
	data, err := bound.ReadFile(path, maxCA)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read ca: %w", err).
			WithHint("check the path and its permissions")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, failure.New(failure.Invalid, "ca: %s has no certificate in PEM", path).
			WithHint("name a PEM file with the CA's certificates")
	}
	return roots, nil
}

// readCredentials reads a credentials file. Only root and the user of this process may be able to change it, and its
// group and others may not read it. Errors have no part of its content.
func readCredentials(path string) (auth.Credential, error) {
	if err := ownership.Check(path, os.Geteuid()); err != nil {
		return auth.EmptyCredential, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return auth.EmptyCredential, failure.New(failure.FileKind(err), "cannot read credentials: %w", err).
			WithHint("check the path and its permissions")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return auth.EmptyCredential, failure.New(failure.Denied, "credentials: other users can read %s (mode %04o)", path,
			mode).WithHint("run: chmod 600 " + path)
	}
	data, err := bound.ReadFile(path, maxCredentials)
	if err != nil {
		return auth.EmptyCredential, failure.New(failure.FileKind(err), "cannot read credentials: %w", err).
			WithHint("check the path and its permissions")
	}
	const hint = "write the lines username: NAME and password: PASSWORD, or token: TOKEN"
	var c Credentials
	if err := yaml.Load(data, &c, yaml.WithKnownFields()); err != nil { // the error may quote the file
		return auth.EmptyCredential, failure.New(failure.Invalid, "credentials: %s is not a credentials file", path).
			WithHint(hint)
	}
	pair := c.Username != "" && c.Password != ""
	if pair == (c.Token != "") || (c.Username != "" || c.Password != "") != pair {
		return auth.EmptyCredential, failure.New(failure.Invalid,
			"credentials: %s has neither a username with its password nor a token alone", path).WithHint(hint)
	}
	if slices.ContainsFunc([]string{c.Username, c.Password, c.Token}, func(s string) bool {
		return strings.ContainsAny(s, "\r\n\x00")
	}) || strings.Contains(c.Username, ":") {
		return auth.EmptyCredential, failure.New(failure.Invalid,
			"credentials: %s has a line break, or a colon in the username", path).WithHint(hint)
	}
	return auth.Credential{Username: c.Username, Password: c.Password, AccessToken: c.Token}, nil
}
