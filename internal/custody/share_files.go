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

// shareBounds are above the size of a share: 7 thousand bytes with a threshold of 100, and less than twice as many when
// it is encrypted.
var shareBounds = bound.Limits{Bytes: 16 << 10, Depth: 4, Elements: 256}

// writeShares writes one file for each share, readable for this user alone, and returns the paths. All are encrypted to
// their custodians before the first is written; without custodians, they are not encrypted. No file is replaced.
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
				return nil, failure.New(failure.Invalid, "cannot encrypt a share to %q: %w", custodians[i].name, err).
					WithHint("use another key of this custodian")
			}
		}
		if len(data) > shareBounds.Bytes {
			return nil, failure.New(failure.Invalid, "cannot write a share of %d bytes: the limit is %d", len(data),
				shareBounds.Bytes).
				WithHint("choose a shorter label")
		}
		path := filepath.Join(dir, fmt.Sprintf("%s-share-%d-of-%d.%s", url.PathEscape(s.Key), s.Number, s.Of, extension))
		if err := checkNew(path); err != nil {
			return nil, err
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

// removeShares removes the shares of a key that is not put on a token.
func removeShares(paths []string) {
	for _, path := range paths {
		_ = os.Remove(path)
	}
}

// readShares reads share files, and decrypts them with the identities.
func readShares(ctx context.Context, files []string, ids *identities) ([]Share, error) {
	if len(files) > sharesLimit {
		return nil, failure.New(failure.Invalid, "cannot use %d shares: a key has at most %d", len(files), sharesLimit).
			WithHint("name as many files as the threshold")
	}
	shares := make([]Share, len(files))
	for i, file := range files {
		data, err := readSecret(file, int64(shareBounds.Bytes))
		if err != nil {
			return nil, unreadable(file, err)
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
