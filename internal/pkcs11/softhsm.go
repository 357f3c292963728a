package pkcs11

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/lock"
)

// SoftHSM writes its token's file anew in every login, and a process that reads the file at that moment finds no token,
// no PIN, or CKR_GENERAL_ERROR: of 200 processes that signed at once with SoftHSM 2.6.1, 169 failed. So processes of
// this program wait for each other where its library reads the file: when they initialise it, look for a token, and log
// in. The lock is on the library's own file, which all of them can open and nobody has to make or remove. Other modules
// have no lock.

// lock waits until no other process or goroutine reads or writes SoftHSM's tokens, and returns the function that ends
// the lock. After the limit it goes on without it, since another process may have been stopped while it has the lock.
func (m *Module) lock(ctx context.Context, limit time.Duration) (unlock func()) {
	unlock = func() {}
	if !strings.Contains(filepath.Base(m.path), "softhsm") {
		return unlock
	}
	file, err := os.Open(m.path)
	if err != nil {
		return unlock
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := lock.File(ctx, file); err != nil {
		slog.Warn("SoftHSM is not locked", "error", err)
		_ = file.Close()
		return unlock
	}
	return func() { _ = file.Close() }
}
