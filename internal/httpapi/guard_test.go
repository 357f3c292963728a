package httpapi

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

type identityKey struct{}

// unread is a body that fails the test when it is read.
type unread struct{ t *testing.T }

func (u unread) Read([]byte) (int, error) {
	u.t.Error("the body was read")
	return 0, io.EOF
}

// identify takes requests with the header Authorization alone.
func identify(r *http.Request) (context.Context, error) {
	if caller := r.Header.Get("Authorization"); caller != "" {
		return WithCaller(context.WithValue(r.Context(), identityKey{}, caller), "subject", caller), nil
	}
	return nil, WithStatus(http.StatusUnauthorized, failure.New(failure.Denied, "no credentials").WithHint("send a token"))
}

func caller(r *http.Request) string {
	who, _ := r.Context().Value(identityKey{}).(string)
	return who
}

// testGuard returns a handler with two operations: one lists, and one takes a body.
func testGuard() (http.Handler, *Limits) {
	mux, limits := http.NewServeMux(), NewLimits("caller")
	mux.HandleFunc("GET /things", Answer(func(r *http.Request) (*string, int, error) {
		state := caller(r) + " " + r.URL.Query().Get("state")
		return &state, http.StatusOK, nil
	}))
	mux.HandleFunc("POST /things", Answer(func(r *http.Request) (*string, int, error) {
		var request struct {
			Name string `json:"name"`
		}
		err := ReadJSON(r, &request)
		if request.Name == "broken" {
			panic("a secret")
		}
		return &request.Name, http.StatusCreated, err
	}))
	g := &Guard{Operations: mux, Limits: limits, Identify: identify, Caller: caller,
		TakesBody: func(r *http.Request) bool { return r.Method == http.MethodPost },
		Query: func(r *http.Request) []string {
			if r.Method == http.MethodGet {
				return []string{"state", "limit"}
			}
			return nil
		},
	}
	return g.Handler(mux), limits
}

// TestGuard answers requests of known callers with the parameters and the body that the operation takes, and no others.
func TestGuard(t *testing.T) {
	t.Parallel()
	handler, limits := testGuard()
	for name, c := range map[string]struct {
		method, target, caller, body string
		status                       int
		answer                       string // a part of it
	}{
		"list":             {"GET", "/things", "alice", "", 200, `"alice "`},
		"parameters":       {"GET", "/things?state=open&limit=1", "alice", "", 200, `"alice open"`},
		"unknown":          {"GET", "/things?state=open&other=1", "alice", "", 400, "other"},
		"other case":       {"GET", "/things?State=open", "alice", "", 400, "State"},
		"twice":            {"GET", "/things?state=open&state=closed", "alice", "", 400, "repeated"},
		"not encoded":      {"GET", "/things?state=%zz", "alice", "", 400, "cannot read the query parameters"},
		"semicolon":        {"GET", "/things?state=open;limit=1", "alice", "", 400, "cannot read the query parameters"},
		"none taken":       {"POST", "/things?state=open", "alice", `{"name":"a"}`, 400, "unknown query parameters"},
		"create":           {"POST", "/things", "alice", `{"name":"a"}`, 201, `"a"`},
		"unknown name":     {"POST", "/things", "alice", `{"name":"a","b":1}`, 400, "unknown name"},
		"a body":           {"GET", "/things", "alice", "{}", 400, "takes none"},
		"nobody":           {"GET", "/things", "", "", 401, "no credentials"},
		"nobody, no path":  {"GET", "/other", "", "", 404, "no operation has the path"},
		"nobody, a method": {"PUT", "/things", "", "", 405, "use GET or POST"},
		"panic":            {"POST", "/things", "alice", `{"name":"broken"}`, 500, "the broker failed on this request"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequestWithContext(t.Context(), c.method, c.target, strings.NewReader(c.body))
			r.Header.Set("Content-Type", "application/json")
			if c.caller != "" {
				r.Header.Set("Authorization", c.caller)
			}
			w := httptest.NewRecorder()
			handler.ServeHTTP(w, r)
			answer := w.Body.String()
			if w.Code != c.status || !strings.Contains(answer, c.answer) || strings.Contains(answer, "secret") {
				t.Errorf("%d, %s", w.Code, answer)
			}
			if challenge := w.Header().Get("WWW-Authenticate"); (challenge != "") != (c.status == http.StatusUnauthorized) {
				t.Errorf("WWW-Authenticate: %s", challenge)
			}
		})
	}
	if use := limits.Use(); use != (Use{}) {
		t.Errorf("requests are still counted: %+v", use)
	}
}

// TestIdentifyFirst reads no body of a caller who is not known, and counts none.
func TestIdentifyFirst(t *testing.T) {
	t.Parallel()
	handler, limits := testGuard()
	for range 2 * MaxLarge {
		r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/things", unread{t})
		r.ContentLength = smallBody + 1
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		if w.Code != http.StatusUnauthorized {
			t.Errorf("%d, %s", w.Code, w.Body)
		}
	}
	if use := limits.Use(); use != (Use{}) {
		t.Errorf("requests are counted: %+v", use)
	}
}

// TestSmall reads bodies that anybody may send, of unknown length as well, while there are as many large ones as there
// may be, and refuses those that are large themselves.
func TestSmall(t *testing.T) {
	t.Parallel()
	mux, limits := http.NewServeMux(), NewLimits("caller")
	mux.HandleFunc("POST /open", Answer(func(r *http.Request) (*int, int, error) {
		data, err := io.ReadAll(r.Body)
		n := len(data)
		return &n, http.StatusCreated, err
	}))
	always := func(*http.Request) bool { return true }
	g := &Guard{Operations: mux, Limits: limits, Caller: caller, TakesBody: always, Small: always}
	for range MaxLarge {
		if _, err := limits.Reserve(-1); err != nil {
			t.Fatal(err)
		}
	}
	for size, status := range map[int]int{1: http.StatusCreated, smallBody: http.StatusCreated,
		smallBody + 1: http.StatusRequestEntityTooLarge} {
		for _, chunked := range []bool{false, true} {
			r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/open", strings.NewReader(strings.Repeat("a",
				size)))
			if chunked {
				r.ContentLength = -1
			}
			w := httptest.NewRecorder()
			if g.Handler(mux).ServeHTTP(w, r); w.Code != status {
				t.Errorf("%d bytes: %d, %s", size, w.Code, w.Body)
			}
		}
	}
	if use := limits.Use(); use != (Use{Large: MaxLarge}) {
		t.Errorf("%+v", use)
	}
}

// TestLogCaller logs who made a request that failed.
func TestLogCaller(t *testing.T) { // not beside other tests: it changes the logger of the process
	lines, before := &bytes.Buffer{}, slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(lines, nil)))
	defer slog.SetDefault(before)
	handler, _ := testGuard()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/things", strings.NewReader("{}"))
	r.Header.Set("Authorization", "alice")
	handler.ServeHTTP(httptest.NewRecorder(), r)
	if !strings.Contains(lines.String(), "status=415") || !strings.Contains(lines.String(), "subject=alice") {
		t.Error(lines)
	}
}
