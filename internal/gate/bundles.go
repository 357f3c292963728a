package gate

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/proof"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// bundleManifest is the manifest of a bundle of approvals, as a source lists it.
type bundleManifest struct {
	ocispec.Descriptor
	payload string // proof.AnnotationPayload, which nobody has authenticated: it decides only the order
}

// sortBundles returns the bundles that claim to be for a signature with this payload, followed by the others.
func sortBundles(list []bundleManifest, payload string) []bundleManifest {
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, func(a, b bundleManifest) int {
		switch {
		case a.payload == payload && b.payload != payload:
			return -1
		case a.payload != payload && b.payload == payload:
			return 1
		}
		return 0
	})
	return sorted
}

// fetched counts the bundles that were fetched for an image from one source.
type fetched struct{ all, others int }

// count counts a bundle. It returns false if it must not be fetched. Those that do not claim to be for the signature
// leave room for those that claim to be for the next one.
func (f *fetched) count(claimed bool) bool {
	if f.all == maxBundles || !claimed && f.others == maxOtherBundles {
		return false
	}
	f.all++
	if !claimed {
		f.others++
	}
	return true
}

// bundleAhead is a bundle that is fetched while the newest signature is, which it is usually for: this saves a round
// trip.
type bundleAhead struct {
	manifest digest.Digest
	done     chan struct{}
	bundle   []byte
	err      error
}

// fetchAhead begins to fetch a bundle of approvals.
func (s source) fetchAhead(ctx context.Context, manifest ocispec.Descriptor) *bundleAhead {
	a := &bundleAhead{manifest: manifest.Digest, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		if err := catchPanic(func() { a.bundle, a.err = s.fetchBundle(ctx, manifest) }); err != nil {
			a.err = err
		}
	}()
	return a
}

// fetchBundle returns a bundle of approvals, once it is fetched.
func (e *examination) fetchBundle(ctx context.Context, manifest ocispec.Descriptor) ([]byte, error) {
	a := e.ahead
	if a.manifest != manifest.Digest {
		return e.source.fetchBundle(ctx, manifest)
	}
	select {
	case <-a.done:
		return a.bundle, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fetchBundle fetches a bundle of approvals. Sizes in descriptors are checked before anything is fetched. The manifest
// usually has the bundle in it, so that nothing else is fetched.
func (s source) fetchBundle(ctx context.Context, manifest ocispec.Descriptor) ([]byte, error) {
	if manifest.MediaType != ocispec.MediaTypeImageManifest {
		return nil, fmt.Errorf("the bundle's manifest has the media type %.100q", manifest.MediaType)
	}
	data, err := registry.Fetch(ctx, s.manifests, manifest, maxBundleManifest)
	if err == nil {
		err = bound.JSON(data, bundleLimits)
	}
	var m struct {
		ArtifactType string
		Layers       []ocispec.Descriptor
	}
	if err == nil {
		err = json.Unmarshal(data, &m)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the bundle's manifest: %w", err)
	}
	if m.ArtifactType != proof.MediaType || len(m.Layers) != 1 || m.Layers[0].MediaType != proof.MediaType {
		return nil, fmt.Errorf("the bundle's manifest does not have one layer of the type %s", proof.MediaType)
	}
	layer, blobs := m.Layers[0], s.blobs
	if layer.Data != nil {
		blobs = content.FetcherFunc(func(context.Context, ocispec.Descriptor) (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(layer.Data)), nil
		})
	}
	bundle, err := registry.Fetch(ctx, blobs, layer, proof.MaxBundle)
	if err != nil {
		return nil, fmt.Errorf("cannot read the bundle: %w", err)
	}
	return bundle, nil
}
