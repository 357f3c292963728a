package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Answer returns a handler that answers with JSON or a Problem.
func Answer[T any](do func(*http.Request) (*T, int, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, status, err := do(r)
		if err != nil {
			WriteProblem(w, r, err)
			return
		}
		WriteJSON(w, "application/json", status, body)
	}
}

// WriteJSON answers with JSON, which no cache may keep. The caller has a limited time to read it.
func WriteJSON(w http.ResponseWriter, mediaType string, status int, body any) {
	data, err := json.Marshal(body)
	if err != nil {
		panic(err) // no type of the API fails
	}
	w.Header().Set("Content-Type", mediaType)
	w.Header().Set("Content-Length", strconv.Itoa(len(data)))
	w.Header().Set("Cache-Control", "no-store")
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(writeTime))
	w.WriteHeader(status)
	_, _ = w.Write(data) // the caller may be gone
}

// statuses are those of HTTP by kind.
var statuses = map[failure.Kind]int{
	failure.Internal:    http.StatusInternalServerError,
	failure.Invalid:     http.StatusBadRequest,
	failure.NotFound:    http.StatusNotFound,
	failure.Denied:      http.StatusForbidden,
	failure.Conflict:    http.StatusConflict,
	failure.Unavailable: http.StatusServiceUnavailable,
	failure.Throttled:   http.StatusTooManyRequests,
	failure.Timeout:     http.StatusGatewayTimeout,
	failure.Unsupported: http.StatusNotImplemented,
}

// statusError is a failure with another status of HTTP than its kind has.
type statusError struct {
	status int
	err    error
}

func (e *statusError) Error() string { return e.err.Error() }
func (e *statusError) Unwrap() error { return e.err }

// WithStatus returns a failure that WriteProblem answers with another status of HTTP than its kind has.
func WithStatus(status int, err error) error { return &statusError{status, err} }

// Status returns the status of HTTP that a failure is answered with.
func Status(err error) int {
	var other *statusError
	if errors.As(err, &other) {
		return other.status
	}
	return statuses[failure.From(err).Kind]
}

// maxRetryAfter is the longest time after which callers are asked to try again.
const maxRetryAfter = time.Hour

// retryAfter returns the seconds after which a caller should try again, or 0 for no time.
func retryAfter(f *failure.Error) int {
	wait := int(math.Ceil(min(f.RetryAfter, maxRetryAfter).Seconds()))
	switch f.Kind {
	case failure.Throttled:
		return max(wait, 1)
	case failure.Unavailable:
		return wait
	}
	return 0
}

type callerKey struct{}

// WithCaller returns a context for the requests of a caller, with more attributes for Attributes, as slog.Log takes
// them.
func WithCaller(ctx context.Context, attributes ...any) context.Context {
	return context.WithValue(ctx, callerKey{}, append(Attributes(ctx), attributes...))
}

type problemKey struct{}

// Observe returns a context for a request, and a function that returns the kind of the failure that it was answered
// with, or "" for none.
func Observe(ctx context.Context) (context.Context, func() string) {
	kind := new(string)
	return context.WithValue(ctx, problemKey{}, kind), func() string { return *kind }
}

// Attributes returns what is logged of the caller of a request.
func Attributes(ctx context.Context) []any {
	said, _ := ctx.Value(callerKey{}).([]any)
	return slices.Clip(said)
}

// WriteProblem answers with a failure as a Problem, and logs it with the Attributes of the caller.
func WriteProblem(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil { // whatever failed, it did because of that
		err = failure.New(failure.Invalid, "the caller closed the connection before the answer: %w", err).
			WithHint("keep both directions of the connection open")
	}
	f := failure.From(err)
	if kind, ok := r.Context().Value(problemKey{}).(*string); ok {
		*kind = f.Kind.String()
	}
	status := Status(err)
	slog.Info("refused", append([]any{"kind", f.Kind.String(), "status", status, "error", err},
		Attributes(r.Context())...)...)
	if status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", "Bearer") // RFC 9110 section 11.6.1
	}
	if wait := retryAfter(f); wait > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(wait))
	}
	WriteJSON(w, brokerapi.ProblemType, status, brokerapi.Problem{
		Title: http.StatusText(status), Status: status, Kind: f.Kind.String(), Detail: f.What, Hint: f.Hint, CKR: f.CKR,
	})
}
