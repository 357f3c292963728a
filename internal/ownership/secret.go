package ownership

import (
	"os"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// maxSecret is the size of the largest file with a secret, in bytes.
const maxSecret = 4096

// ReadSecret reads a file with a secret, of 4096 bytes at most. It fails with Denied unless root and the user of this
// process alone can change the file, and its owner alone can read it.
func ReadSecret(path string) ([]byte, error) {
	if err := Check(path, os.Geteuid()); err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the secret: %w", err).WithHint("check the path")
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, failure.New(failure.Denied, "other users can read %s (mode %04o)", path, mode).
			WithHint("run: chmod 600 " + path)
	}
	data, err := bound.ReadFile(path, maxSecret)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the secret: %w", err).
			WithHint("check the path and its permissions")
	}
	return data, nil
}
