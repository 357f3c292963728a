// Package failure holds the one error type that people and Notation read.
//
// An Error says what failed and on which key or file, what to do next, and, when a PKCS#11 module was the cause, the
// return value by its name. Every room returns it. The edges translate its kind: internal/plugin into the error codes
// of the plugin contract, internal/cli into exit codes.
package failure

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"syscall"
	"time"
)

// Kind says what happened.
type Kind int

// The kinds.
const (
	Internal    Kind = iota // the module or this program misbehaved
	Invalid                 // a request, a setting, a file or a name is wrong
	NotFound                // a key, token, file or other named object does not exist
	Denied                  // the token, the key, a policy or file permissions refuse the operation
	Conflict                // the object exists already, or another process changed it
	Unavailable             // the token, the module or a service cannot be reached; later may work
	Throttled               // no session or no capacity is free; later may work
	Timeout                 // there was no answer before the deadline
	Unsupported             // the module, or this program, cannot do this
)

var kindNames = []string{"internal", "invalid", "not-found", "denied", "conflict", "unavailable", "throttled",
	"timeout", "unsupported"}

// String returns the name of the kind, in lower case with hyphens.
func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return kindNames[Internal]
	}
	return kindNames[k]
}

// ParseKind returns the kind of a name, and Internal for a name that is none's.
func ParseKind(name string) Kind { return Kind(max(slices.Index(kindNames, name), 0)) }

// Error is a failure with a message for its reader.
type Error struct {
	Kind Kind
	What string // the operation that failed, the object, and the cause
	Hint string // one instruction what to do next; may be empty
	CKR  string // PKCS#11 return value by name, such as CKR_PIN_LOCKED; empty when no module was involved
	Err  error  // the cause, kept for errors.Is and the log

	// RetryAfter is how long a caller that tries again should wait; 0 where nothing is known.
	RetryAfter time.Duration
}

// New returns an Error of a kind. The format is the message; a %w in it keeps the cause.
func New(kind Kind, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, What: err.Error(), Err: errors.Unwrap(err)}
}

// WithHint sets the hint and returns the same Error.
func (e *Error) WithHint(hint string) *Error {
	e.Hint = hint
	return e
}

// WithRetryAfter sets how long a caller that tries again should wait, and returns the same Error.
func (e *Error) WithRetryAfter(wait time.Duration) *Error {
	e.RetryAfter = wait
	return e
}

// Error returns the message, with the PKCS#11 return value when there is one. The hint is not part of it.
func (e *Error) Error() string {
	if e.CKR == "" {
		return e.What
	}
	return e.What + " (" + e.CKR + ")"
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// From returns err as an Error; an error of another type becomes Internal, with its text as the message.
func From(err error) *Error {
	var e *Error
	if errors.As(err, &e) {
		return e
	}
	return &Error{Kind: Internal, What: err.Error(), Err: err}
}

// Is reports whether err is an Error of this kind.
func Is(err error, kind Kind) bool {
	var e *Error
	return errors.As(err, &e) && e.Kind == kind
}

// FileKind returns the kind of an error of a file operation. An error that the operating system did not return, such as
// that a file is too large, is Invalid.
func FileKind(err error) Kind {
	var errno syscall.Errno
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return NotFound
	case errors.Is(err, fs.ErrPermission):
		return Denied
	case errors.Is(err, fs.ErrExist):
		return Conflict
	case !errors.As(err, &errno), errno == syscall.EISDIR, errno == syscall.ENOTDIR:
		return Invalid
	}
	return Unavailable // such as a full disk, or a network file system that does not answer
}
