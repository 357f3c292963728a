// Package state keeps what the commands remember in folders of plain files. A folder is locked while it is changed, and
// a file is written whole or not at all, so that two commands at once, or one that is killed, leave nothing half done
// behind.
package state

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/lock"
)

// Lock makes the folder if need be and waits until no other command is changing it, as long as ctx lets it. The system
// drops the lock of a process that ends.
func Lock(ctx context.Context, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, failure.New(failure.Internal, "can't make the folder %s: %w", dir, err).
			WithHint("check the folder's permissions")
	}
	file, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, failure.New(failure.Internal, "can't lock %s: %w", dir, err).WithHint("check the folder's permissions")
	}
	if err := lock.File(ctx, file); err != nil {
		_ = file.Close()
		if ctx.Err() != nil {
			return nil, failure.New(failure.Timeout, "%s stayed locked", dir).
				WithHint("another command is changing it; run this again when that has ended")
		}
		return nil, failure.New(failure.Internal, "can't lock %s: %w", dir, err).WithHint("keep it on a local file system")
	}
	return func() { _ = file.Close() }, nil
}

// Write replaces a file: the data goes to a temporary name in the same folder, to the disk, and is renamed. What is
// there and is no file, such as a device, is not replaced.
func Write(path string, data []byte, mode os.FileMode) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return failure.New(failure.Invalid, "can't write %s: it is something else than a file", path).WithHint("name a file")
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return failure.New(failure.Internal, "can't write %s: %w", path, err).WithHint("check the folder's permissions")
	}
	if err := renameio.WriteFile(path, data, mode, renameio.WithTempDir(filepath.Dir(path)),
		renameio.IgnoreUmask()); err != nil {
		return failure.New(failure.Internal, "can't write %s: %w", path, err).
			WithHint("check the folder's permissions and that the disk is not full")
	}
	return nil
}

// Append writes data into the file from the offset size on, and to the disk before it returns. It first removes what
// the file has beyond size, which is left of a write that was cut short. It fails when there is no file.
func Append(path string, size int64, data []byte) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err == nil {
		if err = file.Truncate(size); err == nil {
			if _, err = file.WriteAt(data, size); err == nil {
				err = file.Sync()
			}
		}
		err = errors.Join(err, file.Close())
	}
	if err != nil {
		return failure.New(failure.Internal, "can't append to %s: %w", path, err).
			WithHint("check the folder's permissions and that the disk is not full")
	}
	return nil
}
