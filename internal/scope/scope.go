// Package scope normalises the names of repositories (registry scopes), so that a repository has the same name in every
// trust policy and in every lookup.
//
// Trust policies compare names byte by byte, but REGISTRY.example.com and registry.example.com:443 are the same host.
// Without a normal form, an image could be verified under the statement for "*" although its repository has a stricter
// statement of its own, just because its registry is spelled in another way.
package scope

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// The names of Docker Hub.
const (
	hub          = "docker.io"
	hubIndex     = "index.docker.io"
	hubRegistry  = "registry-1.docker.io"
	hubNamespace = "library"
)

// Name returns the name of a repository, REGISTRY/PATH, in the form that is used to connect to the registry: host names
// and addresses are normalised, and a port is kept. It fails if the registry is not a host.
func Name(name string) (string, error) {
	host, port, path, err := split(name)
	if err != nil {
		return "", err
	}
	return join(host, port) + "/" + path, nil
}

// Canonical returns the name of a repository that is looked up in a trust policy. It is Name without the default ports
// of HTTPS and HTTP, and with one name for Docker Hub and its namespace library. It does not ask the DNS: an alias of a
// host is another registry.
func Canonical(name string) (string, error) {
	host, port, path, err := split(name)
	if err != nil {
		return "", err
	}
	if port == "443" || port == "80" {
		port = ""
	}
	if port == "" && (host == hubIndex || host == hubRegistry) {
		host = hub
	}
	if port == "" && host == hub && !strings.Contains(path, "/") {
		path = hubNamespace + "/" + path
	}
	return join(host, port) + "/" + path, nil
}

// join returns a registry, HOST or HOST:PORT.
func join(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" {
		return host
	}
	return host + ":" + port
}

// split returns the normalised host, the port in decimal ("" if there is none) and the path of a repository's name.
func split(name string) (host, port, path string, err error) {
	registry, path, _ := strings.Cut(name, "/")
	if registry == "" || path == "" {
		return "", "", "", fmt.Errorf("%q is not a repository with its registry", name)
	}
	host = registry
	if colon := strings.LastIndexByte(registry, ':'); colon > strings.LastIndexByte(registry, ']') {
		if host, port, err = net.SplitHostPort(registry); err != nil {
			return "", "", "", err
		}
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil || number == 0 {
			return "", "", "", fmt.Errorf("%q is not a port", port)
		}
		port = strconv.FormatUint(number, 10)
	} else if strings.HasPrefix(registry, "[") {
		host = strings.TrimSuffix(registry[1:], "]")
	}
	if host, err = normalizeHost(host); err != nil {
		return "", "", "", err
	}
	return host, port, path, nil
}

// normalizeHost returns a host name in lower case, or an IP address in its shortest form. It fails for names with a dot
// at the end, for names in other scripts, which have to be in Punycode, and for numbers that some resolvers take for an
// address, such as 127.1.
func normalizeHost(host string) (string, error) {
	host = strings.ToLower(host)
	if address, err := netip.ParseAddr(host); err == nil {
		if address.Zone() != "" {
			return "", fmt.Errorf("the address %q has a zone", host)
		}
		return address.String(), nil
	}
	for _, r := range host {
		if r != '.' && r != '-' && r != '_' && (r < 'a' || r > 'z') && (r < '0' || r > '9') {
			return "", fmt.Errorf("%q is not a host: write names in other scripts in Punycode (xn--)", host)
		}
	}
	labels := strings.Split(host, ".")
	for _, label := range labels {
		if label == "" {
			return "", fmt.Errorf("%q is not a host: it ends with a dot, or has two in a row", host)
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "", fmt.Errorf("%q is not a host: write an address as four decimal numbers", host)
	}
	return host, nil
}
