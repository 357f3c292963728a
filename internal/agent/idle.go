package agent

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/brokerapi"
)

// uses counts the uses of keys.
type uses struct {
	mu       sync.Mutex
	made     uint64
	inFlight int
	last     time.Time // the end of the last use, or the start of the agent
}

func (u *uses) begin() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.inFlight++
}

func (u *uses) end(used bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.inFlight--
	if used {
		u.made++
		u.last = time.Now()
	}
}

// left returns the rest of a time without a use; all of it while a use is in flight. It does not pass while the machine
// is suspended.
func (u *uses) left(limit time.Duration) time.Duration {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.inFlight > 0 {
		return limit
	}
	return max(0, limit-time.Since(u.last))
}

// wait returns true when a time has passed without a use, and false when ctx has ended before.
func (u *uses) wait(ctx context.Context, limit time.Duration) bool {
	for {
		left := u.left(limit)
		if left == 0 {
			return true
		}
		select {
		case <-time.After(left):
		case <-ctx.Done():
			return false
		}
	}
}

// counted counts the requests that use a key, and notes that the agent has logged in when it has reached a key.
func (a *Agent) counted(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, brokerapi.KeysPath) {
			next.ServeHTTP(w, r)
			return
		}
		answer := &answerStatus{ResponseWriter: w}
		defer func() {
			if answer.status/100 == 2 {
				a.noteLogin()
			}
		}()
		if r.Method == http.MethodPost {
			a.uses.begin()
			defer func() { a.uses.end(answer.status/100 == 2) }()
		}
		next.ServeHTTP(answer, r)
	})
}

// answerStatus remembers the status of an answer.
type answerStatus struct {
	http.ResponseWriter
	status int
}

// WriteHeader sends the status.
func (w *answerStatus) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap returns the writer below, for http.ResponseController.
func (w *answerStatus) Unwrap() http.ResponseWriter { return w.ResponseWriter }
