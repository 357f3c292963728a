package approver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/scope"
)

// maxManifest is the length of the longest manifest, and of the longest config of an image, in bytes.
const maxManifest = 4 << 20

// maxPlatforms is how many manifests of an index are shown.
const maxPlatforms = 64

// maxConfigs is how many configs of images are fetched: those of the first targets.
const maxConfigs = 16

// manifestLimits are the limits of the structure of a manifest.
var manifestLimits = bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 50000}

// Artifact is what the registry has of a target. Its digest, media type and size are those of the statement.
type Artifact struct {
	Digest    string
	Platforms []Platform // of an index, attestations included; of an image its own
	Layers    int        // of a manifest
	Claims    []Claim    // what the image says of itself, which nobody has verified
}

// Platform is an image of an index.
type Platform struct {
	Name   string // OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT
	Digest string // "" for the artifact itself
}

// Claim is what an image says of itself.
type Claim struct{ Name, Value string }

// Fetch fetches all targets of the statement from their repository, and compares them with the statement. It fails with
// Invalid for a request that names no repository, with Denied for a target that the repository does not have or has
// otherwise, and else as registries do.
func (s *Seen) Fetch(ctx context.Context, registries *registry.Registries) ([]Artifact, error) {
	p := s.Statement.Predicate
	name, err := scope.Name(p.Repository)
	if err != nil {
		return nil, failure.New(failure.Invalid, "the statement names no repository: nobody knows where the artifact is").
			WithHint("look at the artifact yourself, then use --offline")
	}
	repository := registries.Repository(name)
	all := make([]Artifact, len(p.Targets))
	for i, t := range p.Targets {
		a, err := fetch(ctx, repository, t, i < maxConfigs)
		if err != nil {
			return nil, fetchFailure(p.Repository, t.Digest, err)
		}
		all[i] = *a
	}
	return all, nil
}

// fetchFailure returns the failure of a target that could not be fetched, or is not what the statement says.
func fetchFailure(repository, digest string, err error) error {
	kind := registry.Kind(err)
	if kind == failure.Invalid || kind == failure.NotFound {
		return failure.New(failure.Denied, "the repository %s does not have the artifact %s as the statement says: %w",
			repository, digest, err).WithHint("do not approve it")
	}
	failed := failure.New(kind, "cannot fetch %s@%s: %w", repository, digest, err)
	if errors.Is(err, http.ErrSchemeMismatch) {
		return failed.WithHint("use --plain-http, if you trust the network between this machine and the registry")
	}
	return failed.WithHint("log in to the registry with 'notation login' or 'docker login', or look at the artifact " +
		"yourself and use --offline")
}

// fetch fetches a target. With config, it also reads the config of an image.
func fetch(ctx context.Context, repository *remote.Repository, t approval.Target, config bool) (*Artifact, error) {
	sum := digest.Digest(t.Digest)
	if err := sum.Validate(); err != nil {
		return nil, fmt.Errorf("%.150q is not a digest", t.Digest)
	}
	described, body, err := repository.Manifests().FetchReference(ctx, t.Digest)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	data, err := io.ReadAll(io.LimitReader(body, maxManifest+1))
	switch {
	case err != nil:
		return nil, err
	case len(data) > maxManifest:
		return nil, fmt.Errorf("it has more than %d bytes", maxManifest)
	case sum.Algorithm().FromBytes(data) != sum:
		return nil, fmt.Errorf("the registry sent something else")
	case int64(len(data)) != t.Size:
		return nil, fmt.Errorf("it has %d bytes, not %d", len(data), t.Size)
	case described.MediaType != t.MediaType:
		return nil, fmt.Errorf("it is of type %.100q, not %.100q", described.MediaType, t.MediaType)
	}
	a := &Artifact{Digest: t.Digest}
	return a, a.read(ctx, repository, data, config)
}

// manifest is a manifest or an index.
type manifest struct {
	Config      *ocispec.Descriptor  `json:"config"`
	Layers      []ocispec.Descriptor `json:"layers"`
	Manifests   []ocispec.Descriptor `json:"manifests"`
	Annotations map[string]string    `json:"annotations"`
}

// read reads what a manifest says.
func (a *Artifact) read(ctx context.Context, repository *remote.Repository, data []byte, config bool) error {
	var m manifest
	if err := bound.JSON(data, manifestLimits); err != nil {
		return fmt.Errorf("its manifest cannot be read: %w", err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return fmt.Errorf("its manifest cannot be read: %w", err)
	}
	a.Layers = len(m.Layers)
	for _, one := range m.Manifests {
		if name := platformOf(one.Platform); name != "" && len(a.Platforms) < maxPlatforms {
			a.Platforms = append(a.Platforms, Platform{name, one.Digest.String()})
		}
	}
	a.claim(m.Annotations)
	if !config || m.Config == nil || m.Config.MediaType != ocispec.MediaTypeImageConfig &&
		m.Config.MediaType != "application/vnd.docker.container.image.v1+json" {
		return nil
	}
	return a.readConfig(ctx, repository, *m.Config)
}

// readConfig reads the config of an image.
func (a *Artifact) readConfig(ctx context.Context, repository *remote.Repository, d ocispec.Descriptor) error {
	if d.Digest.Validate() != nil || d.Size < 0 || d.Size > maxManifest {
		return fmt.Errorf("its config is %.100q with %d bytes", d.Digest, d.Size)
	}
	data, err := content.FetchAll(ctx, repository.Blobs(), d) // verifies digest and size
	if err != nil {
		return err
	}
	var image struct {
		ocispec.Platform
		Created string `json:"created"`
		Config  struct {
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	if err := bound.JSON(data, manifestLimits); err != nil {
		return fmt.Errorf("its config cannot be read: %w", err)
	}
	if err := json.Unmarshal(data, &image); err != nil {
		return fmt.Errorf("its config cannot be read: %w", err)
	}
	if name := platformOf(&image.Platform); name != "" {
		a.Platforms = append(a.Platforms, Platform{Name: name})
	}
	a.claim(image.Config.Labels)
	a.claim(map[string]string{ocispec.AnnotationCreated: image.Created})
	return nil
}

// claim adds the claims that annotations or labels make, of which the first counts.
func (a *Artifact) claim(from map[string]string) {
	for _, key := range []string{ocispec.AnnotationCreated, ocispec.AnnotationSource, ocispec.AnnotationRevision,
		ocispec.AnnotationVersion} {
		name := strings.TrimPrefix(key, "org.opencontainers.image.")
		known := slices.ContainsFunc(a.Claims, func(c Claim) bool { return c.Name == name })
		if value := from[key]; value != "" && !known {
			a.Claims = append(a.Claims, Claim{name, fmt.Sprintf("%.256s", value)})
		}
	}
}

// platformOf returns a platform, or "" if it is none of an image.
func platformOf(p *ocispec.Platform) string {
	if p == nil || p.OS == "" || p.OS == "unknown" {
		return ""
	}
	name := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		name += "/" + p.Variant
	}
	return fmt.Sprintf("%.100s", name)
}
