package report

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"os"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// temporary returns a file of its own that has no name any more: it ends with the process.
func temporary() (*os.File, error) {
	file, err := os.CreateTemp("", "hsm-broker-report-")
	if err == nil {
		err = os.Remove(file.Name())
	}
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot create a temporary file: %w", err).
			WithHint("set TMPDIR to a folder with space for about as much as the log has")
	}
	return file, nil
}

// spool keeps lines in a file until they are written in their order.
type spool struct {
	file *os.File
	to   *bufio.Writer
	size int64
}

func newSpool() (*spool, error) {
	file, err := temporary()
	if err != nil {
		return nil, err
	}
	return &spool{file: file, to: bufio.NewWriterSize(file, 1<<16)}, nil
}

// add appends a line, and returns where it is.
func (s *spool) add(l *Line) (at int64, err error) {
	data, err := json.Marshal(l)
	if err != nil {
		return 0, err
	}
	at = s.size
	head := binary.BigEndian.AppendUint32(nil, uint32(len(data))) //nolint:gosec // a line has few entries
	if _, err = s.to.Write(head); err == nil {
		_, err = s.to.Write(data)
	}
	s.size += int64(len(head) + len(data))
	return at, err
}

// read returns the line at a place.
func (s *spool) read(at int64) (*Line, error) {
	if err := s.to.Flush(); err != nil {
		return nil, err
	}
	var head [4]byte
	if _, err := s.file.ReadAt(head[:], at); err != nil {
		return nil, err
	}
	data := make([]byte, binary.BigEndian.Uint32(head[:]))
	if _, err := s.file.ReadAt(data, at+int64(len(head))); err != nil {
		return nil, err
	}
	l := &Line{}
	return l, json.Unmarshal(data, l)
}
