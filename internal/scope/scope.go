// Package scope normalises the names of repositories, so that one repository has one name wherever a trust policy is
// asked.
//
// Trust policies compare names letter by letter, the network does not: REGISTRY.example.com and
// registry.example.com:443 are the same host. A name that no statement has would be judged by the statement for all
// others.
package scope

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// Docker Hub has several names.
const (
	hub          = "docker.io"
	hubIndex     = "index.docker.io"
	hubRegistry  = "registry-1.docker.io"
	hubNamespace = "library"
)

// Name returns a repository's name, REGISTRY/PATH, with its registry in the form in which the network is asked: host
// names and addresses have one spelling each, and a port stays. It fails if the registry is none.
func Name(name string) (string, error) {
	host, port, path, err := split(name)
	if err != nil {
		return "", err
	}
	return join(host, port) + "/" + path, nil
}

// Canonical returns the one name by which a trust policy is asked about a repository. It is Name without the default
// port of HTTPS or HTTP, and with one name for Docker Hub and what is in it. Other names of a host in the DNS stay what
// they are: other registries.
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

func join(host, port string) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == "" {
		return host
	}
	return host + ":" + port
}

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
	if host, err = spell(host); err != nil {
		return "", "", "", err
	}
	return host, port, path, nil
}

// spell returns the one spelling of a host's name or address. Names in other scripts are written in Punycode, and the
// root's dot is left out; numbers that some resolvers take for an address are refused.
func spell(host string) (string, error) {
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
			return "", fmt.Errorf("%q is not a host: leave out the dot at its end", host)
		}
	}
	if last := labels[len(labels)-1]; strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x") {
		return "", fmt.Errorf("%q is not a host: write an address as four decimal numbers", host)
	}
	return host, nil
}
