package repository

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// Claims are what an image says of itself. Whoever pushed it has written them, and nobody has verified them: they are
// shown as "the image claims", and no policy reads them.
type Claims struct {
	MediaType string // of the manifest or the index; verified
	// ManifestSize is the size of the manifest or the index in bytes; verified.
	ManifestSize int64
	Manifests    int      // in an index, attestations included; 0 for a manifest
	Created      string   // RFC 3339
	Source       string   // org.opencontainers.image.source
	Revision     string   // org.opencontainers.image.revision
	Version      string   // org.opencontainers.image.version
	Platforms    []string // OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, of at most maxPlatforms
	Size         int64    // bytes of all layers as the registry stores them; 0 if not known
}

// clone returns a copy that shares nothing.
func (c *Claims) clone() *Claims {
	if c == nil {
		return nil
	}
	copied := *c
	copied.Platforms = slices.Clone(c.Platforms)
	return &copied
}

const (
	maxManifest  = 4 << 20 // bytes; registries accept no larger ones
	maxImage     = 4 << 20 // bytes of the configuration of an image
	maxEntries   = 1000    // manifests in an index
	maxChildren  = 16      // manifests of an index that are fetched
	maxPlatforms = 64
	maxClaim     = 256 // characters of a claim
)

var limits = bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 50000}

// Media types of Docker, which registries and Notation treat as those of OCI.
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerImage    = "application/vnd.docker.container.image.v1+json"

	artifactManifest = "application/vnd.oci.artifact.manifest.v1+json"
)

// document is a manifest or an index.
type document struct {
	MediaType   string               `json:"mediaType"`
	Config      *ocispec.Descriptor  `json:"config"`
	Layers      []ocispec.Descriptor `json:"layers"`
	Manifests   []ocispec.Descriptor `json:"manifests"`
	Annotations map[string]string    `json:"annotations"`
}

// parse reads a manifest or an index. It refuses one that is both, as programs differ in what they take it for.
func parse(data []byte, mediaType string) (*document, error) {
	if err := bound.JSON(data, limits); err != nil {
		return nil, refuseContent("the manifest is refused: %v", err)
	}
	var d document
	if err := json.Unmarshal(data, &d); err != nil {
		return nil, refuseContent("the manifest cannot be read: %v", err)
	}
	switch {
	case d.MediaType != "" && d.MediaType != mediaType:
		return nil, refuseContent("the manifest says that it is %.100q, not %s", d.MediaType, mediaType)
	case len(d.Manifests) > 0 && (d.Config != nil || len(d.Layers) > 0):
		return nil, refuseContent("the manifest is a manifest and an index at once")
	case len(d.Manifests) > 0 && isManifest(mediaType):
		return nil, refuseContent("the manifest is an index, not %s", mediaType)
	case (d.Config != nil || len(d.Layers) > 0) && isIndex(mediaType):
		return nil, refuseContent("the index is a manifest, not %s", mediaType)
	case len(d.Manifests) > maxEntries:
		return nil, refuseContent("the index has %d manifests, more than %d", len(d.Manifests), maxEntries)
	}
	return &d, nil
}

func isManifest(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest
}

func isIndex(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerList
}

func isImageConfig(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageConfig || mediaType == dockerImage
}

// claims reads what a manifest or an index claims. Of an index it fetches the manifests, if they are not too many, for
// their size; the first one with a platform says what the index does not. What the repository does not have is left
// out. Artifacts of other kinds claim nothing.
func (s *session) claims(ctx context.Context, a artifact, data []byte) (*Claims, error) {
	c := &Claims{MediaType: a.mediaType}
	if !isManifest(a.mediaType) && !isIndex(a.mediaType) {
		return c, nil
	}
	d, err := parse(data, a.mediaType)
	if err != nil {
		return nil, err
	}
	c.label(d.Annotations)
	if isManifest(a.mediaType) {
		if c.Size, err = layersSize(d); err == nil {
			err = s.image(ctx, c, d)
		}
		return c, err
	}
	c.Manifests = len(d.Manifests)
	for _, m := range d.Manifests {
		c.platform(m.Platform)
	}
	if len(d.Manifests) > maxChildren {
		return c, nil
	}
	return c, s.children(ctx, c, d.Manifests)
}

// children adds the claims of the manifests of an index. An index in an index is not read.
func (s *session) children(ctx context.Context, c *Claims, list []ocispec.Descriptor) error {
	total, described := int64(0), false
	for _, m := range list {
		if !isManifest(m.MediaType) {
			return nil
		}
		data, err := s.fetchChild(ctx, manifests, m, maxManifest)
		if errors.Is(err, errAbsent) {
			return nil // copied without this platform
		}
		if err != nil {
			return err
		}
		d, err := parse(data, m.MediaType)
		if err != nil {
			return err
		}
		size, err := layersSize(d)
		if err != nil {
			return err
		}
		if total > math.MaxInt64-size {
			return refuseContent("the sizes of its layers exceed all limits")
		}
		total += size
		if !described && known(m.Platform) {
			described = true
			c.label(d.Annotations)
			if err := s.image(ctx, c, d); err != nil {
				return err
			}
		}
	}
	c.Size = total
	return nil
}

// image adds what the configuration of an image claims. Other artifacts have none that can be read.
func (s *session) image(ctx context.Context, c *Claims, d *document) error {
	if d.Config == nil || !isImageConfig(d.Config.MediaType) {
		return nil
	}
	data, err := s.fetchChild(ctx, blobs, *d.Config, maxImage)
	if errors.Is(err, errAbsent) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := bound.JSON(data, limits); err != nil {
		return refuseContent("the configuration of the image is refused: %v", err)
	}
	var image struct {
		ocispec.Platform
		Created string `json:"created"`
		Config  struct {
			Labels map[string]string `json:"Labels"`
		} `json:"config"`
	}
	if err := json.Unmarshal(data, &image); err != nil {
		return refuseContent("the configuration of the image cannot be read: %v", err)
	}
	c.label(image.Config.Labels)
	c.created(image.Created)
	c.platform(&image.Platform)
	return nil
}

// fetchChild fetches what a manifest or an index refers to.
func (s *session) fetchChild(ctx context.Context, kind string, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Digest.Validate() != nil || d.Size < 0 || d.Size > limit {
		return nil, refuseContent("it refers to %.100q with %d bytes; at most it may have %d", d.Digest, d.Size, limit)
	}
	return s.fetch(ctx, kind, d.MediaType, digest.Digest(d.Digest.String()), d.Size)
}

// layersSize returns the bytes of the layers of a manifest.
func layersSize(d *document) (int64, error) {
	total := int64(0)
	for _, layer := range d.Layers {
		if layer.Size < 0 || total > math.MaxInt64-layer.Size {
			return 0, refuseContent("it has a layer of %d bytes", layer.Size)
		}
		total += layer.Size
	}
	return total, nil
}

// label sets the claims that are still empty from annotations or labels.
func (c *Claims) label(labels map[string]string) {
	for key, claim := range map[string]*string{ocispec.AnnotationSource: &c.Source,
		ocispec.AnnotationRevision: &c.Revision, ocispec.AnnotationVersion: &c.Version} {
		if *claim == "" {
			*claim = printable(labels[key])
		}
	}
	c.created(labels[ocispec.AnnotationCreated])
}

func (c *Claims) created(text string) {
	if t, err := time.Parse(time.RFC3339, text); err == nil && c.Created == "" && !t.IsZero() {
		c.Created = t.UTC().Format(time.RFC3339)
	}
}

// known reports whether a descriptor is of an image; attestations have the platform unknown/unknown.
func known(p *ocispec.Platform) bool { return p != nil && p.OS != "" && p.OS != "unknown" }

func (c *Claims) platform(p *ocispec.Platform) {
	if len(c.Platforms) >= maxPlatforms {
		return
	}
	if text := platformText(p); text != "" && !slices.Contains(c.Platforms, text) {
		c.Platforms = append(c.Platforms, text)
	}
}

// platformText returns a platform as OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT, or "" if it is not one of an image.
func platformText(p *ocispec.Platform) string {
	if !known(p) {
		return ""
	}
	text := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		text += "/" + p.Variant
	}
	return printable(text)
}

// printable returns a claim for display: cut after maxClaim characters, with a replacement for characters that could
// change how other text appears, such as escapes of terminals and changes of direction.
func printable(text string) string {
	runes := []rune(text)
	if len(runes) > maxClaim {
		runes = append(runes[:maxClaim-1], '…')
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return unicode.ReplacementChar
	}, string(runes))
}
