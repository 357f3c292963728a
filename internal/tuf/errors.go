package tuf

import (
	"errors"
	"strings"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

func invalid(format string, args ...any) *failure.Error {
	return failure.New(failure.Invalid, format, args...)
}

// errChanged is the cause for files that are not what the set says.
var errChanged = errors.New("not the signed file")

// explain returns why metadata are refused, for an error of go-tuf.
func explain(err error) error {
	var own *failure.Error
	if errors.As(err, &own) {
		return own
	}
	refuse := func(reason, hint string) error {
		return failure.New(failure.Denied, "cannot verify the tag metadata: %s: %w", reason, err).WithHint(hint)
	}
	const compare = "find out who can write to the repository; if the registry was restored from a backup, restore the " +
		"newest manifest under the tag tuf-metadata as well"
	switch {
	case errors.Is(err, &metadata.ErrExpiredMetadata{}):
		return refuse("it has expired, so that it may not be the newest", "have the publisher run: hsm-image tag refresh")
	case errors.Is(err, &metadata.ErrBadVersionNumber{}):
		return refuse("it went back to an older version", compare)
	case errors.Is(err, &metadata.ErrDownloadLengthMismatch{}), errors.Is(err, &metadata.ErrLengthOrHashMismatch{}),
		errors.Is(err, errChanged):
		return refuse("a file is not the signed one: it is of another version, or was changed",
			"check who can write to the repository")
	case errors.Is(err, &metadata.ErrUnsignedMetadata{}):
		return refuse("it lacks signatures by enough of the role's keys", "check who can write to the repository")
	case strings.Contains(err.Error(), "new snapshot is missing info"):
		return refuse("a file was left out", "check who can write to the repository")
	}
	return refuse("it is not valid", "check who can write to the repository")
}

// isAbsent reports whether an error says that a role has signed nothing.
func isAbsent(err error) bool { return err != nil && failure.From(err).Kind == failure.NotFound }
