package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"
)

// What the API of a registry serves by digest.
const (
	manifests = "manifests"
	blobs     = "blobs"
)

// session is one check in one repository.
type session struct {
	registry   *registry
	client     *auth.Client
	repository string // in normal form
	path       string // the repository without its registry
	timeout    time.Duration
}

// errAbsent is the error of fetch if the registry answers that there is no such content.
var errAbsent = errors.New("not found")

// statusError is an HTTP status that is neither success nor 404.
type statusError int

func (s statusError) Error() string {
	return fmt.Sprintf("the registry answered with status %d", int(s))
}

// contentError is an error of content that is not what it has to be.
type contentError struct{ message string }

func (c *contentError) Error() string { return c.message }

func refuseContent(format string, args ...any) error {
	return &contentError{fmt.Sprintf(format, args...)}
}

// fetch returns a manifest or a blob of the repository. Its digest, its size in bytes and, for a manifest, the media
// type are those that were asked for. It reads at most a byte more.
func (s *session) fetch(ctx context.Context, kind, mediaType string, sum digest.Digest, size int64) ([]byte, error) {
	data, _, err := s.get(ctx, kind, mediaType, sum, size)
	return data, err
}

// accepted are the media types of manifests whose type is not known.
const accepted = ocispec.MediaTypeImageManifest + ", " + ocispec.MediaTypeImageIndex + ", " + dockerManifest + ", " +
	dockerList + ", " + artifactManifest

// get is fetch that takes any media type instead of "", and any size of a manifest instead of 0, and returns the media
// type.
func (s *session) get(ctx context.Context, kind, mediaType string, sum digest.Digest, size int64) (data []byte,
	served string, err error) {
	host := s.registry.address
	ctx = auth.AppendRepositoryScope(ctx, oras.Reference{Registry: host, Repository: s.path}, auth.ActionPull)
	address := s.registry.scheme + "://" + host + "/v2/" + s.path + "/" + kind + "/" + sum.String()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, address, http.NoBody)
	if err != nil {
		return nil, "", err
	}
	if kind == manifests {
		request.Header.Set("Accept", cmp.Or(mediaType, accepted))
	}
	response, err := s.client.Do(request)
	if err != nil {
		var token *errcode.ErrorResponse
		if errors.As(err, &token) {
			return nil, "", statusError(token.StatusCode)
		}
		if errors.Is(err, auth.ErrBasicCredentialNotFound) {
			return nil, "", statusError(http.StatusUnauthorized)
		}
		return nil, "", err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusNotFound:
		return nil, "", errAbsent
	default:
		return nil, "", statusError(response.StatusCode)
	}
	if kind == manifests {
		served, _, err = mime.ParseMediaType(response.Header.Get("Content-Type"))
		if known := strings.Split(accepted, ", "); err != nil || mediaType != "" && served != mediaType ||
			mediaType == "" && !slices.Contains(known, served) {
			return nil, "", refuseContent("the registry has it with media type %.100q, not %s",
				response.Header.Get("Content-Type"), cmp.Or(mediaType, "one of a manifest"))
		}
	}
	limit := size
	if size == 0 {
		limit = maxManifest
	}
	if response.ContentLength > limit || size > 0 && response.ContentLength >= 0 && response.ContentLength != size {
		return nil, "", refuseContent("the registry has %d bytes for %s, not %d", response.ContentLength, sum, limit)
	}
	data, err = io.ReadAll(io.LimitReader(response.Body, limit+1))
	switch {
	case err != nil:
		return nil, "", fmt.Errorf("the answer broke off: %w", err)
	case int64(len(data)) > limit:
		return nil, "", refuseContent("the registry has more than %d bytes for %s", limit, sum)
	case int64(len(data)) < size:
		return nil, "", refuseContent("the registry has %d bytes for %s, not %d", len(data), sum, size)
	case sum.Algorithm().FromBytes(data) != sum:
		return nil, "", refuseContent("the registry has other content for %s", sum)
	}
	return data, served, nil
}
