package custody

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"unicode/utf8"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// readSecret reads a file of at most limit bytes, as bound.ReadFile does, into one buffer: a caller that clears it has
// cleared all copies.
func readSecret(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	buffer := bytes.NewBuffer(make([]byte, 0, min(info.Size(), limit)+2*bytes.MinRead))
	if _, err := buffer.ReadFrom(io.LimitReader(f, limit+1)); err != nil {
		return nil, err
	}
	if int64(buffer.Len()) > limit {
		clear(buffer.Bytes())
		return nil, fmt.Errorf("%s is larger than %d bytes", path, limit)
	}
	return buffer.Bytes(), nil
}

// checkJSON fails unless data is one JSON value within the limits, and in UTF-8, which the parser would replace at a
// multiple of its size.
func checkJSON(data []byte, limits bound.Limits) error {
	if !utf8.Valid(data) {
		return errors.New("it is not in UTF-8")
	}
	return bound.JSON(data, limits)
}

// versionOf returns the version of a backup or a share, whatever else it has, and fails if checkJSON does.
func versionOf(data []byte, limits bound.Limits) (int, error) {
	if err := checkJSON(data, limits); err != nil {
		return 0, err
	}
	var known struct {
		Version int `json:"version"`
	}
	err := json.Unmarshal(data, &known)
	return known.Version, err
}

// decodeExactly reads JSON, which checkJSON has passed, into v as it was written from such a v, but for white space: no
// unknown or differently spelt name. So what was checked is all that there is.
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
