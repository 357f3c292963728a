package api

import (
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
	"github.com/notation-hsm/notation-hsm/internal/httpapi"
)

// isPage reports whether the page answers a request: whatever is neither below /v1 nor tells how the broker is.
func (a *API) isPage(r *http.Request) bool {
	return a.options.Page != nil && r.URL.Path != "/v1" && !strings.HasPrefix(r.URL.Path, "/v1/") &&
		!slices.Contains([]string{brokerapi.HealthPath, brokerapi.ReadyPath}, r.URL.Path)
}

// orPage returns a handler that has the page answer its requests, and api all others. A request of the page counts as
// one in flight of the address that it comes from.
func (a *API) orPage(api http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !a.isPage(r) {
			api.ServeHTTP(w, r)
			return
		}
		from, _, _ := net.SplitHostPort(r.RemoteAddr) // "" on a Unix socket
		end, err := a.limits.Begin(r.Context(), "page "+from)
		if err != nil {
			httpapi.WriteProblem(w, r, err)
			return
		}
		defer end()
		a.options.Page.ServeHTTP(w, r)
	})
}
