package notaryv1

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// signature is a signature of a metadata file.
type signature struct {
	KeyID     string `json:"keyid"`
	Method    string `json:"method"`
	Signature []byte `json:"sig"`
}

// metadata is a metadata file. Its fields are those of all kinds of files.
type metadata struct {
	Type        string                 `json:"_type"`
	Version     int64                  `json:"version"`
	Expires     time.Time              `json:"expires"`
	Keys        map[string]metadataKey `json:"keys"`    // of a root
	Roles       map[string]keyRole     `json:"roles"`   // of a root
	Meta        map[string]fileMeta    `json:"meta"`    // of a snapshot or timestamp, by the name of a role
	Targets     map[string]fileMeta    `json:"targets"` // of targets and delegations, by tag
	Delegations struct {
		Keys  map[string]metadataKey `json:"keys"`
		Roles []delegatedRole        `json:"roles"`
	} `json:"delegations"`

	raw        []byte
	message    []byte // what is signed: the canonical JSON of the field "signed"
	signatures []signature
}

// keyRole names the keys of a role.
type keyRole struct {
	KeyIDs    []string `json:"keyids"`
	Threshold int      `json:"threshold"`
}

// delegatedRole is a role in the file of the role that it is delegated by.
type delegatedRole struct {
	keyRole
	Name  string   `json:"name"`
	Paths []string `json:"paths"`
}

// fileMeta are the length and hashes of a file or a manifest.
type fileMeta struct {
	Length int64             `json:"length"`
	Hashes map[string][]byte `json:"hashes"`
}

// parse reads a metadata file of a role, without verifying it. It takes names in any case, and of two that differ in
// their case the last, as Notary does.
func parse(data []byte, role string, limit int) (*metadata, error) {
	if err := bound.JSON(data, bound.Limits{Bytes: limit, Depth: bound.Depth, Elements: maxElements}); err != nil {
		return nil, err
	}
	var envelope struct {
		Signed     json.RawMessage `json:"signed"`
		Signatures []signature     `json:"signatures"`
	}
	if err := json.Unmarshal(data, &envelope); err != nil {
		return nil, err
	}
	if len(envelope.Signed) == 0 || envelope.Signed[0] != '{' {
		return nil, errors.New("it has no signed part")
	}
	if len(envelope.Signatures) > maxSignatures {
		return nil, fmt.Errorf("it has more than %d signatures", maxSignatures)
	}
	m := &metadata{raw: data, signatures: envelope.Signatures}
	var err error
	if m.message, err = cjson.EncodeCanonical(envelope.Signed); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(envelope.Signed, m); err != nil {
		return nil, err
	}
	for i := range m.signatures {
		m.signatures[i].Method = strings.ToLower(m.signatures[i].Method)
	}
	return m, m.check(role)
}

// check checks what the file of a role has to have.
func (m *metadata) check(role string) error {
	kind := role
	if isDelegation(role) {
		kind = roleTargets
	}
	if want := strings.ToUpper(kind[:1]) + kind[1:]; m.Type != want {
		return fmt.Errorf("it is of type %.30q, not %q", m.Type, want)
	}
	if m.Version < 1 {
		return fmt.Errorf("its version is %d", m.Version)
	}
	if len(m.Keys) > maxKeys || len(m.Delegations.Keys) > maxKeys {
		return fmt.Errorf("it has more than %d keys", maxKeys)
	}
	for name, meta := range m.Meta {
		if err := meta.check(); err != nil {
			return fmt.Errorf("%.100q: %w", name, err)
		}
	}
	return m.checkDelegations(role)
}

func (m *metadata) checkDelegations(parent string) error {
	if len(m.Delegations.Roles) > maxRoles {
		return fmt.Errorf("it has more than %d delegations", maxRoles)
	}
	var names []string
	for _, d := range m.Delegations.Roles {
		below, ok := strings.CutPrefix(d.Name, parent+"/")
		if !ok || strings.Contains(below, "/") || !isDelegation(d.Name) {
			return fmt.Errorf("%.100q cannot be a delegation of %s", d.Name, parent)
		}
		if slices.Contains(names, d.Name) {
			return fmt.Errorf("it delegates to %s twice", d.Name)
		}
		names = append(names, d.Name)
	}
	return nil
}

// check checks that there is a hash to compare, and that each is as long as it has to be.
func (f fileMeta) check() error {
	sum256, sum512 := f.Hashes["sha256"], f.Hashes["sha512"]
	if f.Length < 0 || sum256 == nil && sum512 == nil ||
		sum256 != nil && len(sum256) != sha256.Size || sum512 != nil && len(sum512) != sha512.Size {
		return errors.New("it has no usable hash or length")
	}
	return nil
}

// matches reports whether data has the length and the hashes.
func (f fileMeta) matches(data []byte) bool {
	sum256, sum512 := sha256.Sum256(data), sha512.Sum512(data)
	same := func(want, got []byte) bool { return want == nil || subtle.ConstantTimeCompare(want, got) == 1 }
	return f.check() == nil && f.Length == int64(len(data)) &&
		same(f.Hashes["sha256"], sum256[:]) && same(f.Hashes["sha512"], sum512[:])
}

// sum returns the SHA-256 in hex, by which a server finds the file; empty if there is none.
func (f fileMeta) sum() string { return hex.EncodeToString(f.Hashes["sha256"]) }

// keyRing returns the keys of a role. It fails for keys that the metadata names and does not have.
func (r keyRole) keyRing(keys map[string]metadataKey) ([]Key, error) {
	if r.Threshold < 1 {
		return nil, fmt.Errorf("a threshold of %d", r.Threshold)
	}
	if len(r.KeyIDs) > maxKeys {
		return nil, fmt.Errorf("more than %d keys", maxKeys)
	}
	var ring []Key
	for _, id := range r.KeyIDs {
		m, ok := keys[id]
		if !ok || !keyIDPattern.MatchString(id) {
			return nil, fmt.Errorf("the key %.64q is missing", id)
		}
		if !slices.ContainsFunc(ring, func(k Key) bool { return k.ID == id }) {
			ring = append(ring, m.read(id))
		}
	}
	return ring, nil
}

// verify returns the IDs of the keys whose signatures verify, and fails if they are fewer than the threshold. A key
// counts once, in however many certificates it is.
func (m *metadata) verify(keys []Key, threshold int) (signed []string, err error) {
	distinct := map[string]bool{}
	for _, s := range m.signatures {
		i := slices.IndexFunc(keys, func(k Key) bool { return k.ID == s.KeyID })
		if i < 0 || distinct[string(keys[i].spki)] || !keys[i].verifies(s, m.message) {
			continue
		}
		distinct[string(keys[i].spki)] = true
		signed = append(signed, keys[i].ID)
	}
	if threshold < 1 || len(signed) < threshold {
		return signed, fmt.Errorf("%d of its keys have signed it, fewer than the threshold %d", len(signed), threshold)
	}
	return signed, nil
}
