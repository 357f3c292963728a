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
	d := decision{Time: time.Now().UTC(), Reference: oneLine(r.Reference), Digest: r.Digest, Verdict: r.Verdict,
		Policy: r.Policy, Reason: r.Reason}
	if r.Signature != nil {
		d.Signer, d.Fingerprint = r.Signature.Subject, r.Signature.Fingerprint
	}
	line, err := json.Marshal(d)
	if err != nil {
		return err
	}
	err = l.append(ctx, append(line, '\n'))
	switch {
	case errors.Is(err, errNotALog):
		return failure.New(failure.Invalid, "can't write the decision log: %s is %w",
			l.path, err).
			WithHint("name another file, or move it away")
	case err != nil:
		return failure.New(failure.Internal, "can't write the decision log: %w", err).
			WithHint("check the folder's permissions and that the disk is not full")
	}
	return nil
}

func (l *Log) append(ctx context.Context, line []byte) error {
	for {
		file, size, err := l.open(ctx)
		if err != nil {
			return err
		}
		if size == 0 || size+int64(len(line)) <= l.maxSize {
			return write(file, size, line)
		}
		err = l.rotate() // before the lock is given up with the file
		file.Close()
		if err != nil {
			return err
		}
	}
}

func write(file *os.File, size int64, line []byte) error {
	defer file.Close()
	if _, err := file.Write(line); err != nil {
		// A part of a line would spoil the next one. If it can't be taken back, the next Append does it.
		return errors.Join(err, file.Truncate(size))
	}
	return file.Close()
}

// open opens the log behind its last whole line, with a lock on it that ends when it is closed. Who waited for the lock
// may hold a file that was put away meanwhile, and opens the next one.
func (l *Log) open(ctx context.Context) (*os.File, int64, error) {
	for {
		file, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
		if err != nil {
			return nil, 0, err
		}
		size, err := l.ready(ctx, file)
		if err == nil {
			return file, size, nil
		}
		file.Close()
		if !errors.Is(err, errPutAway) {
			return nil, 0, err
		}
	}
}

var (
	errNotALog = errors.New("not a decision log")
	errPutAway = errors.New("the file was put away")
)

// ready locks the file that was opened and returns how long it is.
func (l *Log) ready(ctx context.Context, file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	if !info.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", l.path)
	}
	if err := lock.File(ctx, file); ctx.Err() != nil {
		return 0, fmt.Errorf("%s stayed locked", file.Name())
	} else if err != nil {
		return 0, err
	}
	if now, err := os.Stat(l.path); errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(info, now) {
		return 0, errPutAway
	} else if err != nil {
		return 0, err
	}
	return wholeLines(file)
}

const (
	lineStart  = `{"time":"` // of each line
	longestCut = 64 << 10    // bytes; no line is as long
)

// wholeLines cuts off what a power failure or a full disk has left of a line, and returns how long the file is. A file
// with anything else in it is left alone: it may be someone's who mistook the name.
func wholeLines(file *os.File) (int64, error) {
	info, err := file.Stat()
	if err != nil {
		return 0, err
	}
	size := info.Size()
	tail := make([]byte, min(size, longestCut))
	if _, err := file.ReadAt(tail, size-int64(len(tail))); err != nil {
		return 0, err
	}
	start := make([]byte, min(size, int64(len(lineStart))))
	if _, err := file.ReadAt(start, 0); err != nil {
		return 0, err
	}
	end := bytes.LastIndexByte(tail, '\n')
	torn := tail[end+1:]
	if !startsLine(start) || !startsLine(torn) || end < 0 && size > longestCut {
		return 0, errNotALog
	}
	if len(torn) == 0 {
		return size, nil
	}
	size -= int64(len(torn))
	return size, file.Truncate(size)
}

// startsLine returns whether a line of the log may start so; of one that was torn there may be very little.
func startsLine(text []byte) bool {
	return bytes.HasPrefix(text, []byte(lineStart)) || bytes.HasPrefix([]byte(lineStart), text)
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
