package repository

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"oras.land/oras-go/v2/registry/remote/auth"
)

// registry is one registry of the configuration with its connections.
type registry struct {
	settings  Registry
	name      string              // its host in the names of images, in normal form
	address   string              // HOST or HOST:PORT that serves the API
	scheme    string              // https or http
	hosts     map[string]bool     // HOST:PORT of every host that may be connected to
	literals  map[netip.Addr]bool // addresses that are listed as such
	roots     *x509.CertPool      // nil for those of the system
	lookup    func(ctx context.Context, host string) ([]netip.Addr, error)
	transport *http.Transport
	checks    lane // before something is decided
	looks     lane // for people
}

// lane limits how many questions of a kind are under way at once, and how long each may take. Those of one lane keep no
// other waiting.
type lane struct {
	slots   chan struct{} // an element for each question under way
	timeout time.Duration
}

const (
	maxHeader    = 64 << 10 // bytes of the header of a response
	maxRedirects = 5
	maxChecks    = 8 // at once, of one registry
	maxLooks     = 4
	dialTimeout  = 10 * time.Second
)

// refusal is an error of a connection that the configuration does not allow.
type refusal struct{ message, hint string }

func (r *refusal) Error() string { return r.message }

func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// open makes the transport. It uses no proxy: a proxy would resolve host names by itself, without the check in dial.
// Responses are not decompressed.
func (r *registry) open() {
	r.checks = lane{make(chan struct{}, maxChecks), timeout}
	r.looks = lane{make(chan struct{}, maxLooks), lookTimeout}
	r.transport = &http.Transport{
		DialContext: r.dial, DisableCompression: true, MaxResponseHeaderBytes: maxHeader,
		TLSClientConfig:     &tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout: dialTimeout, MaxIdleConnsPerHost: maxChecks + maxLooks, IdleConnTimeout: time.Minute,
	}
}

// client returns a client for one check. It forgets tokens after it, so that repositories that callers name fill no
// cache, and changed credentials count from the next check on. The ORAS library sends credentials to the registry and
// to the realm that the registry names, and takes them from requests that are redirected elsewhere; RoundTrip refuses
// realms and redirects that are not listed.
func (r *registry) client() *auth.Client {
	c := &auth.Client{
		Client: &http.Client{Transport: r, CheckRedirect: func(_ *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return &refusal{fmt.Sprintf("%s redirects more than %d times", r.name, maxRedirects), ""}
			}
			return nil
		}},
		Cache: auth.NewCache(), ClientID: "hsm-broker",
		// The library would look the realm's host up in the DNS, whoever named it. dial checks all addresses.
		BlockedRealmPrefixes: []netip.Prefix{},
	}
	c.SetUserAgent("hsm-broker")
	c.Credential = func(context.Context, string) (auth.Credential, error) {
		if r.settings.Credentials == "" {
			return auth.EmptyCredential, nil
		}
		return readCredentials(r.settings.Credentials)
	}
	return c
}

// RoundTrip sends a request to a listed host, and refuses all others. Every request passes here, also those for tokens
// and those that follow a redirect.
func (r *registry) RoundTrip(request *http.Request) (*http.Response, error) {
	if err := r.checkURL(request.URL); err != nil {
		return nil, err
	}
	return r.transport.RoundTrip(request)
}

// checkURL verifies that the scheme, host and port of a URL are those of a listed host.
func (r *registry) checkURL(u *url.URL) error {
	if u.Scheme != r.scheme || u.User != nil {
		return &refusal{fmt.Sprintf("%s leads to a URL that is not %s", r.name, r.scheme),
			"configure the registry to use " + r.scheme + " for tokens and redirects"}
	}
	port := u.Port()
	if port == "" {
		port = defaultPort(r.scheme)
	}
	if host := net.JoinHostPort(strings.ToLower(u.Hostname()), port); !r.hosts[host] {
		return &refusal{fmt.Sprintf("%s leads to %.100q, which is not listed", r.name, host),
			"if the host belongs to the registry, list it under hosts of " + r.name}
	}
	return nil
}

// dial connects to an address. It resolves host names itself, checks what they resolve to, and connects to the
// addresses that it has checked: a name that resolves to something else a moment later has no effect.
func (r *registry) dial(ctx context.Context, network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	var resolved []netip.Addr
	if literal, err := netip.ParseAddr(host); err == nil {
		resolved = []netip.Addr{literal}
	} else if resolved, err = r.lookup(ctx, host); err != nil {
		return nil, err
	}
	if err := r.checkAddresses(host, resolved); err != nil {
		return nil, err
	}
	var failed error = &net.DNSError{Err: "no address", Name: host, IsNotFound: true}
	for _, a := range resolved {
		var d net.Dialer
		c, err := d.DialContext(ctx, network, net.JoinHostPort(a.Unmap().String(), port))
		if err == nil {
			return c, nil
		}
		failed = err
	}
	return nil, failed
}

// checkAddresses fails if one of the addresses of a host is not one that the host may have. A special address has to be
// listed as such, or be a loopback address of a registry with loopback.
func (r *registry) checkAddresses(host string, resolved []netip.Addr) error {
	literal, err := netip.ParseAddr(host)
	listed := err == nil && r.literals[literal.Unmap()]
	for _, address := range resolved {
		a := unwrap(address)
		allowed := listed || !special(a) || a.IsLoopback() && r.settings.Loopback
		if !allowed || r.scheme == "http" && !a.IsLoopback() {
			return &refusal{fmt.Sprintf("%s of registry %s has the address %s, which is not allowed", host, r.name, address),
				"check the DNS; host names of this machine need loopback: true"}
		}
	}
	return nil
}

// reserved are addresses that are not those of registries, besides loopback, link-local, multicast and unspecified
// ones: of metadata services in clouds (in the list of the ORAS library), "this network" and broadcast.
var reserved = append(auth.DefaultBlockedRealmPrefixes(), netip.MustParsePrefix("255.255.255.255/32"))

// special reports whether an address is not one of a host on a network. Private networks are not special.
func special(a netip.Addr) bool {
	return a.IsLoopback() || a.IsLinkLocalUnicast() || a.IsMulticast() || a.IsUnspecified() || a.Zone() != "" ||
		slices.ContainsFunc(reserved, func(p netip.Prefix) bool { return p.Contains(a) })
}

var (
	nat64  = netip.MustParsePrefix("64:ff9b::/96")
	sixTo4 = netip.MustParsePrefix("2002::/16")
	mapped = netip.MustParsePrefix("::/96") // IPv4-compatible (RFC 4291 section 2.5.5.1), deprecated
)

// unwrap returns the IPv4 address in an IPv6 address that leads to it, or else the address.
func unwrap(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if !a.Is6() || a.Zone() != "" || a.IsLoopback() || a.IsUnspecified() {
		return a
	}
	b := a.As16()
	switch {
	case nat64.Contains(a), mapped.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16]))
	case sixTo4.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

// innermost returns the cause of an error of net/http without its URLs, which may hold secrets of the registry.
func innermost(err error) error {
	for {
		var u *url.Error
		if !errors.As(err, &u) {
			return err
		}
		err = u.Err
	}
}
