package nethsmtest

import (
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
)

// Fault makes an instance misbehave for the requests that it matches. Faulty answers are not held against the
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

// Inject makes the next requests that match misbehave: times of them, or all when times is 0, until Remove. The method
// may be empty for any; the pattern is one of path.Match below /api/v1, as "/keys/*/sign", or empty for any path. Of
// several faults that match, the first injected counts.
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

// Hits returns how many requests the fault has met.
func (f *Fault) Hits() int {
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	return f.hits
}

// Release lets requests that Hang holds go on, now and from now on.
func (f *Fault) Release() { f.release() }

// Remove ends the fault; it also releases what it holds.
func (f *Fault) Remove() {
	f.release()
	f.server.mu.Lock()
	defer f.server.mu.Unlock()
	f.server.faults = slices.DeleteFunc(f.server.faults, func(other *Fault) bool { return other == f })
}

// Respond answers with a status and, from 400 on, an error as NetHSM's, without the request having an effect.
func Respond(status int) Effect {
	if status < http.StatusBadRequest {
		return RespondWith(status, "", "")
	}
	return RespondWith(status, typeJSON, fmt.Sprintf(`{"message":"injected: %s"}`, http.StatusText(status)))
}

// RespondWith answers with a status, a content type (none when empty) and a body, without the request having an effect.
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

// Malformed answers 200 with JSON that breaks off, without the request having an effect.
func Malformed() Effect { return RespondWith(http.StatusOK, typeJSON, `{"signature": "AAAA`) }

// Huge answers 200 with n bytes of a JSON string that never closes, without the request having an effect.
func Huge(n int64) Effect {
	return Effect{before: func(w http.ResponseWriter, _ *Fault, _ *http.Request) bool {
		w.Header().Set("Content-Type", typeJSON)
		_, _ = w.Write([]byte(`{"signature":"`))
		chunk := []byte(strings.Repeat("A", 64<<10))
		for sent := int64(0); sent < n; sent += int64(len(chunk)) {
			if _, err := w.Write(chunk); err != nil {
				break // the client had enough
			}
		}
		return true
	}}
}

// Hang holds the request until Release, Remove, Stop or the client's end, and then serves it as if nothing had been.
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
