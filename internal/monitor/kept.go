package monitor

import (
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// kept is what a monitor knows between runs. It is replaced in one step, and only ever says that an entry was read
// together with the alerts about it.
type kept struct {
	Version    int       `json:"version"`        // 1
	Past       []string  `json:"past,omitempty"` // origins of former epochs
	Checkpoint []byte    `json:"checkpoint"`     // the newest one, signed; nil before the first
	Since      time.Time `json:"since"`          // when the monitor has seen it first
	Facts      *facts    `json:"facts"`
	Outbox     []*Alert  `json:"outbox"`              // alerts that the webhook does not have yet
	Forks      []string  `json:"forks"`               // IDs of their alerts: each is told once
	Forked     []string  `json:"forked,omitempty"`    // who shows another log: a view, or "" for the log itself
	Stale      bool      `json:"stale,omitempty"`     // an alert says so
	Damaged    bool      `json:"damaged,omitempty"`   // an alert says so
	Evidences  int       `json:"evidences,omitempty"` // number of files
}

const (
	stateFile    = "monitor.json"
	evidenceDir  = "evidence"
	maxState     = 256 << 20 // bytes of the file: what the bounds of facts add up to, and more
	maxForks     = 100
	maxEvidences = 2*maxForks + 50
	maxPast      = 1000
)

// load reads what a folder keeps, or begins anew if it keeps nothing.
func load(dir string, now time.Time) (*kept, error) {
	path := filepath.Join(dir, stateFile)
	data, err := bound.ReadFile(path, maxState)
	if errors.Is(err, fs.ErrNotExist) {
		return &kept{Version: 1, Facts: newFacts(), Since: now}, nil
	}
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read %s: %w", path, err).
			WithHint("check the folder's permissions")
	}
	k := &kept{Facts: newFacts()}
	if err := json.Unmarshal(data, k); err != nil || k.Version != 1 || k.Facts == nil {
		return nil, failure.New(failure.Invalid, "cannot read %s: it is not the state of a monitor of this version", path).
			WithHint("restore it from a backup, or name an empty folder, which reads the log from its beginning")
	}
	return k, nil
}

// save replaces what a folder keeps.
func (k *kept) save(dir string) error {
	data, err := json.Marshal(k)
	if err != nil {
		return failure.New(failure.Internal, "cannot encode the state of the monitor: %w", err)
	}
	return state.Write(filepath.Join(dir, stateFile), data, 0o600)
}

// keepEvidence writes a file that shows what an alert is about, and returns its path; "" if there are too many.
func (k *kept) keepEvidence(dir, name string, data []byte) (string, error) {
	if k.Evidences >= maxEvidences {
		return "", nil
	}
	path := filepath.Join(dir, evidenceDir, name)
	if err := state.Write(path, data, 0o600); err != nil {
		return "", err
	}
	k.Evidences++
	return path, nil
}
