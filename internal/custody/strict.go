package custody

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// readBounded reads a file of at most limit bytes.
func readBounded(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, 0, 8<<10) // one buffer for the usual file, so that the caller can clear all copies of a secret
	if info, err := f.Stat(); err == nil && info.Size() >= int64(cap(data)) {
		data = make([]byte, 0, min(info.Size(), limit)+1)
	}
	buffer := bytes.NewBuffer(data)
	n, err := buffer.ReadFrom(io.LimitReader(f, limit+1))
	if err == nil && n > limit {
		clear(buffer.Bytes())
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return buffer.Bytes(), err
}

// decodeExactly reads JSON into v as it was written from such a v, but for white space: no unknown, second or differently spelt name, and
// nothing behind it. So what was checked is all that there is.
func decodeExactly(data []byte, v any) error {
	if err := json.Unmarshal(data, v); err != nil {
		return err
	}
	again, err := json.Marshal(v)
	defer clear(again)
	if err != nil {
		return err
	}
	var compact bytes.Buffer
	compact.Grow(len(data))
	defer func() { clear(compact.Bytes()) }()
	if err := json.Compact(&compact, data); err != nil {
		return err
	}
	if !bytes.Equal(compact.Bytes(), again) {
		return errors.New("its fields are not exactly those that are written")
	}
	return nil
}
