package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// extra is a file of a trust directory beside those of Notation.
type extra struct {
	name  string
	what  string             // for errors: what the file has
	limit int                // bytes that verifiers read
	check func([]byte) error // reads the content as verifiers do
}

// extraPath returns the path of the file.
func (f folder) extraPath(e extra) string { return filepath.Join(filepath.Dir(f.policy), e.name) }

// removeExtra removes the file, if it exists.
func (f folder) removeExtra(e extra) error {
	if err := os.Remove(f.extraPath(e)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.FileKind(err), "cannot remove %s: %w", e.what, err).
			WithHint("check the folder's permissions")
	}
	return nil
}

// writeExtra replaces the file by content in JSON, unless it has this content. It fails with Invalid for content that
// verifiers would refuse.
func (f folder) writeExtra(e extra, content any) error {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "    ")
	if err := encoder.Encode(content); err != nil {
		return err
	}
	if err := e.check(out.Bytes()); err != nil {
		return failure.New(failure.Invalid, "cannot export %s: %w", e.what, err).
			WithHint("remove what the trust manifest has too much of")
	}
	path := f.extraPath(e)
	if data, err := bound.ReadFile(path, e.limit); err == nil && bytes.Equal(data, out.Bytes()) {
		return nil
	}
	return state.Write(path, out.Bytes(), permissions(path, f.file))
}
