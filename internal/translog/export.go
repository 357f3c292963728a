package translog

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Export verifies a log as Verify does, and writes it into a folder that any web server can serve and VerifyDir reads.
// When the folder has a part of the log already, it continues after the checkpoint there, which the log must contain.
// Each file is replaced in one step, and the checkpoint comes last, so that an interrupted Export can run again. The
// report counts the entries that were added.
func Export(ctx context.Context, files Files, dir string, verifiers []*Verifier) (*Report, error) {
	signed, err := files(ctx, CheckpointPath)
	if err != nil {
		return nil, err
	}
	c, err := Open(signed, verifiers)
	if err != nil {
		return nil, err
	}
	v := &verification{files: files, to: c, tree: &Tree{},
		report: Report{Origin: c.Origin, Size: c.Size, Root: c.Root, Types: map[string]int64{}},
		keep: func(path string, data []byte) error {
			if err := write(dir, path, data); err != nil || isPartial(path) {
				return err
			}
			return removePartials(dir, path)
		}}
	if err := v.resume(ctx, dir, verifiers); err != nil {
		return nil, err
	}
	if err := v.run(ctx); err != nil {
		return nil, err
	}
	if err := write(dir, CheckpointPath, signed); err != nil {
		return nil, err
	}
	return &v.report, nil
}

// write writes a file that everyone may read, as a web server does.
func write(dir, path string, data []byte) error {
	name := filepath.Join(dir, filepath.FromSlash(path))
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil { //nolint:gosec // a log is public
		return failure.New(failure.FileKind(err), "cannot create the folder %s: %w", filepath.Dir(name), err).
			WithHint("check the folder's permissions and that the disk is not full")
	}
	return state.Write(name, data, 0o644)
}

func isPartial(path string) bool { return strings.Contains(path, ".p/") }

// removePartials removes the partial files that a whole one replaces, which C2SP tlog-tiles allows: clients read the
// whole one instead.
func removePartials(dir, path string) error {
	name := filepath.Join(dir, filepath.FromSlash(path)) + ".p"
	if err := os.RemoveAll(name); err != nil {
		return failure.New(failure.FileKind(err), "cannot remove %s: %w", name, err).
			WithHint("check the folder's permissions")
	}
	return nil
}

// resume starts with the log that the folder has.
func (v *verification) resume(ctx context.Context, dir string, verifiers []*Verifier) error {
	there := Dir(dir)
	signed, err := there(ctx, CheckpointPath)
	if failure.Is(err, failure.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	older, err := Open(signed, verifiers)
	if err != nil {
		return err
	}
	v.Since = &older
	if older.Size > v.to.Size || older.Origin != v.to.Origin {
		return nil // run says so
	}
	v.tree, err = NewTree(ctx, older.Size, func(ctx context.Context, level int, index int64) ([]byte, error) {
		reader := &verification{files: there}
		return reader.read(ctx, level, index, widthAt(older.Size, level, index))
	})
	return err
}
