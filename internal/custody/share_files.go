package custody

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// shareBounds are above what a share has: 7 thousand bytes if there are 100, and less than twice that when it is
// encrypted.
var shareBounds = bound.Limits{Bytes: 16 << 10, Depth: 4, Elements: 256}

// writeShares writes one file for each share, which nobody else may read: encrypted to its custodian before any is
// written, or in the clear if there are no custodians. It replaces none.
func writeShares(dir string, shares []Share, custodians []custodian) (paths []string, err error) {
	var contents [][]byte
	for i, s := range shares {
		data, err := json.MarshalIndent(s, "", "  ")
		if err != nil {
			return nil, err
		}
		data, extension := append(data, '\n'), "json"
		defer clear(data)
		if len(custodians) > 0 {
			extension = custodians[i].extension
			if data, err = custodians[i].encrypt(data); err != nil {
				return nil, failure.New(failure.Internal, "cannot encrypt a share to %q: %w", custodians[i].name, err).
					WithHint("use another key of this custodian")
			}
		}
		if len(data) > shareBounds.Bytes {
			return nil, failure.New(failure.Invalid, "a share has %d bytes, more than %d", len(data), shareBounds.Bytes).
				WithHint("choose a shorter label")
		}
		path := filepath.Join(dir, fmt.Sprintf("%s-share-%d-of-%d.%s", url.PathEscape(s.Key), s.Number, s.Of, extension))
		if _, err := os.Lstat(path); err == nil {
			return nil, failure.New(failure.Invalid, "%s is there already", path).WithHint("choose another folder")
		}
		paths, contents = append(paths, path), append(contents, data)
	}
	for i, data := range contents {
		if err := state.Write(paths[i], data, 0o600); err != nil {
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

// readShares reads share files, with the identities that open those that are encrypted.
func readShares(ctx context.Context, files []string, ids *Identities) ([]Share, error) {
	if len(files) > sharesLimit {
		return nil, failure.New(failure.Invalid, "%d shares are more than any key has", len(files)).
			WithHint("bring as many as the threshold says")
	}
	shares := make([]Share, len(files))
	for i, file := range files {
		data, err := readSecret(file, int64(shareBounds.Bytes))
		if err != nil {
			return nil, failure.New(failure.Invalid, "can't read a share: %w", err).
				WithHint("check the path, and that this user can read the file")
		}
		plain, err := ids.decrypt(ctx, file, data)
		clear(data)
		if err == nil {
			shares[i], err = parseShare(file, plain)
		}
		clear(plain)
		if err != nil {
			return nil, err
		}
	}
	return shares, nil
}
