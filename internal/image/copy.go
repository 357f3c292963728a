package image

import (
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	c_copy "go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	dockerarchive "go.podman.io/image/v5/docker/archive"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/oci/layout"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
)

// A Copy says what is copied, and where to.
type Copy struct {
	From, To                 Reference
	FromRegistry, ToRegistry Registry
	Platforms                []Platform // of an index, the images to copy; the copy lists no others. None stands for all
	Progress                 io.Writer  // where progress is shown, or nil

	encrypts func(index, layers int) bool // of each image's layers, those to encrypt; nil for none
}

// A Result is what a copy has made.
type Result struct {
	Name     string        // of the copy by its digest, HOST/NAME@DIGEST, for one in a registry
	Digest   digest.Digest // of the copy's manifest
	Warnings []string      // about recipients, as layerkey.Recipient has them
	// entries of the index that were left out because they are BuildKit's attestations of other entries
	Skipped int
}

// Encrypt copies an image and encrypts layers of it to recipients, as layerkey.ParseRecipients reads them. layers are
// indices, counted from 0, or from the end where negative; none stands for all. It needs no PIN.
func Encrypt(ctx context.Context, ks *keystore.Keystore, c Copy, recipients []string, layers []int) (*Result, error) {
	if c.To.transport() == dockerarchive.Transport.Name() {
		return nil, failure.New(failure.Invalid,
			"%s can't be encrypted: a docker-archive has no place for wrapped keys", c.To).
			WithHint("use oci-archive: or oci:")
	}
	to, err := layerkey.ParseRecipients(ctx, ks, recipients, config.Flags)
	if err != nil {
		return nil, err
	}
	if _, err := layerkey.Seal([]byte("{}"), to); err != nil { // rather now than after the first layer
		return nil, err
	}
	if layers == nil {
		layers = []int{}
	}
	c.encrypts = selected(layers)
	made, err := c.run(ctx, "encrypting", func(_ context.Context, chosen []Image, options *c_copy.Options) error {
		for _, image := range chosen {
			if err := image.checkPlain(c.From, layers); err != nil {
				return err
			}
		}
		options.OciEncryptConfig, options.OciEncryptLayers = sealWith(to), &layers
		options.ForceManifestMIMEType = ocispec.MediaTypeImageManifest // Docker's has no place for wrapped keys
		return nil
	})
	if err == nil {
		made.Warnings = warnings(to)
	}
	return made, err
}

// checkPlain fails unless the layers with these indices are there and not encrypted.
func (i Image) checkPlain(ref Reference, indices []int) error {
	chosen := i.Layers
	if len(indices) > 0 {
		chosen = nil
	}
	for _, index := range indices {
		at := index
		if at < 0 {
			at += len(i.Layers)
		}
		if at < 0 || at >= len(i.Layers) {
			return failure.New(failure.Invalid,
				"%s has %d layers, and none with the index %d", i.name(ref), len(i.Layers), index).
				WithHint("see 'hsm-image layers " + ref.String() + "'")
		}
		chosen = append(chosen, i.Layers[at])
	}
	for _, l := range chosen {
		switch {
		case l.Encrypted:
			return failure.New(failure.Invalid, "%s of %s is encrypted already", l, i.name(ref)).
				WithHint("to have others open it as well, see 'hsm-image recipients add --help'")
		case !l.isLayer():
			return failure.New(failure.Unsupported, "%s of %s is of the type %s", l, i.name(ref), l.MediaType).
				WithHint("only layers of images can be encrypted")
		}
	}
	return nil
}

// Decrypt copies an image and decrypts its layers with the keys that references name, by URI or alias; without any,
// with those of the configured token. All keys are opened before anything is copied.
func Decrypt(ctx context.Context, ks *keystore.Keystore, c Copy, references []string) (*Result, error) {
	return c.run(ctx, "decrypting", func(ctx context.Context, chosen []Image, options *c_copy.Options) (err error) {
		encrypted := false
		for _, image := range chosen {
			encrypted = encrypted || image.encrypted()
		}
		if !encrypted {
			return failure.New(failure.Invalid, "%s has no encrypted layer", c.From).
				WithHint("copy it with another tool, such as skopeo")
		}
		options.OciDecryptConfig, err = openRing(ctx, ks, c.From, chosen, references)
		return err
	})
}

// A prepare sees the images that are going to be copied, and completes the options.
type prepare func(context.Context, []Image, *c_copy.Options) error

// run makes the copy.
func (c Copy) run(ctx context.Context, what string, prepare prepare) (*Result, error) {
	var result *Result
	err := within(ctx, what+" "+c.From.String(), func(ctx context.Context, transfer *transfer) (err error) {
		result, err = c.copy(ctx, transfer, what, prepare)
		return err
	})
	return result, err
}

func (c Copy) copy(ctx context.Context, transfer *transfer, what string, prepare prepare) (*Result, error) {
	if named, ok := c.To.DockerReference().(reference.Canonical); ok && c.To.transport() == docker.Transport.Name() {
		return nil, failure.New(failure.Invalid, "the copy can't be %s: what it contains decides its digest", named).
			WithHint("give the copy a tag")
	}
	target, err := newTarget(c.To)
	if err != nil {
		return nil, err
	}
	defer target.remove(ctx)()
	options := &c_copy.Options{
		SourceCtx: target.use(c.FromRegistry.context()), DestinationCtx: target.use(c.ToRegistry.context()),
		ReportWriter: c.Progress, RemoveSignatures: true, // they do not hold for the copy
	}
	source, err := openSource(ctx, c.From, options.SourceCtx)
	if err != nil {
		return nil, err
	}
	defer source.Close()
	tree, err := read(ctx, c.From, options.SourceCtx, source, transfer)
	if err != nil {
		return nil, err
	}
	chosen, skipped, err := c.selection(tree, options)
	if err != nil {
		return nil, err
	}
	transfer.rest()
	// A module that hangs is left behind here, so that what was begun is put away.
	if err := deadline.Run(ctx, func(ctx context.Context) error { return prepare(ctx, chosen, options) }); err != nil {
		return nil, err
	}
	policy, err := signature.NewPolicyContext(
		&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return nil, err
	}
	defer func() { _ = policy.Destroy() }()
	from := watchedReference{c.From.ImageReference,
		&watchedSource{source, transfer, c.To.transport() == docker.Transport.Name(), c.encrypts}}
	written, err := c_copy.Image(ctx, policy, target.staged.ImageReference, from, options)
	if err != nil {
		return nil, c.explain(err, what, chosen)
	}
	if !target.keep() { // from here on nothing is interrupted
		return nil, ctx.Err()
	}
	if err := target.commit(); err != nil {
		return nil, err
	}
	r := &Result{Digest: digest.FromBytes(written), Skipped: skipped}
	if c.To.transport() == docker.Transport.Name() {
		r.Name = c.To.DockerReference().Name() + "@" + r.Digest.String()
	}
	return r, nil
}

// LeavesPlain reports whether source and destination are one OCI layout, in which blobs that no image has any more
// stay.
func (c Copy) LeavesPlain() bool {
	if c.From.transport() != layout.Transport.Name() || c.To.transport() != layout.Transport.Name() {
		return false
	}
	from, _, _ := c.From.local()
	to, _, _ := c.To.local()
	a, err := os.Stat(from)
	if err != nil {
		return false
	}
	b, err := os.Stat(to)
	return err == nil && os.SameFile(a, b)
}

// selection chooses the images, and has the copy library copy these.
func (c Copy) selection(t *tree, options *c_copy.Options) (chosen []Image, skipped int, err error) {
	images, err := t.choose(c.Platforms)
	if err != nil || !t.index {
		return images, 0, err
	}
	for _, image := range images {
		if image.attestation() {
			skipped++
			continue
		}
		chosen = append(chosen, image)
	}
	if c.To.transport() == dockerarchive.Transport.Name() {
		if len(chosen) != 1 {
			return nil, 0, failure.New(failure.Invalid, "a docker-archive holds one image, and %s lists %d", c.From, len(chosen)).
				WithHint("choose one with --platform, or use oci-archive:")
		}
		p := chosen[0].Platform
		options.SourceCtx.OSChoice, options.SourceCtx.ArchitectureChoice, options.SourceCtx.VariantChoice = p.OS,
			p.Architecture, p.Variant
		return chosen, skipped, nil
	}
	options.ImageListSelection, options.SparseManifestListAction = c_copy.CopySpecificImages,
		c_copy.StripSparseManifestList
	for _, image := range chosen {
		options.Instances = append(options.Instances, image.Digest)
	}
	return chosen, skipped, nil
}

// explain puts the copy library's errors into words: which layer it is about, and what may be the matter.
func (c Copy) explain(err error, what string, images []Image) error {
	changed := "get the image again from where it was published; nothing of it was written"
	if c.To.transport() == docker.Transport.Name() {
		changed =
			"get the image again from where it was published; its tag was not written, but the registry may have those of its " +
				"layers that are whole"
	}
	text := err.Error()
	for _, image := range images {
		for _, l := range image.Layers {
			// ocicrypt names the HMAC that it expected, and the copy library the digest.
			public, bad := cipherOf(l.annotations)
			if l.Encrypted && bad == nil && strings.Contains(text, "exp hmac: '"+hex.EncodeToString(public.Hmac)+"'") {
				return failure.New(failure.Denied, "%s of %s was changed or truncated: it does not match its HMAC", l,
					image.name(c.From)).
					WithHint(changed)
			}
			if strings.Contains(text, "expected "+l.Digest.String()) {
				return failure.New(failure.Denied, "%s of %s was changed or truncated: it does not match its digest", l,
					image.name(c.From)).
					WithHint(changed)
			}
		}
	}
	hint := "check the network and the disk, and run it again"
	var unauthorized docker.ErrUnauthorizedForCredentials
	var untrusted *tls.CertificateVerificationError
	var alert tls.AlertError
	switch {
	case errors.As(err, &unauthorized):
		hint = "log in to the registry ('notation login', 'skopeo login'), or see --authfile"
	// the source has been spoken to before
	case errors.As(err, &untrusted), errors.As(err, &alert), errors.Is(err, http.ErrSchemeMismatch):
		hint =
			"give the CA of the destination's registry, and a client certificate if it asks for one, with --dest-cert-dir; " +
				"if it has no HTTPS, see --dest-tls-verify"
	}
	return failure.New(failure.Internal, "%s %s failed: %w", what, c.From, err).WithHint(hint)
}

// isLayer reports whether it is a part of a file system, as opposed to what else a manifest may list. Docker's oldest
// does not say.
func (l Layer) isLayer() bool {
	return l.MediaType == "" || strings.HasPrefix(l.MediaType, "application/vnd.oci.image.layer.") ||
		strings.HasPrefix(l.MediaType, "application/vnd.docker.image.rootfs.")
}

// String names the layer to people.
func (l Layer) String() string { return fmt.Sprintf("layer %d (%s)", l.Index, l.Digest) }

// name names the image to people: which one it is of an index.
func (i Image) name(ref Reference) string {
	switch platform := i.Platform.String(); {
	case !i.listed:
		return ref.String()
	case platform == "":
		return fmt.Sprintf("%s (%s)", ref, i.Digest)
	default:
		return fmt.Sprintf("%s (%s)", ref, platform)
	}
}

// A watchedReference hands the source to the copy library that the manifests were read from, so that what is copied is
// what was looked at, even if the tag moves.
type watchedReference struct {
	types.ImageReference
	source *watchedSource
}

func (w watchedReference) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return w.source, nil
}

// A watchedSource says that data moves, and stops where it is told to: the copy library looks at a context between
// layers alone when both ends are files.
type watchedSource struct {
	types.ImageSource
	transfer *transfer
	remote   bool // whether the other end is a registry: then all that happens between two reads is a transfer as well
	encrypts func(index, layers int) bool
}

// Close leaves the source to who opened it.
func (w *watchedSource) Close() error { return nil }

func (w *watchedSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser,
	int64, error) {
	defer w.transfer.wait()()
	blob, size, err := w.ImageSource.GetBlob(ctx, info, cache)
	return &watchedBlob{blob, ctx, w}, size, err
}

type watchedBlob struct {
	io.ReadCloser
	ctx    context.Context
	source *watchedSource
}

func (b *watchedBlob) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.source.remote {
		b.source.transfer.moved()
	} else {
		defer b.source.transfer.wait()()
	}
	return b.ReadCloser.Read(p)
}
