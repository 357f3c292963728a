package repository

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/errdef"

	access "github.com/notation-hsm/notation-hsm/internal/registry"
)

// Kinds of what is attached to an image.
const (
	Signature   = "signature"
	SBOM        = "sbom"
	Attestation = "attestation"
	Other       = "other"
)

// Attached counts artifacts of one type that refer to an image. Nobody has verified them.
type Attached struct {
	Kind  string // Signature, SBOM, Attestation or Other
	Name  string // of the format, such as Notation, cosign, SPDX; "" if it is not known
	Type  string // artifact type, and the type of an attestation's predicate, as the registry has them
	Count int
}

const (
	maxAttached      = 1000 // referrers that are counted
	maxAttachedTypes = 32   // types of them; those of others are one
)

// attached counts the referrers of the image, and what cosign stores under tags of its own. It reports whether there
// may be more.
func (l *lists) attached(ctx context.Context) (found []Attached, more bool, err error) {
	n := 0
	image := ocispec.Descriptor{Digest: l.digest}
	err = access.Referrers(ctx, l.repository, image, "", func(page []ocispec.Descriptor) error {
		for _, d := range page {
			if n++; n > maxAttached {
				more = true
				return errEnough
			}
			found = count(found, classify(d.ArtifactType, d.Annotations))
		}
		return nil
	})
	switch {
	case errors.Is(err, errdef.ErrTooManyPages):
		more, err = true, nil
	case errors.Is(err, errdef.ErrNotFound), errors.Is(err, errEnough):
		err = nil
	}
	for _, suffix := range []string{".sig", ".att", ".sbom"} {
		layers, failed := l.cosign(ctx, suffix)
		for _, layer := range layers {
			found = count(found, classify(layer.MediaType, layer.Annotations))
		}
		err = cmp.Or(err, failed)
	}
	return found, more, err
}

// cosign returns the layers of a manifest that cosign stores under the tag ALGORITHM-HEX and a suffix: each is a
// signature, an attestation or an SBOM. There are none without the tag.
func (l *lists) cosign(ctx context.Context, suffix string) ([]ocispec.Descriptor, error) {
	tag := l.digest.Algorithm().String() + "-" + l.digest.Encoded() + suffix
	if !validTag.MatchString(tag) {
		return nil, nil
	}
	d, err := l.repository.Resolve(ctx, tag)
	if errors.Is(err, errdef.ErrNotFound) || err == nil && !isManifest(d.MediaType) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	data, err := access.Fetch(ctx, l.repository.Manifests(), d, maxManifest)
	if err != nil {
		return nil, err
	}
	m, err := parse(data, d.MediaType)
	if err != nil {
		return nil, err
	}
	return m.Layers[:min(len(m.Layers), maxAttached)], nil
}

// count adds one to those of the same type.
func count(found []Attached, one Attached) []Attached {
	same := func(a Attached) bool { return a.Kind == one.Kind && a.Name == one.Name && a.Type == one.Type }
	i := slices.IndexFunc(found, same)
	if i < 0 && len(found) >= maxAttachedTypes {
		one = Attached{Kind: Other}
		i = slices.IndexFunc(found, same)
	}
	if i < 0 {
		one.Count = 1
		return append(found, one)
	}
	found[i].Count++
	return found
}

// predicates are annotations that name the type of an attestation's predicate.
var predicates = []string{"in-toto.io/predicate-type", "dev.sigstore.bundle.predicateType", "predicateType"}

// formats are the formats of artifacts whose type has a text in it, in the order in which they are looked for.
var formats = []struct{ text, kind, name string }{
	{"vnd.cncf.notary.signature", Signature, "Notation"},
	{"vnd.dev.cosign.simplesigning", Signature, "cosign"},
	{"vnd.dev.cosign.artifact.sig", Signature, "cosign"},
	{"vnd.in-toto", Attestation, "in-toto"},
	{"vnd.dsse.envelope", Attestation, "in-toto"},
	{"vnd.dev.sigstore.bundle", Attestation, "sigstore bundle"},
	{"vnd.dev.cosign.artifact.att", Attestation, "cosign"},
	{"spdx", SBOM, "SPDX"},
	{"cyclonedx", SBOM, "CycloneDX"},
	{"vnd.syft", SBOM, "Syft"},
	{"vnd.dev.cosign.artifact.sbom", SBOM, "cosign"},
}

// cosignPredicate is the predicate of a sigstore bundle that is a signature of an image.
const cosignPredicate = "https://sigstore.dev/cosign/sign/v1"

// classify returns what an artifact is, by its type and annotations alone.
func classify(artifactType string, annotations map[string]string) Attached {
	a := Attached{Kind: Other, Type: printable(artifactType)}
	for _, f := range formats {
		if strings.Contains(strings.ToLower(artifactType), f.text) {
			a.Kind, a.Name = f.kind, f.name
			break
		}
	}
	if a.Kind != Attestation {
		return a
	}
	for _, key := range predicates {
		if predicate := annotations[key]; predicate != "" {
			a.Type += " (" + printable(predicate) + ")"
			if predicate == cosignPredicate {
				a.Kind, a.Name = Signature, "cosign"
			}
			break
		}
	}
	return a
}
