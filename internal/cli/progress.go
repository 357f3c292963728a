package cli

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// A long operation shows its first line after progressDelay, and the next ones progressInterval apart.
const (
	progressDelay    = 2 * time.Second
	progressInterval = time.Second
)

// withProgress returns a context in which long operations of the keystore write lines to out, such as "listing keys:
// 2000 of 10000". Short ones write none.
func withProgress(ctx context.Context, out io.Writer, now func() time.Time) context.Context {
	var mu sync.Mutex
	var activity string
	var next time.Time
	return keystore.WithProgress(ctx, func(current string, done, total int) {
		mu.Lock()
		defer mu.Unlock()
		at := now()
		if current != activity || done == 0 {
			activity, next = current, at.Add(progressDelay)
		}
		if at.Before(next) {
			return
		}
		next = at.Add(progressInterval)
		fmt.Fprintf(out, "%s: %d of %d\n", current, done, total)
	})
}
