package custody

import (
	"bytes"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// A wrapping key is split among custodians with Shamir's secret sharing. The shared secret is a random scalar of the
// group ristretto255, from which the key is derived (HKDF, RFC 5869): the scheme shares scalars, and not every 256-bit
// key is one. Each share has Feldman's commitments to the polynomial, which verify its number and value before it is
// used; they reveal nothing about a random scalar. Each share has a tag: an HMAC over the fields that all shares have
// in common, with a key that is derived from the scalar as well. So label, id, threshold and commitments are
// authenticated before the key is put on a token.

var sharingGroup = group.Ristretto255

// Share is the file of one custodian.
type Share struct {
	Version     int      `json:"version"`
	Key         string   `json:"key"`   // label of the wrapping key
	ID          string   `json:"id"`    // CKA_ID of the wrapping key in hex
	Number      int      `json:"share"` // from 1
	Of          int      `json:"of"`
	Threshold   int      `json:"threshold"`     // number of shares that recover the key
	Commitments []string `json:"commitments"`   // ristretto255 elements in hex, one for each coefficient
	Value       string   `json:"value"`         // ristretto255 scalar in hex: the secret part
	Tag         string   `json:"tag,omitempty"` // HMAC-SHA256 in hex, since version 2
}

const (
	shareVersion = 2
	// untaggedVersion has no tag: whoever could write the shares could change the label.
	untaggedVersion = 1
	sharesLimit     = 100
)

// split makes a random wrapping key of 32 bytes and n shares of it, of which threshold recover it.
func split(label string, n, threshold int) (w key.WrappingKey, value []byte, shares []Share, err error) {
	if threshold < 2 || n < threshold || n > sharesLimit {
		return w, nil, nil, failure.New(failure.Invalid,
			"cannot split a key into %d shares with a threshold of %d", n, threshold).
			WithHint(fmt.Sprintf("use a threshold of at least 2 and at most %d shares, as in: --shares 5 --threshold 3",
				sharesLimit))
	}
	secret := sharingGroup.RandomNonZeroScalar(rand.Reader)
	if w, value, err = derive(label, secret); err != nil {
		return w, nil, nil, err
	}
	sharing := secretsharing.New(rand.Reader, uint(threshold-1), secret) // circl counts shares that recover nothing
	var commitments []string
	for _, c := range sharing.CommitSecret() {
		data, err := c.MarshalBinaryCompress()
		if err != nil {
			return w, nil, nil, err
		}
		commitments = append(commitments, hex.EncodeToString(data))
	}
	common := Share{
		Version: shareVersion, Key: label, ID: hex.EncodeToString(w.ID), Of: n, Threshold: threshold,
		Commitments: commitments,
	}
	if common.Tag, err = common.computeTag(secret); err != nil {
		return w, nil, nil, err
	}
	for i, s := range sharing.Share(uint(n)) { //nolint:gosec // at most sharesLimit
		data, err := s.Value.MarshalBinary()
		if err != nil {
			return w, nil, nil, err
		}
		share := common
		share.Number, share.Value = i+1, hex.EncodeToString(data)
		shares = append(shares, share)
		clear(data)
	}
	return w, value, shares, nil
}

// derive returns the AES key and its id, which are derived from the shared secret: the key has the same id on every
// token.
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

// commonText returns the fields that all shares of a key have in common, except the tag, as the text that the tag
// covers.
func (s Share) commonText() ([]byte, error) {
	s.Number, s.Value, s.Tag = 0, "", ""
	text, err := json.Marshal(s)
	return append([]byte("notation-hsm share v2\n"), text...), err
}

// computeTag returns the HMAC-SHA256 of commonText in hex. Its key is derived from the shared secret.
func (s Share) computeTag(secret group.Scalar) (string, error) {
	data, err := secret.MarshalBinary()
	defer clear(data)
	if err != nil {
		return "", err
	}
	tagKey, err := hkdf.Key(sha256.New, data, nil, "notation-hsm wrapping key v1: share tag", 32)
	defer clear(tagKey)
	if err != nil {
		return "", err
	}
	text, err := s.commonText()
	mac := hmac.New(sha256.New, tagKey)
	mac.Write(text)
	return hex.EncodeToString(mac.Sum(nil)), err
}

// Untagged is what shares of version 1 claim. Anyone could have written it.
type Untagged struct {
	Label         string
	Of, Threshold int
}

// combine recovers a wrapping key from shares, whose files are named in errors. Shares of version 1 have no tag: accept
// decides whether they are used, and nil refuses them.
func combine(files []string, shares []Share, accept func(Untagged) error) (w key.WrappingKey, value []byte, err error) {
	if len(shares) == 0 {
		return w, nil, failure.New(failure.Invalid, "cannot recover a wrapping key without shares").
			WithHint("name the files, as in: --shares a.json,b.json")
	}
	first := shares[0]
	parts, err := verifyShares(files, shares)
	if err != nil {
		return w, nil, err
	}
	if len(parts) < first.Threshold {
		return w, nil, failure.New(failure.Invalid,
			"cannot recover the wrapping key %q: it needs %d shares, and %d were given", first.Key, first.Threshold,
			len(parts)).WithHint("ask more custodians for their shares")
	}
	if first.Version == untaggedVersion {
		if accept == nil {
			return w, nil, failure.New(failure.Denied,
				"cannot authenticate the shares of the wrapping key %q: version %d has no tag, so the label can be forged",
				first.Key, first.Version).
				WithHint("if the label is right, add --unauthenticated; then make a new wrapping key, and new backups under it")
		}
		if err := accept(Untagged{first.Key, first.Of, first.Threshold}); err != nil {
			return w, nil, err
		}
	}
	secret, err := secretsharing.Recover(uint(first.Threshold-1), parts) //nolint:gosec // parseShare has checked it
	if err != nil {
		return w, nil, err
	}
	w, value, err = derive(first.Key, secret)
	if err == nil && hex.EncodeToString(w.ID) != first.ID {
		err = changedShares(first, "the recovered key has another id")
	}
	if err == nil && first.Version != untaggedVersion {
		err = first.verifyTag(secret)
	}
	if err != nil {
		clear(value)
		return key.WrappingKey{}, nil, err
	}
	return w, value, nil
}

// verifyShares verifies that the shares are different ones of one key, and that their values are unchanged.
func verifyShares(files []string, shares []Share) (parts []secretsharing.Share, err error) {
	first := shares[0]
	common, err := first.commonText()
	if err != nil {
		return nil, err
	}
	numbers := map[int]string{}
	for i, s := range shares {
		text, err := s.commonText()
		if err != nil {
			return nil, err
		}
		if !bytes.Equal(text, common) || s.Tag != first.Tag {
			return nil, failure.New(failure.Invalid,
				"the shares do not belong together: %s is of the wrapping key %q with id %s (%d of %d), and %s of %q with id %s "+
					"(%d of %d), or one of them was changed",
				files[0], first.Key, first.ID, first.Threshold, first.Of, files[i], s.Key, s.ID, s.Threshold, s.Of).
				WithHint("use unchanged shares of one key")
		}
		if other, twice := numbers[s.Number]; twice {
			return nil, failure.New(failure.Invalid, "%s and %s are the same share", other, files[i]).
				WithHint("use shares of different custodians")
		}
		numbers[s.Number] = files[i]
		part, err := s.part()
		if err != nil {
			return nil, damagedShare(files[i], err)
		}
		parts = append(parts, part)
	}
	return parts, nil
}

func (s Share) verifyTag(secret group.Scalar) error {
	want, err := s.computeTag(secret)
	if err == nil && !hmac.Equal([]byte(want), []byte(s.Tag)) {
		err = changedShares(s, "their tag does not verify under the recovered key")
	}
	return err
}

// changedShares returns the failure of shares that are consistent with each other but not with the key they recover.
func changedShares(s Share, cause string) error {
	return failure.New(failure.Invalid, "the shares of the wrapping key %q (%d of %d) were changed: %s", s.Key,
		s.Threshold, s.Of, cause).WithHint("use the files as they were written")
}

func damagedShare(path string, err error) error {
	return failure.New(failure.Invalid, "the share %s is damaged: %w", path, err).
		WithHint("use the file as 'key backup-key generate' wrote it, or another custodian's")
}

// parseShare parses a decrypted share. The caller clears data.
func parseShare(path string, data []byte) (s Share, err error) {
	version, err := versionOf(data, shareBounds)
	if err != nil {
		return s, damagedShare(path, err)
	}
	if version > shareVersion {
		return s, unknownVersion(path, version)
	}
	if err := decodeExactly(data, &s); err != nil {
		return s, damagedShare(path, err)
	}
	if s.Version < untaggedVersion || (s.Version == untaggedVersion) != (s.Tag == "") || s.Number < 1 || s.Number > s.Of ||
		s.Of > sharesLimit || s.Threshold < 2 || s.Threshold > s.Of || len(s.Commitments) != s.Threshold {
		return s, damagedShare(path, errors.New("its numbers are out of range"))
	}
	if _, err := s.part(); err != nil {
		return s, damagedShare(path, err)
	}
	return s, nil
}

// part returns the point of a share, and fails unless it agrees with the commitments.
func (s Share) part() (part secretsharing.Share, err error) {
	value, err := hex.DecodeString(s.Value)
	defer clear(value)
	if err != nil {
		return part, errors.New("its value is not in hex")
	}
	part.ID = sharingGroup.NewScalar().SetUint64(uint64(s.Number)) //nolint:gosec // parseShare has checked it
	part.Value = sharingGroup.NewScalar()
	if err := part.Value.UnmarshalBinary(value); err != nil {
		return part, err
	}
	var commitments secretsharing.SecretCommitment
	for _, text := range s.Commitments {
		c := sharingGroup.NewElement()
		point, err := hex.DecodeString(text)
		if err == nil {
			err = c.UnmarshalBinary(point)
		}
		if err != nil {
			return part, err
		}
		commitments = append(commitments, c)
	}
	if !secretsharing.Verify(uint(s.Threshold-1), part, commitments) { //nolint:gosec // parseShare has checked it
		return part, errors.New("its value was changed")
	}
	return part, nil
}
