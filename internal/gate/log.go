package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Log is an append-only file of decisions, one JSON object a line. Any number of processes may write to it.
type Log struct {
	path    string
	maxSize int64 // bytes; a file that would grow beyond is put away
	keep    int   // how many of those there are: path.1 is the latest
}

// NewLog returns the log in a file, of which it keeps 10 older ones of up to 10 MiB each.
func NewLog(path string) *Log { return &Log{path: path, maxSize: 10 << 20, keep: 10} }

// decision is a line of the log.
type decision struct {
	Time        time.Time `json:"time"` // RFC 3339, UTC
	Reference   string    `json:"reference"`
	Digest      string    `json:"digest,omitempty"`
	Verdict     string    `json:"verdict"`
	Policy      string    `json:"policy,omitempty"`
	Signer      string    `json:"signer,omitempty"`      // subject
	Fingerprint string    `json:"fingerprint,omitempty"` // of the signer's certificate
	Reason      string    `json:"reason,omitempty"`
}

// Append writes down what was decided. It returns when the line is in the file, whole, or fails.
func (l *Log) Append(ctx context.Context, r Result) error {
	d := decision{Time: time.Now().UTC(), Reference: oneLine(r.Reference), Digest: r.Digest, Verdict: r.Verdict, Policy: r.Policy, Reason: r.Reason}
	if r.Signature != nil {
		d.Signer, d.Fingerprint = r.Signature.Subject, r.Signature.Fingerprint
	}
	line, err := json.Marshal(d)
	if err != nil {
		return err
	}
	unlock, err := state.Lock(ctx, filepath.Dir(l.path))
	if err != nil {
		return failure.New(failure.Internal, failure.From(err).Hint, "can't write the decision log: %w", err)
	}
	defer unlock()
	if err := l.append(append(line, '\n')); err != nil {
		return failure.New(failure.Internal, "check the folder's permissions and that the disk is not full", "can't write the decision log: %w", err)
	}
	return nil
}

func (l *Log) append(line []byte) error {
	file, size, err := l.open()
	if err != nil {
		return err
	}
	defer func() { file.Close() }()
	if size > 0 && size+int64(len(line)) > l.maxSize {
		file.Close()
		if err := l.rotate(); err != nil {
			return err
		}
		if file, size, err = l.open(); err != nil {
			return err
		}
	}
	if _, err := file.Write(line); err != nil {
		// A part of a line would spoil the next one. If it can't be taken back, the next Append does it.
		return errors.Join(err, file.Truncate(size))
	}
	return file.Close()
}

// open opens the log behind its last whole line.
func (l *Log) open() (*os.File, int64, error) {
	file, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, 0, err
	}
	size, err := wholeLines(file)
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, size, nil
}

// wholeLines cuts off what a power failure or a full disk has left of a line, and returns how long the file is.
func wholeLines(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", file.Name())
	}
	size := info.Size()
	last := make([]byte, 1)
	for ; size > 0; size-- {
		if _, err := file.ReadAt(last, size-1); err != nil {
			return 0, err
		}
		if last[0] == '\n' {
			break
		}
	}
	if size == info.Size() {
		return size, nil
	}
	return size, file.Truncate(size)
}

func (l *Log) rotate() error {
	name := func(i int) string { return fmt.Sprintf("%s.%d", l.path, i) }
	for i := l.keep - 1; i > 0; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Rename(l.path, name(1))
}
