package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	hosts "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/distribution/reference"
	"github.com/notaryproject/notation-go/config"
	"github.com/notaryproject/notation-go/dir"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	dockerconfig "go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/types"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/credentials"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// layoutPrefix is the prefix of images in an OCI layout, as in skopeo: oci:DIR:TAG.
const layoutPrefix = "oci:"

// otherTransports are the prefixes of skopeo's other transports. They are refused: otherwise dir:app would be
// docker.io/library/dir:app.
var otherTransports = []string{"containers-storage", "dir", "docker-archive", "docker-daemon", "oci-archive", "ostree",
	"sif", "tarball"}

// image is the parsed name of an image.
type image struct {
	address   string        // the repository with its registry, for connections; "" for an OCI layout
	scope     string        // the repository in its normal form, for the trust policy
	reference string        // the tag or the digest
	digest    digest.Digest // "" if it is named by a tag
	layout    string        // the folder of an OCI layout; "" for a registry
}

// parseImage parses the name of an image. repository is the scope for images in OCI layouts.
func parseImage(text, repository string) (image, error) {
	if layout, ok := strings.CutPrefix(text, layoutPrefix); ok {
		return parseLayout(layout, repository)
	}
	if transport, _, ok := strings.Cut(text, ":"); ok && slices.Contains(otherTransports, transport) {
		return image{}, fmt.Errorf("cannot verify images in %s: copy the image with its signatures to a registry or an "+
			"OCI layout, oci:DIR:TAG", transport)
	}
	named, err := reference.ParseDockerRef(strings.TrimPrefix(text, "docker://")) // the prefix of the other commands
	if err != nil {
		return image{}, fmt.Errorf("it is not an image's name: %w", err)
	}
	i := image{}
	if i.address, err = scope.Name(named.Name()); err == nil {
		i.scope, err = scope.Canonical(named.Name())
	}
	if err != nil {
		return image{}, fmt.Errorf("it is not an image's name: %w", err)
	}
	switch named := named.(type) {
	case reference.Digested:
		i.digest = named.Digest()
		i.reference = i.digest.String()
	case reference.Tagged:
		i.reference = named.Tag()
	}
	return i, nil
}

// parseLayout parses DIR:TAG or DIR@DIGEST.
func parseLayout(text, repository string) (image, error) {
	if repository == "" {
		return image{}, errors.New("name the repository whose trust policy counts for it with --scope")
	}
	named, err := reference.ParseNormalizedNamed(repository)
	if err != nil || !reference.IsNameOnly(named) {
		return image{}, fmt.Errorf("the scope %q is not a repository's name", repository)
	}
	i := image{}
	if i.scope, err = scope.Canonical(named.Name()); err != nil {
		return image{}, fmt.Errorf("the scope %q is not a repository's name: %w", repository, err)
	}
	// The folder ends at the first colon, as in the other commands. The tag may contain colons, and the folder an @.
	i.layout, i.reference, _ = strings.Cut(text, ":")
	if at := strings.LastIndexByte(i.layout, '@'); at >= 0 && digest.Algorithm(i.layout[at+1:]).Available() {
		i.digest = digest.Digest(text[at+1:])
		if err := i.digest.Validate(); err != nil {
			return image{}, fmt.Errorf("%q is not a digest: %w", i.digest, err)
		}
		i.layout, i.reference = text[:at], i.digest.String()
	}
	if i.layout == "" || i.reference == "" {
		return image{}, errors.New("an image in a layout is named oci:DIR:TAG or oci:DIR@DIGEST")
	}
	for _, part := range []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile, ocispec.ImageBlobsDir} {
		if _, err := os.Stat(filepath.Join(i.layout, part)); err != nil {
			return image{}, fmt.Errorf("there is no OCI layout: %w", err)
		}
	}
	return i, nil
}

// source returns the registry or the layout of an image. Registries are reached as the notation command does.
func (g *Gate) source(i image) (source, error) {
	if i.layout != "" {
		l, err := openLayout(i.layout)
		if err != nil {
			return source{}, err
		}
		return source{name: i.layout, repository: l, manifests: l, blobs: l}, nil
	}
	where, path, _ := strings.Cut(i.address, "/")
	host, port, _ := net.SplitHostPort(where)
	// Notation uses plain HTTP for localhost:PORT
	plain := g.options.PlainHTTP || host == "localhost" && port != "" ||
		slices.ContainsFunc(g.insecure, func(r string) bool { return strings.EqualFold(r, where) })
	return g.remote(where, path, plain, g.transport), nil
}

// remote returns a registry, which is limited in what it may send.
func (g *Gate) remote(host, path string, plain bool, transport http.RoundTripper) source {
	client := &auth.Client{
		Client: &http.Client{Transport: &limitedTransport{base: transport}}, Cache: auth.NewCache(), ClientID: "hsm-image",
		Credential: func(ctx context.Context, host string) (auth.Credential, error) { return g.credential(ctx, host, path) },
	}
	client.SetUserAgent("hsm-image")
	repository := &remote.Repository{Client: client, PlainHTTP: plain,
		Reference:            registry.Reference{Registry: host, Repository: path},
		ReferrerListMaxPages: maxPages, MaxMetadataBytes: maxPage}
	return source{name: host, repository: repository, manifests: repository.Manifests(), blobs: repository.Blobs()}
}

// notationFile returns the path of the user's own configuration file of Notation. The one in a trust directory is not
// read: it could name a credential helper, which is a program, but the author of a trust directory only decides who is
// trusted.
func notationFile() string { return filepath.Join(folders.UserNotation(), dir.PathConfigFile) }

const maxConfig = 1 << 20 // bytes

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

// credential returns the credentials for a repository of a registry: those of Notation, or else those of Podman and
// Docker. It fails when ctx ends before a credential helper has answered.
func (g *Gate) credential(ctx context.Context, host, path string) (auth.Credential, error) {
	type found struct {
		auth.Credential
		err error
	}
	answer := make(chan found, 1)
	go func() {
		var f found
		if err := catchPanic(func() { f.Credential, f.err = g.lookUp(ctx, host, path) }); err != nil {
			f.err = err
		}
		answer <- f
	}()
	select {
	case f := <-answer:
		return f.Credential, f.err
	case <-ctx.Done():
		return auth.EmptyCredential, noCredentials(host, ctx.Err())
	}
}

func noCredentials(host string, err error) error {
	return fmt.Errorf("cannot get the credentials of %s: %w", host, err)
}

// lookUp is credential without the end of ctx.
func (g *Gate) lookUp(ctx context.Context, host, path string) (auth.Credential, error) {
	system := &types.SystemContext{AuthFilePath: g.options.AuthFile}
	if system.AuthFilePath == "" {
		if own, ok := notationCredential(ctx, host); ok {
			return own, nil
		}
		system.AuthFilePath = os.Getenv("REGISTRY_AUTH_FILE")
	}
	if host == dockerHubHost {
		host = dockerHub
	}
	c, err := dockerconfig.GetCredentials(system, host+"/"+path)
	if err != nil {
		return auth.EmptyCredential, noCredentials(host, err)
	}
	return auth.Credential{Username: c.Username, Password: c.Password, RefreshToken: c.IdentityToken}, nil
}

// notationCredential returns the credentials that 'notation login' has stored, if there are any.
func notationCredential(ctx context.Context, host string) (auth.Credential, bool) {
	store, err := credentials.NewStore(notationFile(), credentials.StoreOptions{})
	if err != nil || !store.IsAuthConfigured() {
		return auth.EmptyCredential, false
	}
	c, err := credentials.Credential(store)(ctx, host)
	return c, err == nil && c != auth.EmptyCredential
}

// The names of Docker Hub: in images, of the host that serves them, and an old one in images.
const (
	dockerHub      = "docker.io"
	dockerHubHost  = "registry-1.docker.io"
	dockerHubIndex = "index.docker.io"
)

// pullSources returns the sources that containerd would pull a repository from, in its order: the mirrors in
// hosts.toml, and the registry unless hosts.toml excludes it. Plain HTTP is used where hosts.toml says so and, as in
// containerd, for a registry on this machine without TLS.
func (g *Gate) pullSources(ctx context.Context, name string) ([]source, error) {
	where, path, _ := strings.Cut(name, "/")
	options := hosts.HostOptions{UpdateClient: func(client *http.Client) error {
		if transport, ok := client.Transport.(*http.Transport); ok {
			transport.MaxResponseHeaderBytes = maxHeader
		}
		return nil
	}}
	if g.options.HostsDir != "" {
		options.HostDir = hosts.HostDirFromRoot(g.options.HostsDir)
	}
	configured, err := hosts.ConfigureHosts(ctx, options)(where)
	if err != nil {
		return nil, fmt.Errorf("cannot read the registry hosts in %s: %w", g.options.HostsDir, err)
	}
	var sources []source
	for _, h := range configured {
		if !h.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		e := &endpoint{base: h.Client.Transport, host: h.Host, standardPath: "/v2/" + path + "/",
			path:   h.Path + "/" + path + "/",
			header: h.Header}
		if h.Host != where && (where != dockerHub || h.Host != dockerHubHost) {
			e.namespace = where
		}
		s := g.remote(h.Host, path, h.Scheme == "http", e)
		s.close = h.Client.CloseIdleConnections
		sources = append(sources, s)
	}
	return sources, nil
}

// endpoint is a transport to a registry host that sends requests as containerd does: a mirror may have another path and
// need headers, and is told which registry it mirrors.
type endpoint struct {
	base         http.RoundTripper
	host         string
	standardPath string // the path of the repository in a registry: /v2/REPOSITORY/
	path         string // the path of the repository on this host
	header       http.Header
	namespace    string // the registry that the host mirrors; "" if it is the registry
}

// RoundTrip sends a request. Requests for other paths, such as those for tokens, are not changed. In redirects and
// links to the next page, which come from the host, the path may be the host's own already.
func (e *endpoint) RoundTrip(request *http.Request) (*http.Response, error) {
	rest, here := strings.CutPrefix(request.URL.Path, e.path)
	if !here {
		rest, here = strings.CutPrefix(request.URL.Path, e.standardPath)
	}
	if request.URL.Host != e.host || !here {
		return e.base.RoundTrip(request)
	}
	request = request.Clone(request.Context())
	request.URL.Path, request.URL.RawPath = e.path+rest, ""
	for name, values := range e.header {
		request.Header[name] = values
	}
	if e.namespace != "" {
		query := request.URL.Query()
		query.Set("ns", e.namespace)
		request.URL.RawQuery = query.Encode()
	}
	return e.base.RoundTrip(request)
}
