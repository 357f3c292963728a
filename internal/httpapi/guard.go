// Package httpapi is what the servers of the API of internal/brokerapi share: which requests reach an operation, how
// they are read and answered, and what callers can use at once.
//
// A request is hostile until it was read: it is bounded in size and time, and only what the API describes is accepted.
package httpapi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Guard bounds the requests of a server.
type Guard struct {
	// Operations are those of the API, by method and path.
	Operations *http.ServeMux
	// Limits bound what callers use at once.
	Limits *Limits
	// TakesBody reports whether the operation of a request takes a body.
	TakesBody func(*http.Request) bool
	// Size is the number of bytes of the largest body; 0 means as many as brokerapi reads.
	Size int64
	// Small reports whether a request has a body of at most 64 KiB: one that anybody may send. Such bodies do not count as
	// large ones, whatever length they have, so that nobody keeps those of others away; nil is for none.
	Small func(*http.Request) bool
	// Free reports whether a request takes next to nothing, so that it is answered however many others are in flight; nil
	// is for none.
	Free func(*http.Request) bool
	// Query returns the names of the query parameters that the operation of a request takes; nil is no operation with any.
	Query func(*http.Request) []string
	// Identify returns the context of a request with who made it, before the body is read; nil leaves the context.
	Identify func(*http.Request) (context.Context, error)
	// Caller returns the key by which the caller of a request is counted, as Limits.Begin takes it.
	Caller func(*http.Request) string
}

// Handler returns a handler that checks requests before they reach next, and answers those that no operation matches.
func (g *Guard) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			if v := recover(); v != nil {
				slog.Error("panic", "value", v, "stack", string(debug.Stack()))
				WriteProblem(w, r, failure.New(failure.Internal, "the broker failed on this request").
					WithHint("report it with the log"))
			}
		}()
		var end func()
		var err error
		if r, end, err = g.accept(w, r); err != nil {
			WriteProblem(w, r, err)
			return
		}
		defer end()
		next.ServeHTTP(w, r)
	})
}

// accept checks what all operations share, and reads the body. It returns the request with the context of its caller as
// far as that is known, and a function to call when the request has been answered.
func (g *Guard) accept(w http.ResponseWriter, r *http.Request) (_ *http.Request, end func(), err error) {
	if err := g.check(w, r); err != nil {
		return r, nil, err
	}
	if g.Identify != nil {
		ctx, err := g.Identify(r)
		if err != nil {
			return r, nil, err
		}
		r = r.WithContext(ctx)
	}
	size, release := g.Size, func() {}
	if g.Small != nil && g.Small(r) {
		if size = smallBody; g.Size > 0 {
			size = min(size, g.Size)
		}
	} else if release, err = g.Limits.Reserve(r.ContentLength); err != nil {
		return r, nil, err
	}
	body, err := readBody(w, r, size)
	if err != nil {
		release()
		return r, nil, err
	}
	if g.Free != nil && g.Free(r) {
		return r, release, nil
	}
	finish, err := g.Limits.Begin(r.Context(), g.Caller(r))
	if err != nil {
		release()
		return r, nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	return r, func() { finish(); release() }, nil
}

// check fails for a request that no operation takes, as far as its head tells.
func (g *Guard) check(w http.ResponseWriter, r *http.Request) error {
	if r.ProtoMajor != 1 || r.ProtoMinor != 1 {
		return failure.New(failure.Invalid, "the broker does not speak %.20s", r.Proto).WithHint("use HTTP/1.1")
	}
	if err := matches(w, r, g.Operations); err != nil {
		return err
	}
	if err := g.checkQuery(r); err != nil {
		return err
	}
	if !g.TakesBody(r) && r.ContentLength != 0 {
		w.Header().Set("Connection", "close")
		return failure.New(failure.Invalid, "the request has a body, and the operation takes none").
			WithHint("send it without a body")
	}
	return nil
}

// checkQuery fails unless the operation takes every query parameter, each of which may be there once.
func (g *Guard) checkQuery(r *http.Request) error {
	var known []string
	if g.Query != nil {
		known = g.Query(r)
	}
	if len(known) == 0 {
		if r.URL.RawQuery != "" || r.URL.ForceQuery {
			return failure.New(failure.Invalid, "unknown query parameters").WithHint("remove what follows the question mark")
		}
		return nil
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return failure.New(failure.Invalid, "cannot read the query parameters: %w", err).WithHint("encode them as in a URL")
	}
	for name, values := range query {
		if !slices.Contains(known, name) || len(values) > 1 {
			return failure.New(failure.Invalid, "unknown or repeated query parameter %.50q", name).
				WithHint("use each of " + strings.Join(known, ", ") + " at most once")
		}
	}
	return nil
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
		return WithStatus(refusal.status, failure.New(failure.Unsupported, "no operation %.20q of %.100q", r.Method, escaped).
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
