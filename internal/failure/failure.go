// Package failure holds the one error type that people and Notation read.
//
// An Error says what failed and on which key or file, what to do next, and, when a PKCS#11 module was the cause, the
// return value by its name. Every room below the commands returns it; internal/plugin turns it into the JSON of the
// plugin contract and the commands into an "error:" and a "hint:" line.
package failure

import (
	"errors"
	"fmt"
)

// Kind is who has to act, in the terms of the plugin contract's error codes.
type Kind int

const (
	Internal    Kind = iota // the module or this program misbehaved
	Invalid                 // a request, a setting or a name is wrong
	Denied                  // the token or the key refuses this user
	Throttled               // the module has no session left; later may work
	Timeout                 // the module did not answer in time
	Unsupported             // another version of the contract is wanted
)

// Error is a failure in the words of its reader.
type Error struct {
	Kind Kind
	What string // what failed, on which key, token or file
	Hint string // what to do next; empty when there is nothing useful to say
	CKR  string // PKCS#11 return value by name, such as CKR_PIN_LOCKED; empty when no module was involved
	Err  error  // the cause, kept for errors.Is and the log
}

// New makes an Error of a kind with a hint. The format describes what failed; a %w in it keeps the cause.
func New(kind Kind, hint, format string, args ...any) *Error {
	err := fmt.Errorf(format, args...)
	return &Error{Kind: kind, What: err.Error(), Hint: hint, Err: errors.Unwrap(err)}
}

// Error returns what failed, with the PKCS#11 return value when there is one. The hint is not part of it.
func (e *Error) Error() string {
	if e.CKR == "" {
		return e.What
	}
	return e.What + " (" + e.CKR + ")"
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// From returns err as an Error; an error of another type becomes Internal, with its text as what failed.
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
