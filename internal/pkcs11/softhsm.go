package pkcs11

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/lock"
)

// SoftHSM writes its token's file anew in every login, and a process that reads the file at that moment finds no token,
// no PIN, or CKR_GENERAL_ERROR: of 200 processes that signed at once with SoftHSM 2.6.1, 169 failed. So processes of
// ours take turns there, in the two moments that matter, opening and logging in. The lock is on the library's own file,
// which all of them can open and nobody has to make or remove. Other modules are not made to wait for each other.

// turn waits until no other process is in such a moment, and returns the function that ends ours. After half of the
// timeout it goes on without: the lock is a courtesy to SoftHSM, and must not be what a module's time is lost on.
func (m *Module) turn(ctx context.Context) (end func()) {
	end = func() {}
	if !strings.Contains(filepath.Base(m.path), "softhsm") {
		return end
	}
	file, err := os.Open(m.path)
	if err != nil {
		return end
	}
	ctx, cancel := context.WithTimeout(ctx, m.timeout/2)
	defer cancel()
	if err := lock.File(ctx, file); err != nil {
		slog.Warn("no turn with SoftHSM", "error", err)
		_ = file.Close()
		return end
	}
	return func() { _ = file.Close() }
}
