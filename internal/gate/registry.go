package gate

import (
	"context"
	"encoding/json"
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
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// layoutPrefix names an image in an OCI layout, as skopeo does: oci:DIR:TAG.
const layoutPrefix = "oci:"

// otherTransports are skopeo's other names for where an image is. Without a look at them, dir:app would be Docker Hub's
// library/dir:app.
var otherTransports = []string{"containers-storage", "dir", "docker-archive", "docker-daemon", "oci-archive", "ostree",
	"sif", "tarball"}

// image is an image as it is named to the gate.
type image struct {
	asked     string        // the repository with its registry, as the network is asked for it; "" in a layout
	name      string        // the one name of it by which the trust policy is asked
	reference string        // the tag or the digest
	digest    digest.Digest // "" if it is named by a tag
	layout    string        // the folder of an OCI layout; "" is a registry
}

func parseImage(text, repository string) (image, error) {
	if layout, ok := strings.CutPrefix(text, layoutPrefix); ok {
		return parseLayout(layout, repository)
	}
	if transport, _, ok := strings.Cut(text, ":"); ok && slices.Contains(otherTransports, transport) {
		return image{},
			fmt.Errorf(
				"images in %s: can't be verified; copy it to a registry or to an OCI layout, oci:DIR:TAG, with its signatures",
				transport)
	}
	named, err := reference.ParseDockerRef(strings.TrimPrefix(text, "docker://")) // as the other commands name it
	if err != nil {
		return image{}, fmt.Errorf("it is not an image's name: %w", err)
	}
	i := image{}
	if i.asked, err = scope.Name(named.Name()); err == nil {
		i.name, err = scope.Canonical(named.Name())
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

func parseLayout(text, repository string) (image, error) {
	if repository == "" {
		return image{}, failure.New(failure.Invalid, "name the repository whose trust policy counts for it with --scope")
	}
	named, err := reference.ParseNormalizedNamed(repository)
	if err != nil || !reference.IsNameOnly(named) {
		return image{}, fmt.Errorf("the scope %q is not a repository's name", repository)
	}
	i := image{}
	if i.name, err = scope.Canonical(named.Name()); err != nil {
		return image{}, fmt.Errorf("the scope is not a repository's name: %w", err)
	}
	// As for the other commands the folder ends at the first colon; the tag may have more, and the folder an @.
	i.layout, i.reference, _ = strings.Cut(text, ":")
	if at := strings.LastIndexByte(i.layout, '@'); at >= 0 && digest.Algorithm(i.layout[at+1:]).Available() {
		i.digest = digest.Digest(text[at+1:])
		if err := i.digest.Validate(); err != nil {
			return image{}, fmt.Errorf("%q is not a digest: %w", i.digest, err)
		}
		i.layout, i.reference = text[:at], i.digest.String()
	}
	if i.layout == "" || i.reference == "" {
		return image{}, fmt.Errorf("an image in a layout is named oci:DIR:TAG or oci:DIR@DIGEST")
	}
	// What is not a layout would be made one by opening it.
	for _, part := range []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile, ocispec.ImageBlobsDir} {
		if _, err := os.Stat(filepath.Join(i.layout, part)); err != nil {
			return image{}, fmt.Errorf("there is no OCI layout: %w", err)
		}
	}
	return i, nil
}

// source returns where an image and its signatures are, as the notation command sees it.
func (g *Gate) source(i image) (source, error) {
	if i.layout != "" {
		l, err := openLayout(i.layout)
		if err != nil {
			return source{}, err
		}
		return source{name: i.layout, repository: l, manifests: l, blobs: l}, nil
	}
	where, path, _ := strings.Cut(i.asked, "/")
	host, port, _ := net.SplitHostPort(where)
	// what does not leave the machine, as Notation sees it
	plain := g.options.PlainHTTP || host == "localhost" && port != "" ||
		slices.ContainsFunc(g.insecure, func(r string) bool { return strings.EqualFold(r, where) })
	return g.remote(where, path, plain, g.transport), nil
}

func (g *Gate) remote(host, path string, plain bool, transport http.RoundTripper) source {
	client := &auth.Client{
		Client: &http.Client{Transport: &limited{base: transport}}, Cache: auth.NewCache(), ClientID: "hsm-image",
		Credential: func(ctx context.Context, host string) (auth.Credential, error) { return g.credential(ctx, host, path) },
	}
	client.SetUserAgent("hsm-image")
	repository := &remote.Repository{Client: client, PlainHTTP: plain,
		Reference:            registry.Reference{Registry: host, Repository: path},
		ReferrerListMaxPages: maxPages, MaxMetadataBytes: maxPage}
	return source{name: host, repository: repository, manifests: repository.Manifests(), blobs: repository.Blobs()}
}

// notationFile is this user's own configuration file of Notation's. One in a trust directory is not read: it could name
// a credential helper, which is a program, and whoever writes a trust directory says who is trusted, not what runs
// here.
func notationFile() string { return filepath.Join(folders.UserNotation(), dir.PathConfigFile) }

const maxConfig = 1 << 20 // bytes

// insecureRegistries are those of Notation's config.json. Like the notation command it takes a file that can't be read
// for none: the registries are then spoken to over TLS.
func insecureRegistries() []string {
	var c config.Config
	data, err := bound.ReadFile(notationFile(), maxConfig)
	if err != nil || json.Unmarshal(data, &c) != nil {
		return nil
	}
	return c.InsecureRegistries
}

// credential finds what to log in to a registry with: in Notation's own configuration, then where Podman and Docker
// keep it, which may be a helper for that one repository. A helper may hang; the caller's time is what it gets.
func (g *Gate) credential(ctx context.Context, host, path string) (auth.Credential, error) {
	type found struct {
		auth.Credential
		err error
	}
	answer := make(chan found, 1)
	go func() {
		var f found
		if err := caught(func() { f.Credential, f.err = g.lookUp(ctx, host, path) }); err != nil {
			f.err = err
		}
		answer <- f
	}()
	select {
	case f := <-answer:
		return f.Credential, f.err
	case <-ctx.Done():
		return auth.EmptyCredential, fmt.Errorf("looking for the credentials of %s: %w", host, ctx.Err())
	}
}

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
		return auth.EmptyCredential, fmt.Errorf("can't get the credentials of %s: %w", host, err)
	}
	return auth.Credential{Username: c.Username, Password: c.Password, RefreshToken: c.IdentityToken}, nil
}

// notationCredential is what 'notation login' has kept.
func notationCredential(ctx context.Context, host string) (auth.Credential, bool) {
	store, err := credentials.NewStore(notationFile(), credentials.StoreOptions{})
	if err != nil || !store.IsAuthConfigured() {
		return auth.EmptyCredential, false
	}
	c, err := credentials.Credential(store)(ctx, host)
	return c, err == nil && c != auth.EmptyCredential
}

// Docker Hub goes by one name and answers under another.
const (
	dockerHub     = "docker.io"
	dockerHubHost = "registry-1.docker.io"

	dockerHubIndex = "index.docker.io"
)

// pullSources returns where containerd would pull an image from, in its order: the mirrors that hosts.toml names, and
// the registry itself unless that says otherwise. Plain HTTP is spoken where hosts.toml says so and, as containerd
// does, to a registry on this machine that speaks nothing else.
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
		return nil, fmt.Errorf("can't read the registry hosts in %s: %w", g.options.HostsDir, err)
	}
	var sources []source
	for _, h := range configured {
		if !h.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		e := &endpoint{base: h.Client.Transport, host: h.Host, usual: "/v2/" + path + "/", path: h.Path + "/" + path + "/",
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

// endpoint speaks to a registry host as containerd does: a mirror may be below another path, may want headers, and is
// told which registry it stands for.
type endpoint struct {
	base      http.RoundTripper
	host      string
	usual     string // the path of the repository in a registry: /v2/REPOSITORY/
	path      string // the same here
	header    http.Header
	namespace string // the registry that it is a mirror of; "" is none
}

// RoundTrip sends a request on. What is not about the repository, such as one for a token, stays as it is. Where the
// host itself says where to go on, in a redirect or for the next page, the path may be the right one already.
func (e *endpoint) RoundTrip(request *http.Request) (*http.Response, error) {
	rest, here := strings.CutPrefix(request.URL.Path, e.path)
	if !here {
		rest, here = strings.CutPrefix(request.URL.Path, e.usual)
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
