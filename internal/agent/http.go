package agent

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"os"
	"path"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// guard bounds requests before they reach next, and answers those that no operation of mux matches.
func (a *Agent) guard(mux *http.ServeMux, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v != nil {
				slog.Error("panic", "value", v, "stack", string(debug.Stack()))
				writeProblem(w, r, failure.New(failure.Internal, "the broker failed on this request").
					WithHint("report it with the log"))
			}
		}()
		end, err := a.accept(w, r, mux)
		if err != nil {
			writeProblem(w, r, err)
			return
		}
		defer end()
		next.ServeHTTP(w, r)
	})
}

// accept checks what all operations share and reads the body. It returns a function to call when the request has been
// answered.
func (a *Agent) accept(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) (end func(), err error) {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 {
		return nil, failure.New(failure.Invalid, "the broker does not speak %.20s", r.Proto).WithHint("use HTTP/1.1")
	}
	if err := matches(w, r, mux); err != nil {
		return nil, err
	}
	if r.URL.RawQuery != "" || r.URL.ForceQuery {
		return nil, failure.New(failure.Invalid, "unknown query parameters").WithHint("remove what follows the question mark")
	}
	uses := r.Method == http.MethodPost && strings.HasPrefix(r.URL.Path, brokerapi.KeysPath+"/") // of a key
	if !uses && r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
		return nil, failure.New(failure.Invalid, "the request has a body, and the operation takes none").
			WithHint("send it without a body")
	}
	release, err := a.limits.reserve(r.ContentLength)
	if err != nil {
		return nil, err
	}
	body, err := readBody(w, r)
	if err != nil {
		release()
		return nil, err
	}
	finish, err := a.limits.begin(connectionOf(r.Context()))
	if err != nil {
		release()
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return func() { finish(); release() }, nil
}

// matches fails unless an operation has the path and the method of a request.
func matches(w http.ResponseWriter, r *http.Request, mux *http.ServeMux) error {
	escaped := r.URL.EscapedPath()
	handler, pattern := mux.Handler(r)
	if path.Clean(escaped) == escaped && pattern != "" && r.Method != http.MethodHead {
		return nil
	}
	if r.Method == http.MethodHead && pattern != "" { // HEAD is no operation; find those of the path
		other := *r
		other.Method = "-"
		handler, _ = mux.Handler(&other)
	}
	refusal := refusal{header: http.Header{}}
	handler.ServeHTTP(&refusal, r)
	if refusal.status == http.StatusMethodNotAllowed {
		allowed := strings.Split(refusal.header.Get("Allow"), ", ")
		allowed = slices.DeleteFunc(allowed, func(method string) bool { return method == http.MethodHead })
		w.Header().Set("Allow", strings.Join(allowed, ", "))
		return withStatus(refusal.status, failure.New(failure.Unsupported, "no operation %.20q of %.100q", r.Method, escaped).
			WithHint("use "+strings.Join(allowed, " or ")))
	}
	return failure.New(failure.NotFound, "no operation has the path %.100q", escaped).
		WithHint("see the description of the API")
}

// refusal keeps the status and the headers of an answer that is not sent.
type refusal struct {
	header http.Header
	status int
}

func (r *refusal) Header() http.Header         { return r.header }
func (r *refusal) Write(b []byte) (int, error) { return len(b), nil }
func (r *refusal) WriteHeader(status int)      { r.status = status }

// readBody reads the body of a request, within its limit in size and in time.
func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	limit := int64(brokerapi.RequestLimits.Bytes)
	tooLarge := withStatus(http.StatusRequestEntityTooLarge, failure.New(failure.Invalid,
		"the request has more than %d bytes", limit).WithHint("sign a smaller document"))
	if r.ContentLength > limit {
		w.Header().Set("Connection", "close")
		return nil, tooLarge
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var exceeded *http.MaxBytesError
	switch {
	case errors.As(err, &exceeded):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.Header().Set("Connection", "close")
		return nil, withStatus(http.StatusRequestTimeout, failure.New(failure.Timeout,
			"the request was not complete after %s", readTime).WithHint("try again"))
	case err != nil:
		w.Header().Set("Connection", "close")
		return nil, failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint("send all of it")
	}
	// The deadline would cancel the request, which can wait for the module or a person for longer.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	return data, nil
}

// readJSON decodes the body of a request, as brokerapi.ReadRequest does.
func readJSON(r *http.Request, into any) error {
	media, parameters, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	delete(parameters, "charset") // JSON is in UTF-8, whatever it says
	if err != nil || media != "application/json" || len(parameters) > 0 || r.Header.Get("Content-Encoding") != "" {
		return withStatus(http.StatusUnsupportedMediaType, failure.New(failure.Invalid,
			"the request is not application/json without an encoding").WithHint("send Content-Type: application/json"))
	}
	data, err := io.ReadAll(r.Body)
	if err == nil {
		err = brokerapi.ReadRequest(data, into)
	}
	if err != nil {
		return failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint("see the description of the API")
	}
	return nil
}

// answer returns a handler that answers with JSON or a Problem.
func answer[T any](do func(*http.Request) (*T, int, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, status, err := do(r)
		if err != nil {
			writeProblem(w, r, err)
			return
		}
		writeJSON(w, "application/json", status, body)
	}
}

func writeJSON(w http.ResponseWriter, mediaType string, status int, body any) {
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

func withStatus(status int, err error) error { return &statusError{status, err} }

func writeProblem(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil { // whatever failed, it did because of that
		err = failure.New(failure.Invalid, "the caller closed the connection before the answer: %w", err).
			WithHint("keep both directions of the connection open")
	}
	f, by := failure.From(err), connectionOf(r.Context()).peer
	status := statuses[f.Kind]
	var other *statusError
	if errors.As(err, &other) {
		status = other.status
	}
	slog.Info("refused", "kind", f.Kind.String(), "status", status, "error", err, "caller", by.pid,
		"program", by.executable)
	if f.Kind == failure.Throttled {
		w.Header().Set("Retry-After", "1")
	}
	writeJSON(w, brokerapi.ProblemType, status, brokerapi.Problem{
		Title: http.StatusText(status), Status: status, Kind: f.Kind.String(), Detail: f.What, Hint: f.Hint, CKR: f.CKR,
	})
}
