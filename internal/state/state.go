// Package state writes the files that commands keep between runs. A folder is locked while its files are changed, and a
// file is replaced in one step. So concurrent or killed commands leave no half-written file behind.
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

// Lock locks a folder, which it creates if there is none, and returns the function that unlocks it. It waits for other
// commands that have the lock, and fails with kind Timeout when ctx ends before. The kernel drops the lock of a process
// that ends.
func Lock(ctx context.Context, dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot create the folder %s: %w", dir, err).
			WithHint("check the folder's permissions")
	}
	file, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot lock %s: %w", dir, err).
			WithHint("check the folder's permissions")
	}
	if err := lock.File(ctx, file); err != nil {
		_ = file.Close()
		if ctx.Err() != nil {
			return nil, failure.New(failure.Timeout, "cannot lock %s: another command is changing it", dir).
				WithHint("run this again when the other command has ended")
		}
		return nil, failure.New(failure.Unsupported, "cannot lock %s: %w", dir, err).
			WithHint("keep it on a local file system")
	}
	return func() { _ = file.Close() }, nil
}

// Write replaces the content of a file, or creates it and its folder. The data is written to a temporary file in the
// same folder, to the disk, and renamed. Anything but a regular file, such as a device or a named pipe, is refused.
func Write(path string, data []byte, mode os.FileMode) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return failure.New(failure.Invalid, "cannot write %s: it is not a regular file", path).WithHint("name a file")
	}
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = renameio.WriteFile(path, data, mode, renameio.WithTempDir(filepath.Dir(path)), renameio.IgnoreUmask())
	}
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot write %s: %w", path, err).WithHint(writeHint)
	}
	return nil
}

const writeHint = "check the folder's permissions and that the disk is not full"

// Append writes data into an existing file at the offset size, and to the disk. It first truncates the file to size,
// since an interrupted write may have left more.
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
		return failure.New(failure.FileKind(err), "cannot append to %s: %w", path, err).WithHint(writeHint)
	}
	return nil
}
