// Package attach puts bundles of approvals beside the images that they are of, as referrers of the image in its
// registry, and reads them and the images' signatures there.
//
// A bundle needs no protection in a registry: whoever uses it verifies it with internal/proof. Everything that is read
// is within limits, and nothing of it is authenticated.
package attach

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

const (
	maxPushes = 3 // of one bundle, while other writers of the referrers' tag overwrite it
	maxLooked = 8 // bundles of one image that are compared with a new one
)

// Push attaches a bundle to an image as a referrer: an OCI manifest with the artifact type proof.MediaType, in which
// the bundle is embedded too, so that who reads it needs one request. payload says which of the image's signatures the
// bundle is of. Push uses the registry's referrers API, or the tag of the referrers' index where that is missing.
//
// It returns the descriptor of the manifest, and whether it was added: false if the image has this bundle already, or
// one with the same entries of the log under another checkpoint with as many signatures. It fails with Invalid for what
// is not a bundle of this signature.
func Push(ctx context.Context, to *remote.Repository, image ocispec.Descriptor, bundle []byte, payload string) (
	ocispec.Descriptor, bool, error) {
	b, err := proof.Decode(bundle)
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	signed := Signed(b, payload)
	if signed == nil {
		return ocispec.Descriptor{}, false, failure.New(failure.Invalid,
			"the bundle of approvals is of another signature than that of %s", image.Digest).
			WithHint("attach the bundle of the request that the image was signed with")
	}
	manifest, err := encode(image, bundle, payload, signed.At())
	if err != nil {
		return ocispec.Descriptor{}, false, err
	}
	to = writable(to)
	existing, found, err := same(ctx, to, image, b, payload)
	if err == nil && found {
		return existing, false, nil
	}
	d := content.NewDescriptorFromBytes(ocispec.MediaTypeImageManifest, manifest)
	if err == nil {
		err = push(ctx, to, image, bundle, manifest, d)
	}
	if err != nil {
		return d, false, fail(err, "cannot attach approvals to %s: %w", image.Digest, err)
	}
	return d, true, nil
}

// Signed returns the entry of a bundle that says that the bytes with a SHA-256 (sha256:HEX) were signed; nil if it has
// none.
func Signed(b *proof.Bundle, payload string) *entry.Event {
	for _, one := range b.Entries {
		if e, err := entry.Decode(one.Entry); err == nil && e.Type == entry.Signed && e.Payload == payload {
			return e
		}
	}
	return nil
}

// HasSignature reports whether a bundle has the entry of a signature.
func HasSignature(b *proof.Bundle) bool {
	return slices.ContainsFunc(b.Entries, func(one proof.Entry) bool {
		e, err := entry.Decode(one.Entry)
		return err == nil && e.Type == entry.Signed
	})
}

// encode returns the manifest of a bundle. The same arguments give the same bytes.
func encode(image ocispec.Descriptor, bundle []byte, payload string, signed time.Time) ([]byte, error) {
	layer := content.NewDescriptorFromBytes(proof.MediaType, bundle)
	layer.Data = bundle
	data, err := json.Marshal(ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest, ArtifactType: proof.MediaType, Config: ocispec.DescriptorEmptyJSON,
		Layers:  []ocispec.Descriptor{layer},
		Subject: &ocispec.Descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size},
		Annotations: map[string]string{proof.AnnotationPayload: payload,
			ocispec.AnnotationCreated: signed.UTC().Format(time.RFC3339)}})
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot encode the manifest of a bundle of approvals: %w", err)
	}
	return data, nil
}

// writable returns the same repository, as bundles are written to it: a manifest with a bundle may be larger than a
// page, and a registry may refuse to delete the old list of referrers.
func writable(r *remote.Repository) *remote.Repository {
	return &remote.Repository{Client: r.Client, PlainHTTP: r.PlainHTTP, Reference: r.Reference,
		ReferrerListMaxPages: r.ReferrerListMaxPages, TagListMaxPages: r.TagListMaxPages,
		TagListPageSize: r.TagListPageSize, MaxMetadataBytes: maxManifest, SkipReferrersGC: true}
}

// push uploads the bundle and its manifest, and then looks whether the image has it: where a registry has no referrers
// API, two writers of the index of referrers overwrite each other's change.
func push(ctx context.Context, to *remote.Repository, image ocispec.Descriptor, bundle, manifest []byte,
	d ocispec.Descriptor) error {
	blobs := []ocispec.Descriptor{ocispec.DescriptorEmptyJSON, content.NewDescriptorFromBytes(proof.MediaType, bundle)}
	for i, data := range [][]byte{ocispec.DescriptorEmptyJSON.Data, bundle} {
		exists, err := to.Blobs().Exists(ctx, blobs[i])
		if err == nil && !exists {
			err = to.Blobs().Push(ctx, blobs[i], bytes.NewReader(data))
		}
		if err != nil {
			return err
		}
	}
	for range maxPushes {
		if err := to.Manifests().Push(ctx, d, bytes.NewReader(manifest)); err != nil {
			return err
		}
		listed, more, err := List(ctx, to, image, proof.MediaType, maxListed)
		if err != nil {
			return err
		}
		if more || slices.ContainsFunc(listed, func(l ocispec.Descriptor) bool { return l.Digest == d.Digest }) {
			return nil
		}
	}
	return fmt.Errorf("the registry does not list it after %d attempts", maxPushes)
}

// same returns the bundle that an image has already with all that a new one has.
func same(ctx context.Context, from *remote.Repository, image ocispec.Descriptor, b *proof.Bundle, payload string) (
	found ocispec.Descriptor, exists bool, err error) {
	listed, _, err := List(ctx, from, image, proof.MediaType, maxListed)
	if err != nil {
		return found, false, err
	}
	looked := 0
	for _, d := range listed {
		if d.Annotations[proof.AnnotationPayload] != payload {
			continue
		}
		if looked++; looked > maxLooked {
			break
		}
		data, err := Fetch(ctx, from, d)
		if err != nil {
			if registry.Kind(err) != failure.Invalid && registry.Kind(err) != failure.NotFound {
				return found, false, err
			}
			continue // it is none: someone else has put it there
		}
		if has(data, b) {
			return d, true, nil
		}
	}
	return found, false, nil
}

// has reports whether a bundle has all that another one has, and its checkpoint as many signatures.
func has(data []byte, b *proof.Bundle) bool {
	old, err := proof.Decode(data)
	if err != nil || len(old.Entries) != len(b.Entries) || bytes.Count([]byte(old.Checkpoint), signatureLine) <
		bytes.Count([]byte(b.Checkpoint), signatureLine) {
		return false
	}
	for i, e := range old.Entries {
		if e.Index != b.Entries[i].Index || !bytes.Equal(e.Entry, b.Entries[i].Entry) {
			return false
		}
	}
	return bytes.Equal(old.Statement, b.Statement) && slices.EqualFunc(old.Approvals, b.Approvals, bytes.Equal) &&
		slices.EqualFunc(old.Rules, b.Rules, bytes.Equal)
}

// signatureLine begins a line of a signed note that has a signature.
var signatureLine = []byte("\n\u2014 ")

// fail returns the failure of an operation because of an error of the registry, or of what it sent.
func fail(cause error, format string, args ...any) error {
	kind := registry.Kind(cause)
	err := failure.New(kind, format, args...)
	switch kind {
	case failure.Denied:
		return err.WithHint("use credentials that may do this in the repository: 'notation login'")
	case failure.Unavailable, failure.Timeout, failure.Throttled:
		return err.WithHint("check the registry and the network, and try again")
	}
	return err
}
