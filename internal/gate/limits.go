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

// What a registry or an OCI layout may have us read for one image. Whoever can push to it wrote what is there, and
// nothing of it is known to be true until a signature has verified.
const (
	maxSignatures = 50       // that are looked at, newest first; Notation's own number
	maxListed     = 1000     // signatures that are listed to find the newest
	maxPages      = 20       // of a list of referrers
	maxPage       = 1 << 20  // bytes of a page
	maxIndex      = 4 << 20  // bytes of an index in an OCI layout
	maxManifest   = 64 << 10 // bytes of a signature's manifest
	maxEnvelope   = 1 << 20  // bytes of a signature's envelope
	maxReply      = 5 << 20  // bytes of any reply; containerd takes manifests of a little less
	maxHeader     = 64 << 10 // bytes of a reply's header
	maxReplies    = 300      // from one source
	maxBytes      = 64 << 20 // of all replies of one source
	maxNodes      = 10000    // manifests in an OCI layout
)

// The structure of what is parsed.
var (
	manifestLimits = bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 2000}
	pageLimits     = bound.Limits{Bytes: maxPage, Depth: bound.Depth, Elements: 20000}
	// of an OCI layout, which may have many images
	indexLimits = bound.Limits{Bytes: maxIndex, Depth: bound.Depth, Elements: 50000}
)

// memory is what the Go runtime may use, so that the process with its code stays below 128 MiB.
const memory = 64 << 20

// LimitMemory has the process collect garbage rather than grow, unless GOMEMLIMIT is lower. What is read for an image
// has bounds of its own, and fits.
func LimitMemory() {
	if debug.SetMemoryLimit(-1) > memory {
		debug.SetMemoryLimit(memory)
	}
}

// limited is a transport to one source, for one image. It ends replies that are too long, and refuses requests when
// there were too many.
type limited struct {
	base    http.RoundTripper
	replies atomic.Int64
	bytes   atomic.Int64
}

// RoundTrip sends a request on, also one that follows a redirect or is for a token.
func (l *limited) RoundTrip(request *http.Request) (*http.Response, error) {
	if l.replies.Add(1) > maxReplies {
		return nil, fmt.Errorf("it takes more than %d requests", maxReplies)
	}
	response, err := l.base.RoundTrip(request)
	if err != nil {
		return nil, err
	}
	response.Body = &limitedBody{ReadCloser: response.Body, all: &l.bytes, left: maxReply}
	// The library parses nothing else. Of the index behind a tag it reads the media type so, without its case and its
	// parameters.
	mediaType, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	if request.Context().Value(listing{}) != nil && request.Method == http.MethodGet &&
		response.StatusCode == http.StatusOK &&
		mediaType == ocispec.MediaTypeImageIndex {
		if err := checkPage(response); err != nil {
			return nil, err
		}
	}
	return response, nil
}

// listing marks the context of requests for lists of referrers, which the library parses as they come.
type listing struct{}

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
