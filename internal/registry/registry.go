// Package registry says how registries are reached: with which credentials, whether with plain HTTP, and within which
// limits of what they may send.
//
// Registries are reached as the notation command does. Whoever can push to a registry controls what it sends, and none
// of that is authenticated when it is read.
package registry

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/notaryproject/notation-go/config"
	"github.com/notaryproject/notation-go/dir"
	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/folders"
)

// The names of Docker Hub: in images, and of the host that serves them.
const (
	DockerHub     = "docker.io"
	DockerHubHost = "registry-1.docker.io"
)

const (
	userAgent     = "hsm-image"
	maxConcurrent = 10      // idle connections to a host
	maxConfig     = 1 << 20 // bytes of Notation's config.json
	// patience is how long a registry may take until it begins to answer a request. Most callers have less.
	patience = 2 * time.Minute
)

// Options say how registries are reached.
type Options struct {
	AuthFile  string // credentials of registries; "" is those of Notation, Podman and Docker
	PlainHTTP bool   // use plain HTTP for all registries
	Limits    Limits // for each repository; zero is OneImage
}

// Registries reaches registries. It may be used by several goroutines.
type Registries struct {
	options   Options
	insecure  []string // registries with plain HTTP, from Notation's config.json
	transport *http.Transport
}

// New returns Registries, which have to be closed.
func New(options Options) *Registries {
	if options.Limits == (Limits{}) {
		options.Limits = OneImage
	}
	transport := http.DefaultTransport.(*http.Transport).Clone() // with proxies from the environment
	transport.ResponseHeaderTimeout = patience
	transport.MaxIdleConnsPerHost, transport.MaxResponseHeaderBytes = maxConcurrent, MaxHeader
	return &Registries{options: options, insecure: insecureRegistries(), transport: transport}
}

// Close closes idle connections.
func (r *Registries) Close() { r.transport.CloseIdleConnections() }

// Repository returns a repository, which can be read and, with credentials for it, be written. The name is HOST/PATH as
// scope.Name returns it. The repository has the limits of Options for all of its requests together, for as long as it
// is used: a process that runs for long calls Repository again for each round of its work.
func (r *Registries) Repository(name string) *remote.Repository {
	where, path, _ := strings.Cut(name, "/")
	host, port, _ := net.SplitHostPort(where)
	// Notation uses plain HTTP for localhost:PORT
	plain := r.options.PlainHTTP || host == "localhost" && port != "" ||
		slices.ContainsFunc(r.insecure, func(insecure string) bool { return strings.EqualFold(insecure, where) })
	return r.Through(r.transport, where, path, plain)
}

// Through returns a repository as Repository does, which is reached through a transport of the caller.
func (r *Registries) Through(transport http.RoundTripper, host, path string, plain bool) *remote.Repository {
	client := &auth.Client{
		Client:     &http.Client{Transport: transport},
		Cache:      auth.NewCache(),
		ClientID:   userAgent,
		Credential: func(ctx context.Context, host string) (auth.Credential, error) { return r.credential(ctx, host, path) },
	}
	client.SetUserAgent(userAgent)
	return Limit(client, r.options.Limits, host, path, plain)
}

// Limit returns the repository at HOST/PATH that a client reaches, whose transport it limits. The limits are for all
// requests of the client together.
func Limit(client *auth.Client, limits Limits, host, path string, plain bool) *remote.Repository {
	client.Client.Transport = &limitedTransport{base: client.Client.Transport, limits: limits}
	return &remote.Repository{Client: client, PlainHTTP: plain,
		Reference:            oras.Reference{Registry: host, Repository: path},
		ReferrerListMaxPages: MaxPages, TagListMaxPages: maxTags, TagListPageSize: pageSize, MaxMetadataBytes: MaxPage}
}

// notationFile returns the path of the user's own configuration file of Notation. The one in a trust directory is not
// read: it could name a credential helper, which is a program, but the author of a trust directory only decides who is
// trusted.
func notationFile() string { return filepath.Join(folders.UserNotation(), dir.PathConfigFile) }

// insecureRegistries returns the registries with plain HTTP in Notation's config.json. If the file cannot be read there
// are none, and all registries need TLS, as for the notation command.
func insecureRegistries() []string {
	var c config.Config
	data, err := bound.ReadFile(notationFile(), maxConfig)
	if err != nil || json.Unmarshal(data, &c) != nil {
		return nil
	}
	return c.InsecureRegistries
}
