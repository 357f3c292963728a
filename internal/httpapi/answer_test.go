package httpapi

import (
	"errors"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestRetryAfter says after how many seconds a request can be made again, where that helps.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"throttled":          {failure.New(failure.Throttled, "busy"), "1"},
		"a while":            {failure.New(failure.Throttled, "busy").WithRetryAfter(2100 * time.Millisecond), "3"},
		"a month":            {failure.New(failure.Throttled, "busy").WithRetryAfter(31 * 24 * time.Hour), "3600"},
		"with a status":      {WithStatus(401, failure.New(failure.Throttled, "busy").WithRetryAfter(time.Minute)), "60"},
		"unavailable":        {failure.New(failure.Unavailable, "away"), ""},
		"unavailable a bit":  {failure.New(failure.Unavailable, "away").WithRetryAfter(time.Second), "1"},
		"denied, and a time": {failure.New(failure.Denied, "no").WithRetryAfter(time.Second), ""},
		"internal":           {errors.New("broken"), ""},
	} {
		answer := httptest.NewRecorder()
		WriteProblem(answer, httptest.NewRequestWithContext(t.Context(), "GET", "/", nil), c.err)
		if got := answer.Header().Get("Retry-After"); got != c.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}
