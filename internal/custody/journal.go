package custody

import (
	"encoding/json"
	"errors"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// journalPath returns the path of the journal of a rotation. The name is escaped: Notation allows any character in it.
func journalPath(name string) (string, error) {
	dir, err := folders.Config()
	if err != nil {
		return "", failure.New(failure.Invalid, "cannot find the folder of rotations: %w", err).
			WithHint("set HOME to an absolute path")
	}
	return filepath.Join(dir, "notation-hsm", "rotations", url.QueryEscape(name)+".json"), nil
}

// journals returns the paths of the journals of all unfinished rotations.
func journals() ([]string, error) {
	one, err := journalPath("one")
	if err != nil {
		return nil, err
	}
	return filepath.Glob(filepath.Join(filepath.Dir(one), "*.json"))
}

const journalLimit = 64 << 10 // bytes

// readJournal reads a journal, and returns nil if there is none. A resumed rotation asks for no confirmation, so a
// journal that others can change is refused.
func readJournal(path string) (*Rotation, error) {
	data, err := bound.ReadFile(path, journalLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // no rotation is unfinished
	}
	if err != nil {
		return nil, unreadable(path, err)
	}
	if err := ownership.Check(path, os.Getuid()); err != nil {
		f := failure.From(err)
		return nil, failure.New(failure.Denied, "others can change the journal %s: %w", path, f).
			WithHint(f.Hint + "; or remove the journal to start again")
	}
	var r Rotation
	if err := json.Unmarshal(data, &r); err != nil {
		return nil, failure.New(failure.Invalid, "the journal %s is damaged: %w", path, err).
			WithHint("restore the file; or remove it to start again")
	}
	return &r, nil
}

// write writes the journal.
func (r *Rotation) write() error {
	journal, err := journalPath(r.Name)
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return state.Write(journal, append(data, '\n'), 0o600)
}
