package image

import (
	"archive/tar"
	"context"
	"io"
	"os"

	dockerarchive "go.podman.io/image/v5/docker/archive"
	ociarchive "go.podman.io/image/v5/oci/archive"
	"go.podman.io/image/v5/pkg/compression"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// The limits of an archive. The copy library unpacks it as a whole, and a small file can hold a large archive,
// compressed or with sparse files. The layers of real images are compressed in an archive that is not.
const (
	unpackedFactor = 10       // of the file's size, for all files in the archive together
	unpackedSlack  = 64 << 20 // bytes more
	entriesLimit   = 1 << 16
)

// checkArchive fails with Invalid for an image in an archive that unpacks to more than the limits allow. It passes what
// is no archive, which the copy library refuses, and what is no regular file: a pipe cannot be read twice.
func checkArchive(ctx context.Context, ref Reference) error {
	if t := ref.transport(); t != ociarchive.Transport.Name() && t != dockerarchive.Transport.Name() {
		return nil
	}
	path, _, _ := ref.local()
	info, err := os.Stat(path)
	if err != nil {
		return unreadable(ref, err)
	}
	if !info.Mode().IsRegular() {
		return nil
	}
	f, err := os.Open(path)
	if err != nil {
		return unreadable(ref, err)
	}
	defer f.Close()
	limit := unpackedFactor*info.Size() + unpackedSlack
	decompressed, compressed, err := compression.AutoDecompress(f)
	if err != nil {
		return unreadable(ref, err)
	}
	defer decompressed.Close()
	if !compressed {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return unreadable(ref, err)
		}
		return checkEntries(ctx, ref, f, limit) // which seeks past the content of files
	}
	content := &io.LimitedReader{R: decompressed, N: limit + 1}
	if err := checkEntries(ctx, ref, content, limit); err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, content) // the copy library reads what follows the archive too
	if content.N == 0 {
		return tooLarge(ref)
	}
	return ctx.Err()
}

// checkEntries fails when the files in an archive have more than limit bytes together, or are too many.
func checkEntries(ctx context.Context, ref Reference, content io.Reader, limit int64) error {
	archive := tar.NewReader(content)
	unpacked := int64(0)
	for range entriesLimit {
		header, err := archive.Next()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			return nil //nolint:nilerr // the end, or what the copy library cannot read either
		}
		if unpacked += header.Size; unpacked > limit || unpacked < 0 {
			return tooLarge(ref)
		}
	}
	return failure.New(failure.Invalid, "%s holds more than %d files", ref, entriesLimit).WithHint(hintImage)
}

// tooLarge is the failure of an archive that unpacks to more than the limits allow.
func tooLarge(ref Reference) error {
	return failure.New(failure.Invalid, "%s unpacks to more than %d times its size", ref, unpackedFactor).
		WithHint("get it again from where it was published; if you trust it, unpack it with tar and name oci:DIR")
}
