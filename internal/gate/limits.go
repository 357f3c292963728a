package gate

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"net/http"
	"runtime/debug"
	"sync/atomic"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// Limits of what is read from a registry or an OCI layout for one image. Whoever can push there controls that data, and
// none of it is authenticated before a signature has been verified.
const (
	maxSignatures = 50       // signatures that are verified, newest first; the same number as Notation's
	maxListed     = 1000     // signatures that are listed to find the newest
	maxPages      = 20       // pages of a list of referrers
	maxPage       = 1 << 20  // bytes of a page
	maxIndex      = 4 << 20  // bytes of an index in an OCI layout
	maxManifest   = 64 << 10 // bytes of the manifest of a signature
	maxEnvelope   = 1 << 20  // bytes of the envelope of a signature
	maxReply      = 5 << 20  // bytes of a reply; containerd's limit for manifests is a little lower
	maxHeader     = 64 << 10 // bytes of the header of a reply
	maxReplies    = 300      // replies of one source
	maxBytes      = 64 << 20 // bytes of all replies of one source, or of all manifests of a layout
	maxNodes      = 10000    // manifests in an OCI layout
)

// Limits of the structure of JSON.
var (
	manifestLimits = bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 2000}
	pageLimits     = bound.Limits{Bytes: maxPage, Depth: bound.Depth, Elements: 20000}
	// an OCI layout may have many images
	indexLimits = bound.Limits{Bytes: maxIndex, Depth: bound.Depth, Elements: 50000}
)

// memoryTarget is the memory of the Go runtime in bytes. With its code the process stays below 128 MiB.
const memoryTarget = 64 << 20

// LimitMemory sets the memory limit of the Go runtime, which then collects garbage before it grows, unless GOMEMLIMIT
// is lower. What is read for an image fits into it.
func LimitMemory() {
	if debug.SetMemoryLimit(-1) > memoryTarget {
		debug.SetMemoryLimit(memoryTarget)
	}
}

// limitedTransport is a transport to one source, for one image. It limits the size and the number of replies.
type limitedTransport struct {
	base    http.RoundTripper
	replies atomic.Int64
	bytes   atomic.Int64
}

// RoundTrip sends a request, including those for redirects and tokens. It fails after maxReplies requests; reading a
// reply fails at maxReply and maxBytes.
func (l *limitedTransport) RoundTrip(request *http.Request) (*http.Response, error) {
	if l.replies.Add(1) > maxReplies {
		return nil, fmt.Errorf("it needs more than %d requests", maxReplies)
	}
	response, err := l.base.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	response.Body = &limitedBody{ReadCloser: response.Body, all: &l.bytes, left: maxReply}
	// The ORAS library parses no other replies without a limit of their own. For the index behind a tag it parses the
	// media type like this, without case and parameters.
	mediaType, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if request.Context().Value(listingKey{}) != nil && request.Method == http.MethodGet &&
		response.StatusCode == http.StatusOK && mediaType == ocispec.MediaTypeImageIndex {
		if err := checkPage(response); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// listingKey marks the context of requests for lists of referrers, which the ORAS library parses while it reads them.
type listingKey struct{}

// checkPage reads a page of a list of referrers, checks its limits, and makes it the body of the response again.
func checkPage(response *http.Response) error {
	defer response.Body.Close()
	page, err := io.ReadAll(io.LimitReader(response.Body, maxPage+1))
	if err == nil {
		err = bound.JSON(page, pageLimits)
	}
	if err != nil {
		return fmt.Errorf("the list of signatures is refused: %w", err)
	}
	response.Body = io.NopCloser(bytes.NewReader(page))
	return nil
}

// limitedBody is the body of a reply, which fails to read at the limits.
type limitedBody struct {
	io.ReadCloser
	all  *atomic.Int64
	left int64
}

var (
	errLongReply   = fmt.Errorf("the reply is longer than %d bytes", maxReply)
	errLongReplies = fmt.Errorf("the replies are longer than %d bytes", maxBytes)
)

func (b *limitedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if b.all.Add(int64(n)) > maxBytes {
		return 0, errLongReplies
	}
	if b.left < 0 {
		return 0, errLongReply
	}
	return n, err
}
