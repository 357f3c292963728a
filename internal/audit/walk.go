package audit

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/attach"
	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// Limits of what is read of a repository.
const (
	maxManifests  = 500_000 // manifests of images and indexes, and signatures, together
	maxReferrers  = 10_000  // of one image
	maxManifest   = 4 << 20 // bytes
	maxSubject    = 256     // bytes of a subject that are kept
	maxDepth      = 4       // indexes in indexes, and referrers of referrers
	atOnce        = 8       // tags that are read at the same time
	attempts      = 4       // of a request that a registry refuses for a while
	mediaListV2   = "application/vnd.docker.distribution.manifest.list.v2+json"
	requestsLimit = 10 * time.Minute // for all requests of one tag
)

var manifestLimits = bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 50_000}

// referrersTag matches the tags of lists of referrers, where a registry has no referrers API.
var referrersTag = regexp.MustCompile(`^sha256-[0-9a-f]{64}$`)

// walk finds all signatures of a repository.
type walk struct {
	Options

	keys keys
	from *remote.Repository

	mutex    sync.Mutex
	seen     map[read]bool
	tags     map[digest.Digest]string // of tagged manifests, the first by name
	subjects map[string]string        // of certificates, each once
	found    []signature
	others   int
	invalid  int
	images   int
}

func newWalk(o Options) *walk {
	return &walk{Options: o, keys: keysOf(o.Certificates), from: o.Registries.Repository(o.Repository),
		seen: map[read]bool{}, tags: map[digest.Digest]string{}, subjects: map[string]string{}}
}

// report returns the report without what the log says.
func (w *walk) report() *Report {
	return &Report{Repository: w.Repository, Images: w.images, Signatures: len(w.found), Others: w.others,
		Invalid: w.invalid, Incidents: []Incident{}, Absent: []Absent{}}
}

// sorted returns the signatures by payload and value.
func (w *walk) sorted() []signature {
	for i := range w.found {
		if f := &w.found[i]; f.Tag == "" { // found by the list of referrers before the tag was read
			f.Tag = w.tags[digest.Digest(f.Image)]
		}
	}
	slices.SortFunc(w.found, compareSignatures)
	return w.found
}

// run reads all tags, atOnce of them at a time.
func (w *walk) run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	tags := make(chan string)
	var group sync.WaitGroup
	for range atOnce {
		group.Go(func() {
			for tag := range tags {
				if err := w.tag(ctx, tag); err != nil {
					cancel(fail(err, "cannot audit the tag %.128q of %s: %w", tag, w.Repository, err))
				}
			}
		})
	}
	err := registry.Tags(ctx, w.from, "", func(page []string) error {
		for _, tag := range page {
			select {
			case tags <- tag:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	close(tags)
	group.Wait()
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	if err != nil {
		return fail(err, "cannot list the tags of %s: %w", w.Repository, err)
	}
	return nil
}

// tag reads the manifest of a tag and what belongs to it, and tries again when the registry does not answer for a
// while.
func (w *walk) tag(ctx context.Context, tag string) error {
	ctx, cancel := context.WithTimeout(ctx, requestsLimit)
	defer cancel()
	for attempt := 1; ; attempt++ {
		err := w.readTag(ctx, tag)
		kind := registry.Kind(err)
		if err == nil || attempt == attempts || kind != failure.Throttled && kind != failure.Unavailable ||
			registry.Exhausted(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(time.Second << attempt):
		}
	}
}

func (w *walk) readTag(ctx context.Context, tag string) error {
	d, reply, err := w.from.Manifests().FetchReference(ctx, tag)
	if errors.Is(err, errdef.ErrNotFound) {
		return nil // it was deleted meanwhile
	}
	if err != nil {
		return err
	}
	data, err := readManifest(reply, d)
	if err != nil {
		return err
	}
	if of, found := strings.CutPrefix(tag, "sha256-"); found && referrersTag.MatchString(tag) {
		image := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.Digest("sha256:" + of)}
		index, err := readIndex(data)
		if err != nil {
			return err
		}
		if err := w.referrers(ctx, index.Manifests, image, "", 0); err != nil {
			return err
		}
		return w.image(ctx, image, "", 0)
	}
	w.mutex.Lock()
	if known, exists := w.tags[d.Digest]; !exists || tag < known {
		w.tags[d.Digest] = tag
	}
	w.mutex.Unlock()
	return w.manifest(ctx, d, data, tag, 0)
}

// readManifest reads a manifest, and verifies its digest.
func readManifest(reply io.ReadCloser, d ocispec.Descriptor) ([]byte, error) {
	defer reply.Close()
	if d.Size > maxManifest {
		return nil, fmt.Errorf("its manifest has %d bytes, more than %d", d.Size, maxManifest)
	}
	return content.ReadAll(reply, d)
}

// manifest reads what a manifest has: an index, an image, or a signature that is tagged. data is nil if it was not
// fetched.
func (w *walk) manifest(ctx context.Context, d ocispec.Descriptor, data []byte, tag string, depth int) error {
	if d.MediaType == ocispec.MediaTypeImageIndex || d.MediaType == mediaListV2 {
		if depth > maxDepth {
			return fmt.Errorf("it has indexes in indexes, deeper than %d", maxDepth)
		}
		if data == nil {
			var err error
			if data, err = registry.Fetch(ctx, w.from, d, maxManifest); errors.Is(err, errdef.ErrNotFound) {
				return nil // an index may list what the repository does not have
			} else if err != nil {
				return err
			}
		}
		if err := w.list(ctx, data, tag, depth); err != nil {
			return err
		}
	}
	if is, of := signatureOf(data); is {
		if of == nil {
			of = &ocispec.Descriptor{}
		}
		return w.signature(ctx, d, *of, tag)
	}
	return w.image(ctx, d, tag, 0)
}

// signatureOf reports whether a manifest is that of a signature, and returns its image.
func signatureOf(data []byte) (is bool, image *ocispec.Descriptor) {
	var m struct {
		ArtifactType string
		Config       struct{ MediaType string }
		Subject      *ocispec.Descriptor
	}
	if bound.JSON(data, manifestLimits) != nil || json.Unmarshal(data, &m) != nil {
		return false, nil
	}
	return m.ArtifactType == notationregistry.ArtifactTypeNotation ||
		m.Config.MediaType == notationregistry.ArtifactTypeNotation, m.Subject
}

// readIndex reads an index within limits.
func readIndex(data []byte) (*ocispec.Index, error) {
	index := &ocispec.Index{}
	err := bound.JSON(data, manifestLimits)
	if err == nil {
		err = json.Unmarshal(data, index)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read its index: %w", err)
	}
	return index, nil
}

// list reads what an index lists.
func (w *walk) list(ctx context.Context, data []byte, tag string, depth int) error {
	index, err := readIndex(data)
	if err != nil {
		return err
	}
	for _, d := range index.Manifests {
		if d.Digest.Validate() != nil {
			continue
		}
		d = ocispec.Descriptor{MediaType: d.MediaType, Digest: d.Digest, Size: d.Size}
		if err := w.manifest(ctx, d, nil, tag, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// referrers reads what refers to an image: its signatures, and what may have signatures of its own.
func (w *walk) referrers(ctx context.Context, list []ocispec.Descriptor, image ocispec.Descriptor, tag string,
	depth int) error {
	for _, d := range list {
		if d.Digest.Validate() != nil {
			continue
		}
		var err error
		if d.ArtifactType == notationregistry.ArtifactTypeNotation {
			err = w.signature(ctx, d, image, tag)
		} else {
			err = w.image(ctx, d, tag, depth+1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// read names what was read, by a SHA-256: the referrers of a manifest, or a signature.
type read [sha256.Size]byte

func referrersOf(d ocispec.Descriptor) read { return sha256.Sum256([]byte("referrers of " + d.Digest)) }

// signatureBy names a signature by all that decides how it is read. An index can list it as an image, too, and a list
// of referrers have it with another size: whoever can push writes them.
func signatureBy(d ocispec.Descriptor) read {
	return sha256.Sum256(fmt.Appendf(nil, "signature %s of %d bytes: %q", d.Digest, d.Size, d.MediaType))
}

// first reports whether something is read for the first time. It fails when there is too much.
func (w *walk) first(sum read) (bool, error) {
	w.mutex.Lock()
	defer w.mutex.Unlock()
	if w.seen[sum] {
		return false, nil
	}
	if len(w.seen) == maxManifests {
		return false, fmt.Errorf("the repository has more than %d images and signatures", maxManifests)
	}
	w.seen[sum] = true
	return true, nil
}

// forget has something read again, after an error.
func (w *walk) forget(sum read, err error) error {
	if err != nil {
		w.mutex.Lock()
		defer w.mutex.Unlock()
		delete(w.seen, sum)
	}
	return err
}

// image reads what refers to an image, an index or another artifact.
func (w *walk) image(ctx context.Context, d ocispec.Descriptor, tag string, depth int) error {
	this := referrersOf(d)
	if first, err := w.first(this); err != nil || !first {
		return err
	}
	err := w.readReferrers(ctx, d, tag, depth)
	if err != nil {
		return w.forget(this, err)
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	w.images++
	return nil
}

func (w *walk) readReferrers(ctx context.Context, d ocispec.Descriptor, tag string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("it has referrers of referrers, deeper than %d", maxDepth)
	}
	list, more, err := attach.List(ctx, w.from, d, "", maxReferrers)
	switch {
	case errors.Is(err, errdef.ErrNotFound):
		return nil
	case err != nil:
		return err
	case more:
		return fmt.Errorf("%s has more than %d referrers", d.Digest, maxReferrers)
	}
	return w.referrers(ctx, list, d, tag, depth)
}

// signature reads a signature, by the descriptor of its manifest. What is no valid signature is counted. It fails for
// one that exceeds the limits, which other verifiers may accept.
func (w *walk) signature(ctx context.Context, d, image ocispec.Descriptor, tag string) error {
	this := signatureBy(d)
	if first, err := w.first(this); err != nil || !first {
		return err
	}
	mediaType, envelope, err := attach.FetchEnvelope(ctx, w.from, d)
	if kind := registry.Kind(err); err != nil && (kind != failure.Invalid && kind != failure.NotFound ||
		registry.Exhausted(err) || ctx.Err() != nil) {
		return w.forget(this, err)
	}
	var claims *attach.Claims
	if err == nil {
		if err = w.Check(mediaType, envelope); err != nil && attach.Readable(mediaType, envelope) {
			err = fmt.Errorf("%w: %w", attach.ErrLimit, err)
		}
	}
	if errors.Is(err, attach.ErrLimit) {
		return w.forget(this, fmt.Errorf("cannot read the signature %s: %w", d.Digest, err))
	}
	if err == nil {
		claims, err = attach.Verify(mediaType, envelope)
	}
	w.mutex.Lock()
	defer w.mutex.Unlock()
	switch {
	case claims == nil:
		w.invalid++
	case !w.keys.have(claims.Chain):
		w.others++
	default:
		state := unknown
		if err != nil { // it is valid for others
			state = ambiguous
		}
		w.add(claims, d, image, tag, state)
	}
	return nil
}

// add keeps a signature that is looked up in the log.
func (w *walk) add(c *attach.Claims, d, image ocispec.Descriptor, tag string, as state) {
	payload, _ := parseHash(c.Payload)
	value, _ := parseHash(c.Signature.Signature)
	subject := c.Chain[0].Subject.String()
	subject = strings.Clone(subject[:min(len(subject), maxSubject)])
	if known, exists := w.subjects[subject]; exists {
		subject = known
	} else {
		w.subjects[subject] = subject
	}
	w.found = append(w.found, signature{payload: payload, value: value, state: as, Incident: Incident{
		Image: image.Digest.String(), Tag: tag, Signature: d.Digest.String(), Subject: subject, Leaf: c.Leaf,
		Signed: c.Signed.UTC()}})
}
