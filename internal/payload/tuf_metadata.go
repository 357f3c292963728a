package payload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"time"
)

// The metadata of each role, with the names sorted, as canonical JSON has them.
type (
	tufRoot struct {
		Type       string            `json:"_type"`
		Consistent *bool             `json:"consistent_snapshot,omitempty"`
		Expires    string            `json:"expires"`
		Keys       map[string]tufKey `json:"keys"`
		Roles      struct {
			Root      tufKeys `json:"root"`
			Snapshot  tufKeys `json:"snapshot"`
			Targets   tufKeys `json:"targets"`
			Timestamp tufKeys `json:"timestamp"`
		} `json:"roles"`
		SpecVersion string `json:"spec_version"`
		Version     int64  `json:"version"`
	}
	tufSnapshot struct { // and timestamp
		Type        string             `json:"_type"`
		Expires     string             `json:"expires"`
		Meta        map[string]tufMeta `json:"meta"`
		SpecVersion string             `json:"spec_version"`
		Version     int64              `json:"version"`
	}
	tufTargets struct {
		Type        string               `json:"_type"`
		Delegations *tufDelegations      `json:"delegations,omitempty"`
		Expires     string               `json:"expires"`
		SpecVersion string               `json:"spec_version"`
		Targets     map[string]tufTarget `json:"targets"`
		Version     int64                `json:"version"`
	}
)

// The parts of metadata.
type (
	tufKey struct {
		Type  string `json:"keytype"`
		Value struct {
			Public string `json:"public"`
		} `json:"keyval"`
		Scheme string `json:"scheme"`
	}
	tufKeys struct {
		IDs       []string `json:"keyids"`
		Threshold int64    `json:"threshold"`
	}
	tufMeta struct {
		Hashes  map[string]string `json:"hashes,omitempty"`
		Length  int64             `json:"length,omitempty"`
		Version int64             `json:"version"`
	}
	tufTarget struct {
		Custom *tufCustom        `json:"custom,omitempty"`
		Hashes map[string]string `json:"hashes"`
		Length int64             `json:"length"`
	}
	tufDelegations struct {
		Keys     map[string]tufKey `json:"keys"`
		Roles    []tufDelegation   `json:"roles,omitzero"`
		Succinct *tufSuccinct      `json:"succinct_roles,omitempty"`
	}
	tufDelegation struct {
		IDs         []string `json:"keyids"`
		Name        string   `json:"name"`
		Prefixes    []string `json:"path_hash_prefixes,omitzero"`
		Paths       []string `json:"paths,omitzero"`
		Terminating bool     `json:"terminating"`
		Threshold   int64    `json:"threshold"`
	}
	tufSuccinct struct {
		Bits      int64    `json:"bit_length"`
		IDs       []string `json:"keyids"`
		Prefix    string   `json:"name_prefix"`
		Threshold int64    `json:"threshold"`
	}
)

// tufCustom is the value "custom" of a target, which applications define: an object.
type tufCustom struct{ value map[string]any }

// UnmarshalJSON decodes an object without floating point numbers, which canonical JSON does not have.
func (c *tufCustom) UnmarshalJSON(data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	return decoder.Decode(&c.value)
}

// MarshalJSON encodes the object as encodeTUF does.
func (c *tufCustom) MarshalJSON() ([]byte, error) { return encodeTUF(c.value) }

func (d *tufDelegations) check() error {
	if (d.Roles == nil) == (d.Succinct == nil) {
		return errors.New("delegations: not one of roles and succinct_roles")
	}
	if s := d.Succinct; s != nil {
		if s.Bits < 1 || s.Bits > 32 {
			return fmt.Errorf("delegations.succinct_roles.bit_length: %d is not from 1 to 32", s.Bits)
		}
		return tufKeys{s.IDs, s.Threshold}.check("delegations.succinct_roles", d.Keys)
	}
	for i, r := range d.Roles {
		place := fmt.Sprintf("delegations.roles[%d]", i)
		if (r.Paths == nil) == (r.Prefixes == nil) {
			return fmt.Errorf("%s: not one of paths and path_hash_prefixes", place)
		}
		if err := (tufKeys{r.IDs, r.Threshold}).check(place, d.Keys); err != nil {
			return err
		}
	}
	return nil
}

var specSyntax = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^1\.[0-9]{1,3}(\.[0-9]{1,3})?$`)
})

// checkTUF checks what all roles have, and sets the expiry.
func (a *Artifact) checkTUF(expires, specVersion string, version int64) (err error) {
	a.Expiry, err = time.Parse(time.RFC3339, expires)
	switch {
	case err != nil || a.Expiry.UTC().Format("2006-01-02T15:04:05Z") != expires:
		return fmt.Errorf("expires: %.50q is not a time such as 2006-01-02T15:04:05Z", expires)
	case !specSyntax().MatchString(specVersion):
		return fmt.Errorf("spec_version: %.50q is not a version 1", specVersion)
	}
	return checkInteger("version", version, 1)
}

// check fails unless each key id is one of the keys, and is there once.
func (k tufKeys) check(place string, keys map[string]tufKey) error {
	for i, id := range k.IDs {
		if _, known := keys[id]; !known {
			return fmt.Errorf("%s.keyids[%d]: no key has the id %.80q", place, i, id)
		}
		if slices.Contains(k.IDs[:i], id) {
			return fmt.Errorf("%s.keyids[%d]: the id %.80q twice", place, i, id)
		}
	}
	if k.Threshold > int64(len(k.IDs)) {
		return fmt.Errorf("%s.threshold: %d of %d keys", place, k.Threshold, len(k.IDs))
	}
	return checkInteger(place+".threshold", k.Threshold, 1)
}

// checkFile checks the hashes and the length of a file.
func checkFile(place string, hashes map[string]string, length int64) error {
	for _, algorithm := range slices.Sorted(maps.Keys(hashes)) {
		if digest := algorithm + ":" + hashes[algorithm]; !isDigest(digest) {
			return notDigest(join(place+".hashes", algorithm), digest)
		}
	}
	return checkInteger(place+".length", length, 0)
}

// checkInteger fails unless a number is from least to the largest integer that every JSON parser reads exactly.
func checkInteger(place string, number, least int64) error {
	if number < least || number > maxInteger {
		return fmt.Errorf("%s: %s is not from %d to %d", place, strconv.FormatInt(number, 10), least, int64(maxInteger))
	}
	return nil
}
