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

// readSecret reads a file of at most limit bytes into one buffer, so that a caller who clears it clears the only copy.
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

// checkJSON fails unless data is one JSON value in UTF-8 within the limits. The parser would replace each other byte by
// three.
func checkJSON(data []byte, limits bound.Limits) error {
	if !utf8.Valid(data) {
		return errors.New("it is not in UTF-8")
	}
	return bound.JSON(data, limits)
}

// versionOf returns the version of a backup or a share, and ignores its other fields. It fails if checkJSON does.
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

// decodeExactly decodes JSON, which checkJSON has accepted, into v. It fails unless encoding v again gives the same
// text, except for white space: unknown, repeated or differently spelt names are refused.
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
		return errors.New("its fields differ from those that this program writes")
	}
	return nil
}
