package custody

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestJournalIsOwn refuses a journal that others can change: a rotation is resumed with what it says, without a
// confirmation.
func TestJournalIsOwn(t *testing.T) {
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")
	journal, err := journalPath("release")
	if err != nil {
		t.Fatal(err)
	}
	folder := filepath.Dir(journal)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(journal, []byte(`{"name":"other","subject":"CN=another signer"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := readJournal(journal); err != nil || r.Name != "other" {
		t.Errorf("%+v, %v", r, err)
	}
	err = Rotate(t.Context(), nil, RotationRequest{Name: "release"}, nil, nil)
	if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "is damaged") {
		t.Errorf("the journal of another rotation: %v", err)
	}
	for path, mode := range map[string]os.FileMode{journal: 0o666, folder: 0o777} {
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		err = Rotate(t.Context(), nil, RotationRequest{Name: "release"}, nil, nil)
		if !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "others can change") {
			t.Errorf("%s with mode %v: %v", path, mode, err)
		}
		if err := os.Chmod(path, before.Mode().Perm()); err != nil {
			t.Fatal(err)
		}
	}
}
