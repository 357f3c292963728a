package gate

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	hosts "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/registry"
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
	tag       string        // "" in an OCI layout, and if it is named by its digest alone
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
	text = strings.TrimPrefix(text, "docker://") // the prefix of the other commands
	named, err := reference.ParseDockerRef(text)
	if err != nil {
		return image{}, fmt.Errorf("it is not an image's name: %w", err)
	}
	i := image{tag: tagIn(text, named)}
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
	return g.remote(g.registries.Repository(i.address)), nil
}

// remote returns the source of a repository in a registry.
func (g *Gate) remote(r *remote.Repository) source {
	return source{name: r.Reference.Registry, repository: r, manifests: r.Manifests(), blobs: r.Blobs(), remote: r}
}

// pullSources returns the sources that containerd would pull a repository from, in its order: the mirrors in
// hosts.toml, and the registry unless hosts.toml excludes it. Plain HTTP is used where hosts.toml says so and, as in
// containerd, for a registry on this machine without TLS.
func (g *Gate) pullSources(ctx context.Context, name string) ([]source, error) {
	where, path, _ := strings.Cut(name, "/")
	options := hosts.HostOptions{UpdateClient: func(client *http.Client) error {
		if transport, ok := client.Transport.(*http.Transport); ok {
			transport.MaxResponseHeaderBytes = registry.MaxHeader
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
		if h.Host != where && (where != registry.DockerHub || h.Host != registry.DockerHubHost) {
			e.namespace = where
		}
		s := g.remote(g.registries.Through(e, h.Host, path, h.Scheme == "http"))
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
