package tufstore

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Published are the published metadata of a repository at one moment. What the publisher writes later does not change
// them.
type Published struct {
	Digest digest.Digest // of the manifest
	store  *Store
	files  files
}

// Published fetches the published metadata with one request. It fails with NotFound if the repository has none.
func (s *Store) Published(ctx context.Context) (*Published, error) {
	data, d, err := s.manifest(ctx, Tag)
	if err == nil {
		var f files
		if f, err = decode(data, publishedType); err == nil {
			return &Published{Digest: d, store: s, files: f}, nil
		}
	}
	failed := fail(err, "cannot read the tag %s of %s: %w", Tag, s.name, err)
	if failed.Kind == failure.NotFound {
		return nil, failed.WithHint("make the metadata with 'hsm-image tag init'")
	}
	return nil, failed
}

// lostBlob is the hint for a file that a manifest has and the registry does not have.
const lostBlob = "restore the storage of the registry, which has lost a blob"

// Names returns the names of the files, sorted.
func (p *Published) Names() []string { return slices.Sorted(maps.Keys(p.files)) }

// Read returns a file, after it has verified the size and the digest that the manifest has for it. It fails with
// NotFound if the manifest has no such file, and before it fetches anything if the file has more than limit bytes. The
// file timestamp.json needs no request.
func (p *Published) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	d, exists := p.files[name]
	if !exists {
		return nil, failure.New(failure.NotFound, "cannot read %.150q from the metadata of %s: there is no such file", name,
			p.store.name)
	}
	data, err := p.store.read(ctx, d, limit)
	if err == nil {
		return data, nil
	}
	failed := fail(err, "cannot read %s from the metadata of %s: %w", name, p.store.name, err)
	if failed.Kind == failure.NotFound {
		// The manifest has it. Who looks for the next version of root must not take it for the end of the chain.
		failed.Kind = failure.Unavailable
		return nil, failed.WithHint(lostBlob)
	}
	return nil, failed
}

// Restore has the reserved tag lead to a manifest that was published before, by its digest: someone else has overwritten
// or deleted the tag. It fails with NotFound if the registry has the manifest no more.
func (s *Store) Restore(ctx context.Context, published digest.Digest) error {
	manifest, err := s.repository.Resolve(ctx, published.String())
	if err == nil {
		err = s.repository.Tag(ctx, manifest, Tag)
	}
	if err != nil {
		return fail(err, "cannot restore the tag %s of %s: %w", Tag, s.name, err)
	}
	return nil
}

// Publish writes the published metadata: added files, and the named ones to keep of those that were published before,
// which are nil if there were none. Only the publisher calls it. Files are uploaded before the tag changes, so an
// interruption leaves what was published before. It fails with Conflict if the registry does not let the tag be
// overwritten.
func (s *Store) Publish(ctx context.Context, previous *Published, added map[string][]byte, keep []string) error {
	manifest, blobs, err := compose(previous, added, keep)
	if err != nil {
		return failure.New(failure.Invalid, "cannot publish the metadata of %s: %w", s.name, err).
			WithHint("remove delegations that nobody uses")
	}
	if err := s.push(ctx, blobs, manifest, Tag); err != nil {
		failed := fail(err, "cannot publish the metadata of %s: %w", s.name, err)
		if immutable(err) {
			failed.Kind = failure.Conflict
			return failed.WithHint("exempt the tag " + Tag + " from the registry's rule of immutable tags")
		}
		var code errcode.Error
		if errors.As(err, &code) && code.Code == errcode.ErrorCodeManifestBlobUnknown { // a kept file's
			failed.Kind = failure.Unavailable
			return failed.WithHint(lostBlob)
		}
		return failed
	}
	return nil
}

// compose returns the manifest of added and kept files, and the blobs of the added ones.
func compose(previous *Published, added map[string][]byte, keep []string) ([]byte, map[digest.Digest][]byte, error) {
	if err := check(added); err != nil {
		return nil, nil, err
	}
	f, blobs := files{}, map[digest.Digest][]byte{}
	for _, name := range keep {
		if previous == nil || previous.files[name].Digest == "" {
			return nil, nil, errors.New("the file " + name + " was not published before")
		}
		f[name] = previous.files[name]
	}
	for name, data := range added {
		if _, kept := f[name]; kept {
			return nil, nil, errors.New("the file " + name + " is both new and kept")
		}
		d := describe(name, data)
		if name == timestamp {
			d.Data = data
		}
		f[name] = d
		blobs[d.Digest] = data
	}
	manifest, err := f.encode(publishedType)
	return manifest, blobs, err
}

// immutable reports whether a registry refused to write a tag because tags may not be overwritten. Registries have no
// common status or code for it, but say it in words.
func immutable(err error) bool {
	var status *errcode.ErrorResponse
	if !errors.As(err, &status) || !strings.Contains(status.URL.Path, "/manifests/") {
		return false
	}
	switch status.StatusCode {
	case http.StatusConflict, http.StatusPreconditionFailed:
		return true
	case http.StatusBadRequest, http.StatusForbidden, http.StatusMethodNotAllowed:
	default:
		return false
	}
	text := strings.ToLower(status.Errors.Error())
	for _, words := range []string{"immutab", "overwrit", "already exist", "disallowed", "locked"} {
		if strings.Contains(text, words) {
			return true
		}
	}
	return false
}
