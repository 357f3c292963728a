package feed

import (
	"context"
	"errors"
	"os"
	"syscall"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// file appends a line for each entry. It opens the file for each batch, so that the file can be rotated.
type file struct {
	path   string
	format formatter
}

func (f *file) send(_ context.Context, records []record) error {
	err := f.append(records)
	if err != nil {
		return failure.New(failure.FileKind(err), "cannot append to %s: %w", f.path, err)
	}
	return nil
}

func (f *file) append(records []record) (err error) {
	// O_NONBLOCK: opening a named pipe would wait for its reader.
	to, err := os.OpenFile(f.path, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, to.Close()) }()
	info, err := to.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return errors.New("it is not a regular file")
	}
	var lines []byte
	last := []byte{'\n'}
	if info.Size() > 0 {
		if _, err := to.ReadAt(last, info.Size()-1); err != nil {
			return err
		}
	}
	if last[0] != '\n' { // a line that was cut off, which is written again
		lines = append(lines, '\n')
	}
	for _, r := range records {
		lines = append(append(lines, f.format.line(r)...), '\n')
	}
	if _, err = to.Write(lines); err != nil {
		return err
	}
	return to.Sync()
}
