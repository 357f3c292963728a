package custody

import (
	"errors"
	"io/fs"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// unreadable returns the failure of a file that cannot be read, of kind NotFound, Denied or Invalid.
func unreadable(path string, err error) *failure.Error {
	kind := failure.Invalid
	switch {
	case errors.Is(err, fs.ErrNotExist):
		kind = failure.NotFound
	case errors.Is(err, fs.ErrPermission):
		kind = failure.Denied
	}
	if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
		err = cause.Err // the message has the path already
	}
	return failure.New(kind, "cannot read %s: %w", path, err).
		WithHint("check the path, and that this user can read the file")
}
