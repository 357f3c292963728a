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

	"github.com/cloudflare/circl/group"
	"github.com/cloudflare/circl/secretsharing"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// The wrapping key is split among custodians. What is shared is not the key but a random scalar of the group
// ristretto255, from which the key is derived (HKDF, RFC 5869): Shamir's sharing works on scalars, and not every
// 256-bit key is one. Each share carries Feldman's commitments, by which its number and value are checked before it is
// used; they tell nothing of a scalar that was drawn at random. Its tag is an HMAC over all that the shares have in
// common, by a key that is derived from the scalar as well: label, id, threshold and commitments are those of the key
// that the shares make, or nothing is put on a token.

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
	Value       string   `json:"value"`         // the secret part
	Tag         string   `json:"tag,omitempty"` // since version 2
}

const (
	shareVersion = 2
	// untaggedVersion has no tag: whoever could write the shares could change the label.
	untaggedVersion = 1
	sharesLimit     = 100
)

// split draws a wrapping key and its shares.
func split(label string, n, threshold int) (w key.WrappingKey, value []byte, shares []Share, err error) {
	if threshold < 2 || n < threshold || n > sharesLimit {
		return w, nil, nil, failure.New(failure.Invalid,
			"a key can't be split into %d shares of which %d make it again", n, threshold).
			WithHint("as in: --shares 5 --threshold 3; with a threshold of 1 anyone who has a share could restore alone")
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
	common := Share{
		Version: shareVersion, Key: label, ID: hex.EncodeToString(w.ID), Of: n, Threshold: threshold,
		Commitments: commitments,
	}
	if common.Tag, err = common.tag(secret); err != nil {
		return w, nil, nil, err
	}
	for i, s := range sharing.Share(uint(n)) { //nolint:gosec // at most 100
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

// derive makes the AES key and its id from the shared secret. So the key has the same id on every token it is restored
// to.
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

// common is the text of all that the shares of one key have in common, but for the tag.
func (s Share) common() ([]byte, error) {
	s.Number, s.Value, s.Tag = 0, "", ""
	text, err := json.Marshal(s)
	return append([]byte("notation-hsm share v2\n"), text...), err
}

// tag returns the HMAC-SHA256 over the common text in hex, by a key that is derived from the shared secret.
func (s Share) tag(secret group.Scalar) (string, error) {
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
	text, err := s.common()
	mac := hmac.New(sha256.New, tagKey)
	mac.Write(text)
	return hex.EncodeToString(mac.Sum(nil)), err
}

// Untagged is what shares of version 1 say of themselves that anyone could have written.
type Untagged struct {
	Label         string
	Of, Threshold int
}

// join makes the wrapping key again from enough shares of it, by the names of their files. Shares of version 1 have no
// tag: accept decides whether they are used, and nil refuses them.
func join(files []string, shares []Share, accept func(Untagged) error) (w key.WrappingKey, value []byte, err error) {
	if len(shares) == 0 {
		return w, nil, failure.New(failure.Invalid, "there are no shares").WithHint("as in: --shares a.json --shares b.json")
	}
	first := shares[0]
	common, err := first.common()
	if err != nil {
		return w, nil, err
	}
	var parts []secretsharing.Share
	numbers := map[int]string{}
	for i, s := range shares {
		same, err := s.common()
		if err != nil {
			return w, nil, err
		}
		if !bytes.Equal(same, common) || s.Tag != first.Tag {
			return w, nil, failure.New(failure.Invalid,
				"%s is a share of the wrapping key %q with id %s (%d of %d), and %s of %q with id %s (%d of %d), "+
					"or one of them was changed",
				files[0], first.Key, first.ID, first.Threshold, first.Of, files[i], s.Key, s.ID, s.Threshold, s.Of).
				WithHint("bring shares of one key together, as they were written")
		}
		if other, twice := numbers[s.Number]; twice {
			return w, nil, failure.New(failure.Invalid, "%s and %s are the same share", other, files[i]).
				WithHint("bring shares of different custodians")
		}
		numbers[s.Number] = files[i]
		part, err := s.part()
		if err != nil {
			return w, nil, notWhole(files[i], err)
		}
		parts = append(parts, part)
	}
	if len(parts) < first.Threshold {
		return w, nil, failure.New(failure.Invalid,
			"the wrapping key %q needs %d shares, and these are %d", first.Key, first.Threshold, len(parts)).
			WithHint("ask more custodians for theirs")
	}
	if first.Version == untaggedVersion {
		if accept == nil {
			return w, nil, failure.New(failure.Denied,
				"the shares of the wrapping key %q are of version %d, which has no tag: its label may have been changed",
				first.Key, first.Version).
				WithHint("if the label is right, add --unauthenticated; then make a new wrapping key, and new backups under it")
		}
		if err := accept(Untagged{first.Key, first.Of, first.Threshold}); err != nil {
			return w, nil, err
		}
	}
	secret, err := secretsharing.Recover(uint(first.Threshold-1), parts) //nolint:gosec // part has checked it
	if err != nil {
		return w, nil, err
	}
	w, value, err = derive(first.Key, secret)
	if err == nil && hex.EncodeToString(w.ID) != first.ID {
		err = failure.New(failure.Invalid, "the shares do not make the wrapping key %q", first.Key).
			WithHint("use the files as they were written")
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

func (s Share) verifyTag(secret group.Scalar) error {
	want, err := s.tag(secret)
	if err == nil && !hmac.Equal([]byte(want), []byte(s.Tag)) {
		err = failure.New(failure.Invalid,
			"the shares of the wrapping key %q (%d of %d) were changed: their tag is not that of the key they make",
			s.Key, s.Threshold, s.Of).
			WithHint("use the files as they were written")
	}
	return err
}

func notWhole(path string, err error) error {
	return failure.New(failure.Invalid, "%s is not a whole share: %w", path, err).
		WithHint("use the file as 'key backup-key generate' wrote it, or another custodian's")
}

// parseShare reads a share in the clear, and clears nothing.
func parseShare(path string, data []byte) (s Share, err error) {
	version, err := versionOf(data, shareBounds)
	if err != nil {
		return s, notWhole(path, err)
	}
	if version > shareVersion {
		return s, failure.New(failure.Invalid, "the share %s is of version %d, which is not known here", path, version).
			WithHint("update this program")
	}
	if err := decodeExactly(data, &s); err != nil {
		return s, notWhole(path, err)
	}
	if s.Version < untaggedVersion || (s.Version == untaggedVersion) != (s.Tag == "") || s.Number < 1 || s.Number > s.Of ||
		s.Of > sharesLimit || s.Threshold < 2 || s.Threshold > s.Of || len(s.Commitments) != s.Threshold {
		return s, notWhole(path, errors.New("its numbers are impossible"))
	}
	if _, err := s.part(); err != nil {
		return s, notWhole(path, err)
	}
	return s, nil
}

// part returns what Shamir's scheme needs of a share, held against the commitments.
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
