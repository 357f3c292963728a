package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/imgcrypt/v2"
	"github.com/containers/ocicrypt/blockcipher"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/deadline"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/layerkey"
	"github.com/notation-hsm/notation-hsm/internal/sandbox"
)

const (
	payloadLimit  = 4 << 20   // bytes; a descriptor is a part of a manifest, which has no more
	windowLimit   = 128 << 20 // bytes of memory that a zstd layer may need: the limit of the zstd command
	decoderBuffer = 64 << 10  // bytes
	headSize      = 4 << 10   // bytes; the first ones of two encrypted layers differ
)

// A Decoder is containerd's stream processor for encrypted layers.
type Decoder struct {
	Keystore   *keystore.Keystore
	References []string  // to the keys that open layers, as in layerkey.OpenKeys
	Root       string    // containerd's root folder
	MediaType  string    // of the layer
	Payload    io.Reader // containerd's payload for the layer: imgcrypt's Payload as JSON in a protobuf Any, or nothing

	confined bool          // the decoder gives up rights of the process; see Confined
	user     *sandbox.User // the user that the process becomes; nil keeps the user
}

// Decode reads a layer from encrypted and writes it to plain as a tar archive, decompressed. It takes the layer's
// descriptor from the payload, or from the content store if containerd sends no payload, which it does not for pulls
// with an image verifier. It closes the module before it decrypts the layer.
//
// A layer is authenticated at its end, when most of it was written. An exit code would come too late: containerd reads
// it when the stream has ended, which is before the process ends. So Decode writes a failure into the stream, such that
// containerd drops the layer.
func (d Decoder) Decode(ctx context.Context, encrypted io.Reader, plain io.Writer) error {
	out := &output{Writer: plain}
	// A module that hangs, and a panic, become a failure here, which is written into the stream.
	err := deadline.Run(ctx, func(ctx context.Context) error { return d.decode(ctx, encrypted, out) })
	if err != nil {
		out.refuse(err)
	}
	return err
}

// Refuse writes a failure into the stream in the place of a layer, such that containerd drops it and shows the failure.
func (Decoder) Refuse(plain io.Writer, err error) error {
	(&output{Writer: plain}).refuse(err)
	return err
}

// decode is Decode without writing the failure.
func (d Decoder) decode(ctx context.Context, encrypted io.Reader, out *output) error {
	if err := d.limit(); err != nil {
		return err
	}
	layers, err := d.readPayload()
	if err != nil {
		return err
	}
	store := contentStore(filepath.Join(d.Root, "io.containerd.content.v1.content"))
	if len(layers) == 0 {
		head := make([]byte, headSize)
		n, err := io.ReadFull(encrypted, head)
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			return noLayer(err)
		}
		encrypted = io.MultiReader(bytes.NewReader(head[:n]), encrypted)
		if layers, err = store.layersStartingWith(head[:n], d.MediaType); err != nil {
			return err
		}
	}
	candidates, err := unwrapAll(ctx, d.Keystore, d.References, layers)
	if err != nil {
		return err
	}
	files := map[digest.Digest]*os.File{}
	if len(candidates) > 1 {
		files = store.open(candidates)
		defer closeAll(files)
	}
	// From here on, the decoder needs open files alone.
	if err := d.giveUpFiles(ctx); err != nil {
		return err
	}
	layer := candidates[0]
	if len(candidates) > 1 {
		blob, chosen, err := authenticated(encrypted, candidates, files)
		if err != nil {
			return err
		}
		encrypted, layer = blob, chosen
	}
	decrypted, err := layer.decrypt(encrypted)
	if err != nil {
		return err
	}
	archive, err := decompress(layer.MediaType, bufio.NewReaderSize(decrypted, decoderBuffer))
	if err != nil {
		return damagedLayer(layer.Digest, err)
	}
	defer archive.Close()
	_, err = io.Copy(out, archive)
	if err == nil {
		_, err = io.Copy(io.Discard, decrypted) // the HMAC covers the bytes after the compressed data too
	}
	switch {
	case out.failed != nil:
		return failure.New(failure.Unavailable, "containerd stopped reading layer %s: %w", layer.Digest, out.failed).
			WithHint("see containerd's log")
	case err != nil:
		return damagedLayer(layer.Digest, err)
	}
	return nil
}

// noLayer is the failure when containerd's stream breaks.
func noLayer(err error) error {
	return failure.New(failure.Unavailable, "cannot read the layer from containerd: %w", err).
		WithHint("see containerd's log")
}

// readPayload returns the descriptor of the layer, or none if the payload is empty.
func (d Decoder) readPayload() ([]ocispec.Descriptor, error) {
	data, err := io.ReadAll(io.LimitReader(d.Payload, payloadLimit+1))
	if err != nil {
		return nil, failure.New(failure.Unavailable, "cannot read containerd's payload: %w", err).
			WithHint("see containerd's log")
	}
	if len(data) == 0 {
		return nil, nil
	}
	var message anypb.Any
	var p imgcrypt.Payload
	if len(data) > payloadLimit || proto.Unmarshal(data, &message) != nil || message.GetTypeUrl() != imgcrypt.PayloadURI ||
		bound.JSON(message.GetValue(), manifestBounds) != nil || json.Unmarshal(message.GetValue(), &p) != nil {
		return nil, failure.New(failure.Unsupported, "containerd's payload for the layer is not an imgcrypt payload").
			WithHint("use a version of containerd that hsm-image was tested with")
	}
	return []ocispec.Descriptor{p.Descriptor}, nil
}

// A candidate is a layer as one manifest describes it, with its unwrapped key.
type candidate struct {
	ocispec.Descriptor
	options blockcipher.LayerBlockCipherOptions
}

// unwrapAll unwraps the keys of all layers that the module can, and closes the module. It fails, with the failure of
// the first layer, if there is none.
func unwrapAll(ctx context.Context, ks *keystore.Keystore, references []string,
	layers []ocispec.Descriptor) (opened []candidate, first error) {
	keys := layerkey.OpenKeys(ks, references, config.Flags)
	defer keys.Close()
	for _, layer := range layers {
		c, err := newCandidate(ctx, keys, layer)
		if err == nil {
			opened = append(opened, c)
		} else if first == nil {
			first = err
		}
	}
	if len(opened) > 0 {
		return opened, nil
	}
	return nil, first
}

// newCandidate unwraps the key of a layer.
func newCandidate(ctx context.Context, keys *layerkey.Keys, layer ocispec.Descriptor) (candidate, error) {
	c := candidate{Descriptor: layer}
	private, err := unwrapKey(ctx, keys, Layer{annotations: layer.Annotations})
	if err != nil {
		return c, err
	}
	defer clear(private)
	if c.options.Public, err = publicOptions(layer.Annotations); err != nil {
		return c, err
	}
	return c, json.Unmarshal(private, &c.options.Private)
}

// decrypt returns the layer's plain bytes. Reading them fails at the end if the layer was changed.
func (c candidate) decrypt(encrypted io.Reader) (io.Reader, error) {
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return nil, err
	}
	decrypted, _, err := handler.Decrypt(encrypted, c.options)
	if err != nil {
		return nil, failure.New(failure.Unsupported, "cannot decrypt layer %s: %w", c.Digest, err).
			WithHint("encrypt it with 'hsm-image encrypt'")
	}
	return decrypted, nil
}

// decompress decompresses a layer, by the suffix of its media type.
func decompress(mediaType string, layer io.Reader) (io.ReadCloser, error) {
	switch {
	case strings.Contains(mediaType, "+gzip"):
		return gzip.NewReader(layer)
	case strings.Contains(mediaType, "+zstd"):
		decoder, err := zstd.NewReader(layer, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(windowLimit))
		if err != nil {
			return nil, err
		}
		return decoder.IOReadCloser(), nil
	}
	return io.NopCloser(layer), nil
}

// damagedLayer is the failure of a layer that does not authenticate or decompress. The cause goes to the log alone,
// since its text may have raw bytes of the layer.
func damagedLayer(layer digest.Digest, err error) error {
	slog.Debug("a layer does not decrypt", "digest", layer, "error", err.Error())
	return failure.New(failure.Invalid,
		"layer %s is damaged: it, or its annotations, were changed or cut short after it was encrypted", layer).
		WithHint("get the image again from where it was published")
}

// output is the stream that containerd unpacks.
type output struct {
	io.Writer
	written int64
	failed  error // of writing
}

// Write counts what it writes.
func (o *output) Write(p []byte) (n int, err error) {
	n, err = o.Writer.Write(p)
	o.written, o.failed = o.written+int64(n), err
	return n, err
}

// refuse writes something to the stream that has containerd drop what it has unpacked. It is random, so that nobody can
// have put the stream's digest into the image's configuration.
func (o *output) refuse(err error) {
	if o.failed != nil {
		return
	}
	if o.written == 0 {
		// Unpacking stops at a link to a file that does not exist, with the link's target in the error: the failure.
		why := "hsm-image: " + err.Error()
		if hint := failure.From(err).Hint; hint != "" {
			why += "; hint: " + hint
		}
		_ = tar.NewWriter(o).WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: rand.Text(), Linkname: why})
		return
	}
	end := make([]byte, 1024, 1024+26) // zero bytes end an archive; what follows counts for the digest
	_, _ = o.Write(append(end, rand.Text()...))
}
