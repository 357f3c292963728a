package registry

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"

	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Kind returns the kind of an error that a request to a registry returned. It is Invalid for a registry that sent what
// it must not send, or more than the limits allow.
func Kind(err error) failure.Kind {
	var (
		status  *errcode.ErrorResponse
		limit   *limitError
		network net.Error
		request *url.Error
	)
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return failure.Timeout
	case errors.Is(err, context.Canceled):
		return failure.Unavailable
	case errors.As(err, &status):
		return statusKind(status)
	case errors.Is(err, errdef.ErrNotFound):
		return failure.NotFound
	case errors.Is(err, auth.ErrBasicCredentialNotFound):
		return failure.Denied
	case errors.As(err, &limit):
		return failure.Invalid
	case errors.As(err, &request), errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF):
		return failure.Unavailable
	}
	return failure.Invalid
}

// statusKind returns the kind of an HTTP status that is an error.
func statusKind(status *errcode.ErrorResponse) failure.Kind {
	for _, e := range status.Errors {
		if e.Code == errcode.ErrorCodeUnsupported {
			return failure.Unsupported
		}
	}
	switch status.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return failure.Denied
	case http.StatusNotFound:
		return failure.NotFound
	case http.StatusMethodNotAllowed:
		return failure.Unsupported
	case http.StatusTooManyRequests:
		return failure.Throttled
	}
	if status.StatusCode >= http.StatusInternalServerError {
		return failure.Unavailable
	}
	return failure.Invalid
}
