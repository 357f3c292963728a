package registry

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"

	"oras.land/oras-go/v2/registry/remote/auth"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestKind verifies the kind of what a registry may answer.
func TestKind(t *testing.T) {
	for _, c := range []struct {
		status int
		body   string
		want   failure.Kind
	}{
		{http.StatusUnauthorized, "", failure.Denied}, {http.StatusForbidden, "", failure.Denied},
		{http.StatusNotFound, "", failure.NotFound}, {http.StatusMethodNotAllowed, "", failure.Unsupported},
		{http.StatusBadRequest, `{"errors":[{"code":"UNSUPPORTED"}]}`, failure.Unsupported},
		{http.StatusBadRequest, `{"errors":[{"code":"TAG_INVALID"}]}`, failure.Invalid},
		{http.StatusTooManyRequests, "", failure.Throttled}, {http.StatusBadGateway, "", failure.Unavailable},
	} {
		h := oci.NewHostile(t)
		h.Answer = func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(c.status)
			fmt.Fprint(w, c.body)
			return true
		}
		_, _, err := New(Options{PlainHTTP: true}).Repository(h.Address+"/app").FetchReference(t.Context(), "v1")
		if got := Kind(err); got != c.want {
			t.Errorf("%d %s: %s, not %s: %v", c.status, c.body, got, c.want, err)
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	expired, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	for want, ctx := range map[failure.Kind]context.Context{failure.Timeout: expired, failure.Unavailable: canceled} {
		_, err := New(Options{PlainHTTP: true}).Repository("127.0.0.1:1/app").Resolve(ctx, "v1")
		if got := Kind(err); got != want {
			t.Errorf("%s, not %s: %v", got, want, err)
		}
	}
	_, err := New(Options{PlainHTTP: true}).Repository("127.0.0.1:1/app").Resolve(t.Context(), "v1") // nobody listens
	for want, err := range map[failure.Kind]error{failure.Unavailable: err, failure.Invalid: errors.New("other content"),
		failure.Denied: fmt.Errorf("no: %w", auth.ErrBasicCredentialNotFound)} {
		if got := Kind(err); got != want {
			t.Errorf("%s, not %s: %v", got, want, err)
		}
	}
}
