package custody

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

const shareFileLimit = 64 << 10 // bytes; a share of 100 has 7 thousand, and less than twice that when it is encrypted

// writeShares writes one file for each custodian, which nobody else may read. It replaces none.
func writeShares(dir string, shares []Share) (paths []string, err error) {
	for _, s := range shares {
		path := filepath.Join(dir, fmt.Sprintf("%s-share-%d-of-%d.json", url.PathEscape(s.Key), s.Number, s.Of))
		if _, err := os.Lstat(path); err == nil {
			return nil, failure.New(failure.Invalid, "choose another folder", "%s is there already", path)
		}
		paths = append(paths, path)
	}
	for i, s := range shares {
		data, err := json.MarshalIndent(s, "", "  ")
		if err == nil {
			err = state.Write(paths[i], append(data, '\n'), 0o600)
			clear(data)
		}
		if err != nil {
			removeShares(paths[:i])
			return nil, err
		}
	}
	return paths, nil
}

func removeShares(paths []string) {
	for _, path := range paths {
		_ = os.Remove(path) // they are of a key that is on no token
	}
}

// readShares reads share files.
func readShares(files []string) ([]Share, error) {
	if len(files) > sharesLimit {
		return nil, failure.New(failure.Invalid, "bring as many as the threshold says", "%d shares are more than any key has", len(files))
	}
	shares := make([]Share, len(files))
	for i, file := range files {
		data, err := readBounded(file, shareFileLimit)
		if err != nil {
			return nil, failure.New(failure.Invalid, "check the path, and that this user can read the file", "can't read a share: %w", err)
		}
		shares[i], err = parseShare(file, data)
		clear(data)
		if err != nil {
			return nil, err
		}
	}
	return shares, nil
}
