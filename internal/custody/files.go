package custody

import (
	"errors"
	"io/fs"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// unreadable returns the failure of a file that cannot be read, with the kind of the error that the system returned.
func unreadable(path string, err error) *failure.Error {
	if cause := (*fs.PathError)(nil); errors.As(err, &cause) {
		err = cause.Err // the message has the path already
	}
	return failure.New(failure.FileKind(err), "cannot read %s: %w", path, err).
		WithHint("check the path, and that this user can read the file")
}
