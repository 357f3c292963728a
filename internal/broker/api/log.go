package api

import (
	"crypto/rand"
	"log/slog"
	"net/http"
	"regexp"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// requestID is the header with the name of a request in the log.
const requestID = "X-Request-Id"

// traceparent is the header of W3C Trace Context, version 00; the trace is its first group.
var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$`)

// identified gives each request a name, which the caller finds in the header X-Request-Id of the answer. The log has
// it, and the trace that the caller names.
func identified(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := rand.Text()
		w.Header().Set(requestID, id)
		attributes := []any{"request_id", id}
		if trace := traceparent.FindStringSubmatch(r.Header.Get("Traceparent")); trace != nil {
			attributes = append(attributes, "trace_id", trace[1])
		}
		next.ServeHTTP(w, r.WithContext(httpapi.WithCaller(r.Context(), attributes...)))
	})
}

// logged logs each request of a caller that is not refused. Neither its credential nor what it sends is logged.
func (a *API) logged(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.operation(r).open {
			next.ServeHTTP(w, r)
			return
		}
		seen, start := &statusWriter{ResponseWriter: w}, time.Now()
		next.ServeHTTP(seen, r)
		if seen.status < http.StatusBadRequest {
			slog.Info("answered", append([]any{"method", r.Method, "path", r.URL.EscapedPath(), "status", seen.status,
				"milliseconds", time.Since(start).Milliseconds()}, httpapi.Attributes(r.Context())...)...)
		}
	})
}

// statusWriter keeps the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

// WriteHeader sends the status.
func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap returns the writer below, as http.ResponseController needs it.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
