package bound

import (
	"fmt"
	"io"
	"os"
	"syscall"
)

// ReadFile returns what is in a file. It fails when the file has more than limit bytes, after it has read one byte
// more; so it also ends on a device that never does. Errors name the path.
func ReadFile(path string, limit int) ([]byte, error) {
	// Without O_NONBLOCK, a named pipe that nobody writes to is waited for without end; so it is empty.
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
