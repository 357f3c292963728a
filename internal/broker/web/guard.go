package web

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"path"
	"runtime/debug"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// What a request may take.
const (
	maxBody   = 64 << 10         // bytes
	pageTime  = 40 * time.Second // to find out what is shown
	writeTime = 20 * time.Second // to send it
)

// header are the headers of every answer.
var header = map[string]string{
	"Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; " +
		"connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
	"Cross-Origin-Opener-Policy":   "same-origin",
	"Cross-Origin-Resource-Policy": "same-origin",
	"Permissions-Policy": "publickey-credentials-get=(self), publickey-credentials-create=(self), camera=(), " +
		"geolocation=(), microphone=(), payment=(), usb=()",
	"Referrer-Policy":           "no-referrer",
	"Strict-Transport-Security": "max-age=31536000",
	"X-Content-Type-Options":    "nosniff",
	"X-Frame-Options":           "DENY",
	"Cache-Control":             "no-store",
}

// guard sets the headers of all answers, refuses requests of other origins, and bounds what a request may take.
func (w *Web) guard(mux *http.ServeMux) http.Handler {
	origins := http.NewCrossOriginProtection()
	origins.SetDenyHandler(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		w.fail(out, r, failure.New(failure.Denied, "the request comes from a page of another site").
			WithHint("open the page of the broker itself, and try again there"))
	}))
	served := origins.Handler(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if err := bounded(out, r); err != nil {
			w.fail(out, r, err)
			return
		}
		mux.ServeHTTP(out, r)
	}))
	return http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		for name, value := range header {
			out.Header().Set(name, value)
		}
		if w.options.RPID == "localhost" { // it would have browsers refuse other servers of the same machine
			out.Header().Del("Strict-Transport-Security")
		}
		ctx, cancel := context.WithTimeout(r.Context(), pageTime)
		defer cancel()
		r = r.WithContext(ctx)
		defer func() {
			if v := recover(); v != nil {
				slog.Error("panic", "value", v, "stack", string(debug.Stack()))
				w.fail(out, r, failure.New(failure.Internal, "the broker failed on this request").
					WithHint("tell the operator of the broker, who finds the cause in its log"))
			}
		}()
		if _, pattern := mux.Handler(r); pattern == "" || path.Clean(r.URL.Path) != r.URL.Path {
			w.missing(out, r, mux)
			return
		}
		served.ServeHTTP(out, r)
	})
}

// missing answers a request that no page takes.
func (w *Web) missing(out http.ResponseWriter, r *http.Request, mux *http.ServeMux) {
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		other := *r
		other.Method = method
		if _, pattern := mux.Handler(&other); pattern != "" && method != r.Method {
			out.Header().Set("Allow", method)
			w.fail(out, r, httpapi.WithStatus(http.StatusMethodNotAllowed, failure.New(failure.Unsupported,
				"the page does not take the method %.20q", r.Method).WithHint("begin at the start page")))
			return
		}
	}
	w.fail(out, r, failure.New(failure.NotFound, "the broker has no page %.100q", visible(r.URL.Path)).
		WithHint("begin at the start page"))
}

// bounded reads the body of a request, and fails for one that is too long.
func bounded(out http.ResponseWriter, r *http.Request) error {
	if r.ContentLength > maxBody {
		out.Header().Set("Connection", "close")
		return tooLarge()
	}
	data, err := io.ReadAll(http.MaxBytesReader(out, r.Body, maxBody))
	var exceeded *http.MaxBytesError
	switch {
	case errors.As(err, &exceeded):
		return tooLarge()
	case err != nil:
		out.Header().Set("Connection", "close")
		return failure.New(failure.Invalid, "cannot read the request: %w", err).WithHint("try again")
	}
	_ = http.NewResponseController(out).SetReadDeadline(time.Time{}) // it would end the request while the broker works
	r.Body = io.NopCloser(bytes.NewReader(data))
	return nil
}

func tooLarge() error {
	return httpapi.WithStatus(http.StatusRequestEntityTooLarge, failure.New(failure.Invalid,
		"the request has more than %d bytes", maxBody).WithHint("write a shorter text"))
}
