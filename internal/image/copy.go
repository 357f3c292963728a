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

// A Copy is the copy of an image from one place to another.
type Copy struct {
	From, To                 Reference
	FromRegistry, ToRegistry Registry
	Platforms                []Platform // of an index, the images to copy and to list in the copy; empty for all
	Progress                 io.Writer  // where progress is shown, or nil

	encrypts func(index, layers int) bool // reports whether to encrypt a layer, of so many; nil for no layer
}

// A CopyResult describes a copy.
type CopyResult struct {
	Name     string        // HOST/NAME@DIGEST of a copy in a registry, else empty
	Digest   digest.Digest // of the copy's manifest
	Warnings []string      // about recipients: layerkey.Recipient.Warning
	Skipped  int           // entries of the index that were left out: BuildKit's attestations of other entries
}

// Encrypt copies an image and encrypts layers of it to recipients, which layerkey.ParseRecipients parses. layers are
// indices, counted from 0, or from the end where negative; none stands for all. It needs no PIN.
func Encrypt(ctx context.Context, ks *keystore.Keystore, c Copy, recipients []string,
	layers []int) (*CopyResult, error) {
	if c.To.transport() == dockerarchive.Transport.Name() {
		return nil, failure.New(failure.Invalid,
			"cannot encrypt to %s: a docker-archive has no place for wrapped keys", c.To).
			WithHint("use oci-archive: or oci:")
	}
	to, err := layerkey.ParseRecipients(ctx, ks, recipients, config.Flags)
	if err != nil {
		return nil, err
	}
	if _, err := layerkey.Seal([]byte("{}"), to); err != nil { // fails now, not after the first layer
		return nil, err
	}
	if layers == nil {
		layers = []int{}
	}
	c.encrypts = layerSelector(layers)
	made, err := c.run(ctx, "encrypting", func(_ context.Context, chosen []Image, options *c_copy.Options) error {
		for _, image := range chosen {
			if err := image.checkPlain(c.From, layers); err != nil {
				return err
			}
		}
		options.OciEncryptConfig, options.OciEncryptLayers = encryptConfig(to), &layers
		options.ForceManifestMIMEType = ocispec.MediaTypeImageManifest // Docker's has no place for wrapped keys
		return nil
	})
	if err == nil {
		made.Warnings = warnings(to)
	}
	return made, err
}

// checkPlain fails unless the layers with these indices exist and are not encrypted.
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
				WithHint("list the layers with 'hsm-image layers " + ref.String() + "'")
		}
		chosen = append(chosen, i.Layers[at])
	}
	for _, l := range chosen {
		switch {
		case l.Encrypted:
			return failure.New(failure.Conflict, "%s of %s is encrypted already", l, i.name(ref)).
				WithHint("add recipients with 'hsm-image recipients add'")
		case !l.isLayer():
			return failure.New(failure.Unsupported, "%s of %s is of the type %s", l, i.name(ref), l.MediaType).
				WithHint("encrypt layers of images alone, with --layer")
		}
	}
	return nil
}

// Decrypt copies an image and decrypts its layers with the keys that references name, by URI or alias, or without
// references with the keys of the configured token. It unwraps the keys of all layers before it copies anything.
func Decrypt(ctx context.Context, ks *keystore.Keystore, c Copy, references []string) (*CopyResult, error) {
	return c.run(ctx, "decrypting", func(ctx context.Context, chosen []Image, options *c_copy.Options) (err error) {
		encrypted := false
		for _, image := range chosen {
			encrypted = encrypted || image.encrypted()
		}
		if !encrypted {
			return failure.New(failure.Invalid, "%s has no encrypted layer", c.From).
				WithHint("copy it with skopeo")
		}
		options.OciDecryptConfig, err = decryptConfig(ctx, ks, c.From, chosen, references)
		return err
	})
}

// A prepare function checks the images that are to be copied, and completes the copy library's options.
type prepare func(context.Context, []Image, *c_copy.Options) error

// run makes the copy, with a stall timer. what is the job's verb for error messages.
func (c Copy) run(ctx context.Context, what string, prepare prepare) (*CopyResult, error) {
	var result *CopyResult
	err := withStallTimer(ctx, what+" "+c.From.String(), func(ctx context.Context, timer *stallTimer) (err error) {
		result, err = c.copy(ctx, timer, what, prepare)
		return err
	})
	return result, err
}

// copy makes the copy: it reads the manifests, prepares the keys, copies to a staging folder or a registry, and puts
// the copy in its place.
func (c Copy) copy(ctx context.Context, timer *stallTimer, what string, prepare prepare) (*CopyResult, error) {
	if named, ok := c.To.DockerReference().(reference.Canonical); ok && c.To.transport() == docker.Transport.Name() {
		return nil, failure.New(failure.Invalid, "cannot copy to %s: the digest follows from the content", named).
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
	tree, err := read(ctx, c.From, options.SourceCtx, source, timer)
	if err != nil {
		return nil, err
	}
	chosen, skipped, err := c.selection(tree, options)
	if err != nil {
		return nil, err
	}
	timer.suspend()
	// A module that hangs is abandoned here, so that the scratch folder is removed.
	if err := deadline.Run(ctx, func(ctx context.Context) error { return prepare(ctx, chosen, options) }); err != nil {
		return nil, err
	}
	policy, err := signature.NewPolicyContext(
		&signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}})
	if err != nil {
		return nil, err
	}
	defer func() { _ = policy.Destroy() }()
	from := copyReference{c.From.ImageReference,
		&copySource{source, timer, c.To.transport() == docker.Transport.Name(), c.encrypts}}
	written, err := c_copy.Image(ctx, policy, target.staged.ImageReference, from, options)
	if err != nil {
		return nil, c.explain(err, what, chosen)
	}
	if !target.keep() { // from here on, an interrupt ends nothing
		return nil, ctx.Err()
	}
	if err := target.commit(); err != nil {
		return nil, err
	}
	r := &CopyResult{Digest: digest.FromBytes(written), Skipped: skipped}
	if c.To.transport() == docker.Transport.Name() {
		r.Name = c.To.DockerReference().Name() + "@" + r.Digest.String()
	}
	return r, nil
}

// LeavesPlain reports whether source and destination are one OCI layout. It keeps the blobs of the plain image, even if
// no image in it lists them any more.
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

// selection returns the images to copy, and sets the copy library's options for them. skipped is how many of BuildKit's
// attestations were left out.
func (c Copy) selection(t *tree, options *c_copy.Options) (chosen []Image, skipped int, err error) {
	images, err := t.forPlatforms(c.Platforms)
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
			return nil, 0, failure.New(failure.Invalid, "a docker-archive holds one image, and %s lists %d", c.From,
				len(chosen)).WithHint("choose one with --platform, or use oci-archive:")
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

// explain returns the failure for an error of the copy library: which layer it is about, and what to do.
func (c Copy) explain(err error, what string, images []Image) error {
	changed := "get the image again from where it was published; nothing of it was written"
	if c.To.transport() == docker.Transport.Name() {
		changed = "get the image again from where it was published; its tag was not written, but the registry may have " +
			"those of its layers that are whole"
	}
	text := err.Error()
	for _, image := range images {
		for _, l := range image.Layers {
			mismatch := ""
			// ocicrypt's error has the HMAC that it expected, and the copy library's the digest.
			public, bad := publicOptions(l.annotations)
			if l.Encrypted && bad == nil && strings.Contains(text, "exp hmac: '"+hex.EncodeToString(public.Hmac)+"'") {
				mismatch = "HMAC"
			} else if strings.Contains(text, "expected "+l.Digest.String()) {
				mismatch = "digest"
			}
			if mismatch != "" {
				return failure.New(failure.Denied, "%s of %s was changed or truncated: it does not match its %s", l,
					image.name(c.From), mismatch).WithHint(changed)
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
	// it is the destination: the source answered before
	case errors.As(err, &untrusted), errors.As(err, &alert), errors.Is(err, http.ErrSchemeMismatch):
		hint = "give the CA of the destination's registry, and a client certificate if it asks for one, with " +
			"--dest-cert-dir; if it has no HTTPS, see --dest-tls-verify"
	}
	return failure.New(failure.Internal, "%s %s failed: %w", what, c.From, err).WithHint(hint)
}

// isLayer reports whether the layer is a part of a file system, by its media type. Docker's oldest manifests have none.
func (l Layer) isLayer() bool {
	return l.MediaType == "" || strings.HasPrefix(l.MediaType, "application/vnd.oci.image.layer.") ||
		strings.HasPrefix(l.MediaType, "application/vnd.docker.image.rootfs.")
}

// String returns the layer for messages.
func (l Layer) String() string { return fmt.Sprintf("layer %d (%s)", l.Index, l.Digest) }

// name returns the image for messages: the reference and, in an index, the platform or digest.
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

// A copyReference gives the copy library the source from which the manifests were read, so that it copies what was
// checked, even if the tag moves.
type copyReference struct {
	types.ImageReference
	source *copySource
}

// NewImageSource returns the source.
func (r copyReference) NewImageSource(context.Context, *types.SystemContext) (types.ImageSource, error) {
	return r.source, nil
}

// A copySource restarts the stall timer when data moves, and ends reading with the context: when both ends are files,
// the copy library checks the context between layers alone.
type copySource struct {
	types.ImageSource
	timer    *stallTimer
	remote   bool                         // the destination is a registry: all between two reads is a transfer too
	encrypts func(index, layers int) bool // reports whether a layer is going to be encrypted, or nil
}

// Close does nothing: whoever opened the source closes it.
func (s *copySource) Close() error { return nil }

// GetBlob returns a blob that keeps the stall timer.
func (s *copySource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser,
	int64, error) {
	defer s.timer.watch()()
	blob, size, err := s.ImageSource.GetBlob(ctx, info, cache)
	return &copyBlob{blob, ctx, s}, size, err
}

// A copyBlob is a blob of a copySource.
type copyBlob struct {
	io.ReadCloser
	ctx    context.Context
	source *copySource
}

// Read reads from the blob. It fails when the context has ended.
func (b *copyBlob) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if b.source.remote {
		b.source.timer.progress()
	} else {
		defer b.source.timer.watch()()
	}
	return b.ReadCloser.Read(p)
}
