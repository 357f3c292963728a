package bound

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// ReadFile returns the content of a file. It fails when the file has more than limit bytes, and reads no more than
// that, so that it also ends on an endless device. Errors name the path.
func ReadFile(path string, limit int) ([]byte, error) {
	// Without O_NONBLOCK, opening a named pipe without a writer never returns; with it, the pipe is empty.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, int64(limit)+1))
	if err != nil {
		return nil, err
	}
	if len(data) > limit {
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return data, nil
}
