package custody

import (
	"bytes"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// The wrapping key is split among custodians. What is shared is not the key but a random scalar of the group ristretto255, from which
// the key is derived (HKDF, RFC 5869): Shamir's sharing works on scalars, and not every 256-bit key is one. Each share carries Feldman's
// commitments, by which it is checked before it is used; they tell nothing of a scalar that was drawn at random.

var sharingGroup = group.Ristretto255

// Share is what one custodian keeps.
type Share struct {
	Version     int      `json:"version"`
	Key         string   `json:"key"` // label of the wrapping key
	ID          string   `json:"id"`  // its CKA_ID in hex
	Number      int      `json:"share"`
	Of          int      `json:"of"`
	Threshold   int      `json:"threshold"` // how many shares make the key again
	Commitments []string `json:"commitments"`
	Value       string   `json:"value"` // the secret part
}

const shareVersion = 1

// split draws a wrapping key and its shares.
func split(label string, n, threshold int) (w key.WrappingKey, value []byte, shares []Share, err error) {
	if threshold < 2 || n < threshold || n > 100 {
		return w, nil, nil, failure.New(failure.Invalid, "as in: --shares 5 --threshold 3; with a threshold of 1 anyone who has a share could restore alone",
			"a key can't be split into %d shares of which %d make it again", n, threshold)
	}
	secret := sharingGroup.RandomNonZeroScalar(rand.Reader)
	if w, value, err = derive(label, secret); err != nil {
		return w, nil, nil, err
	}
	sharing := secretsharing.New(rand.Reader, uint(threshold-1), secret) // circl counts those who can do nothing yet
	var commitments []string
	for _, c := range sharing.CommitSecret() {
		data, err := c.MarshalBinaryCompress()
		if err != nil {
			return w, nil, nil, err
		}
		commitments = append(commitments, hex.EncodeToString(data))
	}
	for i, s := range sharing.Share(uint(n)) { //nolint:gosec // at most 100
		data, err := s.Value.MarshalBinary()
		if err != nil {
			return w, nil, nil, err
		}
		shares = append(shares, Share{
			Version: shareVersion, Key: label, ID: hex.EncodeToString(w.ID), Number: i + 1, Of: n, Threshold: threshold,
			Commitments: commitments, Value: hex.EncodeToString(data),
		})
	}
	return w, value, shares, nil
}

// derive makes the AES key and its id from the shared secret. So the key has the same id on every token it is restored to.
func derive(label string, secret group.Scalar) (w key.WrappingKey, value []byte, err error) {
	data, err := secret.MarshalBinary()
	defer clear(data)
	if err != nil {
		return w, nil, err
	}
	if value, err = hkdf.Key(sha256.New, data, nil, "notation-hsm wrapping key v1: AES-256", 32); err != nil {
		return w, nil, err
	}
	id, err := hkdf.Key(sha256.New, data, nil, "notation-hsm wrapping key v1: id", 8)
	return key.WrappingKey{Label: label, ID: id}, value, err
}

// join makes the wrapping key again from enough shares of it.
func join(files []string) (w key.WrappingKey, value []byte, err error) {
	var first *Share
	var parts []secretsharing.Share
	numbers := map[int]string{}
	for _, file := range files {
		s, part, err := readShare(file)
		if err != nil {
			return w, nil, err
		}
		if first == nil {
			first = s
		}
		if s.ID != first.ID || s.Threshold != first.Threshold || fmt.Sprint(s.Commitments) != fmt.Sprint(first.Commitments) {
			return w, nil, failure.New(failure.Invalid, "bring shares of one key together",
				"%s is a share of the wrapping key %q with id %s, and %s of %q with id %s", files[0], first.Key, first.ID, file, s.Key, s.ID)
		}
		if other, twice := numbers[s.Number]; twice {
			return w, nil, failure.New(failure.Invalid, "bring shares of different custodians", "%s and %s are the same share", other, file)
		}
		numbers[s.Number] = file
		parts = append(parts, part)
	}
	if first == nil || len(parts) < first.Threshold {
		if first == nil {
			return w, nil, failure.New(failure.Invalid, "as in: --shares a.json --shares b.json", "there are no shares")
		}
		return w, nil, failure.New(failure.Invalid, "ask more custodians for theirs",
			"the wrapping key %q needs %d shares, and these are %d", first.Key, first.Threshold, len(parts))
	}
	secret, err := secretsharing.Recover(uint(first.Threshold-1), parts) //nolint:gosec // readShare has checked it
	if err != nil {
		return w, nil, err
	}
	w, value, err = derive(first.Key, secret)
	if err == nil && hex.EncodeToString(w.ID) != first.ID {
		err = failure.New(failure.Invalid, "use the files as they were written", "the shares do not make the wrapping key %q", first.Key)
	}
	return w, value, err
}

// readShare reads a share and holds it against its commitments.
func readShare(path string) (*Share, secretsharing.Share, error) {
	var part secretsharing.Share
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, part, failure.New(failure.Invalid, "check the path, and that this user can read the file",
			"can't read a share: %w", err)
	}
	defer clear(data)
	damaged := func(err error) error {
		return failure.New(failure.Invalid, "use the file as 'key backup-key generate' wrote it, or another custodian's",
			"%s is not a whole share: %w", path, err)
	}
	var s Share
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		return nil, part, damaged(err)
	}
	if s.Version != shareVersion {
		return nil, part, failure.New(failure.Invalid, "update this program",
			"the share %s is of version %d, which is not known here", path, s.Version)
	}
	if s.Number < 1 || s.Number > 100 || s.Threshold < 2 || s.Threshold > 100 || len(s.Commitments) != s.Threshold {
		return nil, part, damaged(fmt.Errorf("its numbers are impossible"))
	}
	value, err := hex.DecodeString(s.Value)
	if err != nil {
		return nil, part, damaged(err)
	}
	part.ID, part.Value = sharingGroup.NewScalar().SetUint64(uint64(s.Number)), sharingGroup.NewScalar()
	if err := part.Value.UnmarshalBinary(value); err != nil {
		return nil, part, damaged(err)
	}
	var commitments secretsharing.SecretCommitment
	for _, text := range s.Commitments {
		point, c := []byte(nil), sharingGroup.NewElement()
		if point, err = hex.DecodeString(text); err == nil {
			err = c.UnmarshalBinary(point)
		}
		if err != nil {
			return nil, part, damaged(err)
		}
		commitments = append(commitments, c)
	}
	if !secretsharing.Verify(uint(s.Threshold-1), part, commitments) {
		return nil, part, damaged(fmt.Errorf("its value was changed"))
	}
	return &s, part, nil
}

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
