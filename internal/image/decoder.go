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
	payloadLimit  = 4 << 20   // bytes; a descriptor is a part of a manifest, and those are smaller
	windowLimit   = 128 << 20 // bytes of memory that a zstd layer may ask for: the zstd command's own limit
	decoderBuffer = 64 << 10  // bytes
	headSize      = 4 << 10   // bytes; as layers are encrypted, no two begin alike
)

// A Decoder is containerd's stream processor for encrypted layers.
type Decoder struct {
	Keystore   *keystore.Keystore
	References []string // the keys, as in layerkey.OpenKeys
	Root       string   // containerd's root folder
	MediaType  string   // of the layer
	// what containerd says of the layer besides: imgcrypt's Payload as JSON in a protobuf Any, or nothing
	Payload io.Reader

	confined bool          // the process is given to the decoder; see Confined
	user     *sandbox.User // whom it goes on as; nil is whoever started it
}

// Decode reads a layer from encrypted and writes it to plain as a tar archive, decompressed. What it needs to know of
// the layer is its descriptor. That is in the payload when containerd was told to send one, which it does for pulls
// that no image verifier is asked about; otherwise the descriptor is found in the content store. The module is closed
// again before the layer is decrypted.
//
// Whether a layer is as it was encrypted is known at its end only, when most of it has been written. Nor does an exit
// code take it back, or say why: containerd asks for one when the stream has ended, which is before the process has. So
// a failure is put into the stream.
func (d Decoder) Decode(ctx context.Context, encrypted io.Reader, plain io.Writer) error {
	out := &output{Writer: plain}
	// A module that hangs, or a panic, has to end here, where it can still be said.
	err := deadline.Run(ctx, func(ctx context.Context) error { return d.decode(ctx, encrypted, out) })
	if err != nil {
		out.refuse(err)
	}
	return err
}

// Refuse has containerd drop the layer and say why.
func (Decoder) Refuse(plain io.Writer, err error) error {
	(&output{Writer: plain}).refuse(err)
	return err
}

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
			return failure.New(failure.Internal, "containerd does not give the layer: %w", err).WithHint("see containerd's log")
		}
		encrypted = io.MultiReader(bytes.NewReader(head[:n]), encrypted)
		if layers, err = store.layersThatBegin(head[:n], d.MediaType); err != nil {
			return err
		}
	}
	candidates, err := openAll(ctx, d.Keystore, d.References, layers)
	if err != nil {
		return err
	}
	files := map[digest.Digest]*os.File{}
	if len(candidates) > 1 {
		files = store.open(candidates)
		defer closeAll(files)
	}
	// From here on, only open files are needed.
	if err := d.giveUpFiles(ctx); err != nil {
		return err
	}
	layer := candidates[0]
	if len(candidates) > 1 {
		blob, chosen, err := choose(encrypted, candidates, files)
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
		_, err = io.Copy(io.Discard, decrypted) // what compression left over is a part of the layer as well
	}
	switch {
	case out.failed != nil:
		return failure.New(failure.Internal, "containerd took no more of layer %s: %w", layer.Digest,
			out.failed).
			WithHint("see containerd's log")
	case err != nil:
		return damagedLayer(layer.Digest, err)
	}
	return nil
}

// readPayload returns the descriptor of the layer, or none if containerd says nothing.
func (d Decoder) readPayload() ([]ocispec.Descriptor, error) {
	data, err := io.ReadAll(io.LimitReader(d.Payload, payloadLimit+1))
	if err != nil {
		return nil, failure.New(failure.Internal, "what containerd says of the layer can't be read: %w", err)
	}
	if len(data) == 0 {
		return nil, nil
	}
	var message anypb.Any
	var p imgcrypt.Payload
	if len(data) > payloadLimit || proto.Unmarshal(data, &message) != nil || message.GetTypeUrl() != imgcrypt.PayloadURI ||
		bound.JSON(message.GetValue(), manifestBounds) != nil || json.Unmarshal(message.GetValue(), &p) != nil {
		return nil, failure.New(failure.Unsupported, "what containerd says of the layer is not an imgcrypt payload").
			WithHint("is this a version of containerd that hsm-image was tested with?")
	}
	return []ocispec.Descriptor{p.Descriptor}, nil
}

// A candidate is a layer, as one manifest describes it, whose key is open.
type candidate struct {
	ocispec.Descriptor
	options blockcipher.LayerBlockCipherOptions
}

// openAll has the module open the keys of all layers that it can, and closes the module. It fails if there is none.
func openAll(ctx context.Context, ks *keystore.Keystore, references []string, layers []ocispec.Descriptor) (opened []candidate, first error) {
	keys := layerkey.OpenKeys(ks, references, config.Flags)
	defer keys.Close()
	for _, layer := range layers {
		c, err := open(ctx, keys, layer)
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

func open(ctx context.Context, keys *layerkey.Keys, layer ocispec.Descriptor) (candidate, error) {
	c := candidate{Descriptor: layer}
	private, err := unlock(ctx, keys, Layer{annotations: layer.Annotations})
	if err != nil {
		return c, err
	}
	defer clear(private)
	if c.options.Public, err = cipherOf(layer.Annotations); err != nil {
		return c, err
	}
	return c, json.Unmarshal(private, &c.options.Private)
}

// decrypt returns the layer's plain bytes. Reading them fails at their end if the layer is not as it was encrypted.
func (c candidate) decrypt(encrypted io.Reader) (io.Reader, error) {
	handler, err := blockcipher.NewLayerBlockCipherHandler()
	if err != nil {
		return nil, err
	}
	decrypted, _, err := handler.Decrypt(encrypted, c.options)
	if err != nil {
		return nil, failure.New(failure.Unsupported, "layer %s can't be decrypted: %w", c.Digest, err)
	}
	return decrypted, nil
}

// decompress undoes the compression that the media type names.
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

func damagedLayer(layer digest.Digest, err error) error {
	slog.Debug("a layer does not decrypt", "digest", layer, "error", err.Error()) // its text may hold raw bytes
	return failure.New(failure.Invalid,
		"layer %s is damaged: it, or its annotations, were changed or cut short after it was encrypted", layer).
		WithHint("get the image again from where it was published")
}

// output is what containerd unpacks.
type output struct {
	io.Writer
	written int64
	failed  error // of writing
}

func (o *output) Write(p []byte) (n int, err error) {
	n, err = o.Writer.Write(p)
	o.written, o.failed = o.written+int64(n), err
	return n, err
}

// refuse makes containerd drop what it has unpacked. Whatever it does with the stream, the stream's digest is none that
// someone can have put into the image's configuration beforehand.
func (o *output) refuse(err error) {
	if o.failed != nil {
		return
	}
	if o.written == 0 {
		// A link to a file that is not there stops containerd, which says where the link was to go: there it says why.
		why := "hsm-image: " + err.Error()
		if hint := failure.From(err).Hint; hint != "" {
			why += "; hint: " + hint
		}
		_ = tar.NewWriter(o).WriteHeader(&tar.Header{Typeflag: tar.TypeLink, Name: rand.Text(), Linkname: why})
		return
	}
	end := make([]byte, 1024, 1024+26) // zero bytes end an archive; what follows is read and counts for the digest
	_, _ = o.Write(append(end, rand.Text()...))
}
