package nethsmtest

import (
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
)

// Fault changes how an instance handles the requests that it matches. Its responses are not checked against the
// description.
type Fault struct {
	method, pattern string
	effect          Effect
	server          *Server
	left            int // matches to come; negative is without end
	hits            int
	release         func()
	released        chan struct{}
}

// Effect is what a fault does to a request.
type Effect struct {
	before func(w http.ResponseWriter, f *Fault, r *http.Request) (handled bool)
	after  func() // instead of the response, when the request took effect
}

// Inject applies an effect to the next requests that match: to that many, or to all until Remove if times is 0. An
// empty method matches any. The pattern is one of path.Match below /api/v1, such as "/keys/*/sign"; empty matches any
// path. Of several faults that match, the one that was injected first applies.
func (s *Server) Inject(method, pattern string, times int, effect Effect) *Fault {
	s.t.Helper()
	if _, err := path.Match(pattern, "/"); err != nil {
		s.t.Fatalf("pattern %q: %v", pattern, err)
	}
	if times == 0 {
		times = -1
	}
	released := make(chan struct{})
	f := &Fault{method: method, pattern: pattern, effect: effect, server: s, left: times,
		released: released, release: sync.OnceFunc(func() { close(released) })}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, f)
	return f
}

// Hits returns how many requests the fault has matched.
func (f *Fault) Hits() int {
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	return f.hits
}

// Release serves the requests that Hang holds, and all later ones at once.
func (f *Fault) Release() { f.release() }

// Remove ends the fault and releases the requests that it holds.
func (f *Fault) Remove() {
	f.release()
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	f.server.faults = slices.DeleteFunc(f.server.faults, func(other *Fault) bool { return other == f })
}

// Respond responds with a status and, from 400 on, an error of the API. The request has no effect.
func Respond(status int) Effect {
	if status < http.StatusBadRequest {
		return RespondWith(status, "", "")
	}
	return RespondWith(status, typeJSON, fmt.Sprintf(`{"message":"injected: %s"}`, http.StatusText(status)))
}

// RespondWith responds with a status, a content type (none when empty) and a body. The request has no effect.
func RespondWith(status int, contentType, body string) Effect {
	return Effect{before: func(w http.ResponseWriter, _ *Fault, _ *http.Request) bool {
		if contentType != "" {
			w.Header().Set("Content-Type", contentType)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
		return true
	}}
}

// Malformed responds with 200 and incomplete JSON. The request has no effect.
func Malformed() Effect { return RespondWith(http.StatusOK, typeJSON, `{"signature": "AAAA`) }

// Huge responds with 200 and n bytes of an unterminated JSON string. The request has no effect.
func Huge(n int64) Effect {
	return Effect{before: func(w http.ResponseWriter, _ *Fault, _ *http.Request) bool {
		w.Header().Set("Content-Type", typeJSON)
		_, _ = w.Write([]byte(`{"signature":"`))
		chunk := []byte(strings.Repeat("A", 64<<10))
		for sent := int64(0); sent < n; sent += int64(len(chunk)) {
			if _, err := w.Write(chunk); err != nil {
				break // the client has closed the connection
			}
		}
		return true
	}}
}

// Hang holds the request. Release and Remove serve it; Stop and the client's end cut it off.
func Hang() Effect {
	return Effect{before: func(_ http.ResponseWriter, f *Fault, r *http.Request) bool {
		f.server.mu.Lock()
		stopped := f.server.stopped
		f.server.mu.Unlock()
		select {
		case <-f.released:
		case <-stopped:
			cutConnection()
		case <-r.Context().Done():
			cutConnection()
		}
		return false
	}}
}

// Drop cuts the connection before the request has an effect.
func Drop() Effect {
	return Effect{before: func(http.ResponseWriter, *Fault, *http.Request) bool { cutConnection(); return true }}
}

// DropAfter lets the request have its effect and cuts the connection instead of answering.
func DropAfter() Effect { return Effect{after: cutConnection} }

// cutConnection ends the request at the client with an unexpected end of file.
func cutConnection() { panic(http.ErrAbortHandler) }

// fault returns the first fault that matches, and counts the match.
func (s *Server) fault(method, p string) *Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		if f.left == 0 || (f.method != "" && f.method != method) {
			continue
		}
		if matched, _ := path.Match(f.pattern, p); !matched && f.pattern != "" {
			continue
		}
		if f.left > 0 {
			f.left--
		}
		f.hits++
		return f
	}
	return nil
}
