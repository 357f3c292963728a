package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	oras "oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Limits of what a registry may send, for one repository.
const (
	MaxPages  = 20       // pages of a list of referrers
	maxTags   = 1000     // pages of a list of tags
	pageSize  = 100      // tags that a page is asked for; some registries have no larger ones
	MaxPage   = 1 << 20  // bytes of a page
	MaxHeader = 64 << 10 // bytes of the header of a reply
	maxReply  = 5 << 20  // bytes of a reply; containerd's limit for manifests is a little lower
)

// Limits are for all requests to one repository together, until another is made.
type Limits struct {
	Requests int64 // with those for redirects and tokens
	Bytes    int64 // of the bodies of all replies
}

// OneImage are the limits for the verification of one image.
var OneImage = Limits{Requests: 300, Bytes: 64 << 20}

// pageLimits are the limits of the structure of a page.
var pageLimits = bound.Limits{Bytes: MaxPage, Depth: bound.Depth, Elements: 20000}

// limitError says which limit a registry has exceeded.
type limitError struct {
	what string
	all  bool // it is one of Limits, so all later requests fail too
}

func (e *limitError) Error() string { return e.what }

// Exhausted reports whether err is the end of what Limits allow for a repository.
func Exhausted(err error) bool {
	var limit *limitError
	return errors.As(err, &limit) && limit.all
}

// limitedTransport is a transport to one repository. It limits the size and the number of replies.
type limitedTransport struct {
	base     http.RoundTripper
	limits   Limits
	requests atomic.Int64
	bytes    atomic.Int64
}

// RoundTrip sends a request, including those for redirects and tokens. It fails when the limit of requests is exceeded;
// reading a reply fails at maxReply and at the limit of bytes.
func (l *limitedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	if l.requests.Add(1) > l.limits.Requests {
		return nil, &limitError{fmt.Sprintf("it needs more than %d requests", l.limits.Requests), true}
	}
	response, err := l.base.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	response.Body = &limitedBody{ReadCloser: response.Body, transport: l, left: maxReply}
	// The ORAS library parses no other replies without a limit of their own. For the index behind a tag it parses the
	// media type like this, without case and parameters.
	mediaType, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	list, listed := request.Context().Value(listingKey{}).(listing)
	if listed && (list == tags || string(list) == mediaType) && request.Method == http.MethodGet &&
		response.StatusCode == http.StatusOK {
		if err := checkPage(response); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// limitedBody is the body of a reply, which fails to read at the limits.
type limitedBody struct {
	io.ReadCloser
	transport *limitedTransport
	left      int64
}

// Read fails when the reply is longer than maxReply, or all replies are longer than the limit.
func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if limit := b.transport.limits.Bytes; b.transport.bytes.Add(int64(n)) > limit {
		return 0, &limitError{fmt.Sprintf("the replies are longer than %d bytes", limit), true}
	}
	if b.left < 0 {
		return 0, &limitError{fmt.Sprintf("the reply is longer than %d bytes", maxReply), false}
	}
	return n, err
}

// listing marks the context of requests for lists, which the ORAS library parses while it reads them.
type listing string

// The lists. An index of referrers is known by its media type; the same requests get other replies as well.
const (
	referrers listing = ocispec.MediaTypeImageIndex
	tags      listing = "" // any media type
)

type listingKey struct{}

// Tags lists the tags of a repository that follow another one in lexical order, if the registry supports that, or else
// all tags. The pages are checked against the limits before they are parsed.
func Tags(ctx context.Context, from *remote.Repository, last string, page func([]string) error) error {
	ctx = context.WithValue(ctx, listingKey{}, tags)
	begun := false
	err := from.Tags(ctx, last, func(tags []string) error {
		begun = true
		return page(tags)
	})
	var refused *errcode.ErrorResponse
	if kind := Kind(err); begun || !errors.As(err, &refused) || kind != failure.Invalid && kind != failure.Unsupported {
		return err
	}
	// Some registries refuse pages of a size that they do not have, instead of sending smaller ones.
	plain := &remote.Repository{Client: from.Client, PlainHTTP: from.PlainHTTP, Reference: from.Reference,
		TagListMaxPages: from.TagListMaxPages, MaxMetadataBytes: from.MaxMetadataBytes}
	return plain.Tags(ctx, "", page)
}

// Referrers lists the referrers of an image in a registry or an OCI layout. The pages of a registry are checked against
// the limits before they are parsed.
func Referrers(ctx context.Context, from oras.ReferrerLister, image ocispec.Descriptor, artifactType string,
	page func([]ocispec.Descriptor) error) error {
	return from.Referrers(context.WithValue(ctx, listingKey{}, referrers), image, artifactType, page)
}

// checkPage reads a page of a list, checks its limits, and makes it the body of the response again.
func checkPage(response *http.Response) error {
	defer response.Body.Close()
	page, err := io.ReadAll(io.LimitReader(response.Body, MaxPage+1))
	if err != nil {
		return err
	}
	if err := bound.JSON(page, pageLimits); err != nil {
		return &limitError{fmt.Sprintf("the list is refused: %v", err), false}
	}
	response.Body = io.NopCloser(bytes.NewReader(page))
	return nil
}

// Fetch returns the content of a descriptor, after it has verified the size and the digest. It fails before it fetches
// anything if the descriptor has more than limit bytes.
func Fetch(ctx context.Context, from content.Fetcher, descriptor ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := descriptor.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%.100q: %w", descriptor.Digest, err)
	}
	if descriptor.Size > limit {
		return nil, fmt.Errorf("it has %d bytes, more than %d", descriptor.Size, limit)
	}
	return content.FetchAll(ctx, from, descriptor)
}
