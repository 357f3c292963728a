package gate

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/lock"
)

// Log is an append-only file of decisions, with one JSON object per line. Several processes may write to it.
type Log struct {
	path    string
	maxSize int64 // bytes; a file that would become larger is rotated
	keep    int   // number of rotated files; path.1 is the latest
}

// NewLog returns the log in the file at path, which is rotated at 10 MiB. 10 rotated files are kept.
func NewLog(path string) *Log { return &Log{path: path, maxSize: 10 << 20, keep: 10} }

// decision is a line of the log.
type entry struct {
	Time        time.Time `json:"time"` // RFC 3339, UTC
	Reference   string    `json:"reference"`
	Digest      string    `json:"digest,omitempty"`
	Verdict     string    `json:"verdict"`
	Policy      string    `json:"policy,omitempty"`
	TagRole     string    `json:"tagRole,omitempty"`     // the role that signed the tag
	Signer      string    `json:"signer,omitempty"`      // subject
	Fingerprint string    `json:"fingerprint,omitempty"` // SHA-256 of the signer's certificate, in hex
	Request     string    `json:"request,omitempty"`     // ID of the request that people approved
	Approvers   []string  `json:"approvers,omitempty"`   // names, or else ids, of those whose approvals count
	BreakGlass  bool      `json:"breakGlass,omitempty"`  // the request was for an emergency
	Reason      string    `json:"reason,omitempty"`
}

// Append adds a decision to the log. It returns when the whole line is in the file. It fails when ctx ends before the
// file can be locked, when the file is not a decision log, and when the line cannot be written; then nothing of it is
// left in the file.
func (l *Log) Append(ctx context.Context, d Decision) error {
	e := entry{Time: time.Now().UTC(), Reference: sanitize(d.Reference), Digest: d.Digest, Verdict: d.Verdict,
		Policy: d.Policy, Reason: d.Reason}
	if d.Tag != nil {
		e.TagRole = d.Tag.Role
	}
	if d.Signature != nil {
		e.Signer, e.Fingerprint = d.Signature.Subject, d.Signature.Fingerprint
	}
	if a := d.Approvals; a != nil {
		e.Request, e.Approvers, e.BreakGlass = a.Request, a.Names(), a.BreakGlass
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if err := l.append(ctx, append(line, '\n')); err != nil {
		return l.fail(err)
	}
	return nil
}

// fail returns the failure of a decision that was not written.
func (l *Log) fail(err error) error {
	kind, hint := fileKind(err), "check the permissions of the folder, and whether the disk is full"
	switch {
	case errors.Is(err, errNotALog):
		kind, hint = failure.Invalid, "name another file, or move this one away"
	case errors.Is(err, errLocked):
		kind, hint = failure.Timeout, "find the process that keeps the file locked"
	}
	return failure.New(kind, "cannot write the decision log %s: %w", l.path, err).WithHint(hint)
}

// fileKind returns the kind of failure of an operation on a file.
func fileKind(err error) failure.Kind {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return failure.NotFound
	case errors.Is(err, fs.ErrPermission):
		return failure.Denied
	}
	return failure.Unavailable
}

// append writes a line, after it has rotated a file that would become too large.
func (l *Log) append(ctx context.Context, line []byte) error {
	for {
		file, size, err := l.open(ctx)
		if err != nil {
			return err
		}
		if size == 0 || size+int64(len(line)) <= l.maxSize {
			return write(file, size, line)
		}
		err = l.rotate() // while the file is locked
		file.Close()
		if err != nil {
			return err
		}
	}
}

// write appends a line to a file of this size and closes the file. When it fails, it removes what it has written.
func write(file *os.File, size int64, line []byte) error {
	defer file.Close()
	if _, err := file.Write(line); err != nil {
		return errors.Join(err, file.Truncate(size)) // if this fails too, the next Append removes the rest of the line
	}
	return file.Close()
}

// open opens and locks the file, and returns it with its size after the last complete line. The lock ends when the file
// is closed. A file that was rotated during the wait for its lock is closed, and the new one is opened.
func (l *Log) open(ctx context.Context) (*os.File, int64, error) {
	for {
		file, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return nil, 0, err
		}
		size, err := l.lockFile(ctx, file)
		if err == nil {
			return file, size, nil
		}
		file.Close()
		if !errors.Is(err, errRotated) {
			return nil, 0, err
		}
	}
}

var (
	errNotALog = errors.New("the file is not a decision log")
	errLocked  = errors.New("another process keeps it locked")
	errRotated = errors.New("the file was rotated")
)

// lockFile locks the file and returns its size after the last complete line. It fails with errRotated if the file is no
// longer the one at the path of the log.
func (l *Log) lockFile(ctx context.Context, file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, errNotALog
	}
	if err := lock.File(ctx, file); ctx.Err() != nil {
		return 0, errLocked
	} else if err != nil {
		return 0, err
	}
	if now, err := os.Stat(l.path); errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, now) {
		return 0, errRotated
	} else if err != nil {
		return 0, err
	}
	return trimTornLine(file)
}

const (
	lineStart   = `{"time":"` // of each line
	maxTornLine = 64 << 10    // bytes; every line is shorter
)

// trimTornLine removes an incomplete last line, which a power failure or a full disk has left, and returns the size of
// the file. It fails with errNotALog, and leaves the file as it is, if the file has other content: a wrong path must
// not damage it.
func trimTornLine(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	tail := make([]byte, min(size, maxTornLine))
	if _, err := file.ReadAt(tail, size-int64(len(tail))); err != nil {
		return 0, err
	}
	start := make([]byte, min(size, int64(len(lineStart))))
	if _, err := file.ReadAt(start, 0); err != nil {
		return 0, err
	}
	end := bytes.LastIndexByte(tail, '\n')
	torn := tail[end+1:]
	if !startsLine(start) || !startsLine(torn) || end < 0 && size > maxTornLine {
		return 0, errNotALog
	}
	if len(torn) == 0 {
		return size, nil
	}
	size -= int64(len(torn))
	return size, file.Truncate(size)
}

// startsLine reports whether text is the start of a line of the log, of which there may be only some bytes.
func startsLine(text []byte) bool {
	return bytes.HasPrefix(text, []byte(lineStart)) || bytes.HasPrefix([]byte(lineStart), text)
}

// rotate renames the file to path.1, and path.1 to path.2 and so on; the oldest is overwritten.
func (l *Log) rotate() error {
	name := func(i int) string { return fmt.Sprintf("%s.%d", l.path, i) }
	for i := l.keep - 1; i > 0; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return os.Rename(l.path, name(1))
}
