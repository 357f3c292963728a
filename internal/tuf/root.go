package tuf

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// RootFile is a root.json, which custodians pass around until enough of them have signed it.
type RootFile struct {
	m *rootFile
	// previous has the root keys before this root, whose signatures it needs as well (TUF section 5.3.4); none if this is
	// the first version.
	previous keySet
}

// RoleKeys are the keys of a role, of which Threshold have to sign.
type RoleKeys struct {
	Keys      []*Key
	Threshold int
}

// NewRoot returns the first root of a repository, without signatures.
func NewRoot(root, targets, snapshot, timestamp RoleKeys) (*RootFile, error) {
	m := metadata.Root(expiry(rootLifetime))
	for role, keys := range map[string]RoleKeys{Root: root, Targets: targets, Snapshot: snapshot, Timestamp: timestamp} {
		if err := setKeys(m, role, keys); err != nil {
			return nil, err
		}
	}
	return &RootFile{m: m}, checkRoot(m)
}

// setKeys replaces the keys of a role.
func setKeys(m *rootFile, role string, keys RoleKeys) error {
	ids, all, err := keys.read()
	if err != nil {
		return invalid("the keys of %s: %w", role, err)
	}
	m.Signed.Roles[role] = &metadata.Role{KeyIDs: ids, Threshold: keys.Threshold}
	maps.Copy(m.Signed.Keys, all)
	maps.DeleteFunc(m.Signed.Keys, func(id string, _ *metadata.Key) bool {
		for _, r := range m.Signed.Roles {
			if slices.Contains(r.KeyIDs, id) {
				return false
			}
		}
		return true
	})
	return nil
}

// read returns the ids of keys, in order, and the keys by id. It fails for a threshold that they cannot reach.
func (r RoleKeys) read() ([]string, map[string]*metadata.Key, error) {
	all := map[string]*metadata.Key{}
	for _, k := range r.Keys {
		if all[k.ID] != nil {
			return nil, nil, invalid("key %.12s is there twice", k.ID)
		}
		all[k.ID] = k.signed
	}
	if r.Threshold < 1 || r.Threshold > len(r.Keys) || len(r.Keys) > maxKeys {
		return nil, nil, invalid("the threshold is %d of %d keys", r.Threshold, len(r.Keys)).
			WithHint("name as many keys as the threshold needs, or another --threshold")
	}
	return slices.Sorted(maps.Keys(all)), all, nil
}

// ParseRoot reads a root.json. previous is the root before it, or nil.
func ParseRoot(data, previous []byte) (*RootFile, error) {
	m, err := parse[metadata.RootType]("root.json", data, maxRoot)
	if err != nil {
		return nil, err
	}
	if err := checkRoot(m); err != nil {
		return nil, err
	}
	r := &RootFile{m: m}
	if previous == nil {
		return r, nil
	}
	before, err := parse[metadata.RootType]("root.json", previous, maxRoot)
	if err != nil {
		return nil, err
	}
	if m.Signed.Version != before.Signed.Version+1 {
		return nil, failure.New(failure.Conflict, "the root has version %d, which does not follow version %d",
			m.Signed.Version, before.Signed.Version).WithHint("make it again: hsm-image tag rotate")
	}
	r.previous = rootKeys(before, Root)
	return r, nil
}

// CheckPin verifies that a pinned root.json is one that a Client takes: signed by enough of its own keys.
func CheckPin(data []byte) (*RootFile, error) {
	r, err := ParseRoot(data, nil)
	if err != nil {
		return nil, err
	}
	if missing := r.Lacking(); missing > 0 {
		return nil, failure.New(failure.Denied, "the root lacks %d signatures by its own keys", missing).
			WithHint("have its custodians sign it: hsm-image tag root sign FILE --key KEY")
	}
	return r, nil
}

// Sign adds the signatures of signers that are root keys, now or before. It fails with Denied if none of them is.
func (r *RootFile) Sign(ctx context.Context, signers []*Signer) error {
	ids := slices.Concat(rootKeys(r.m, Root).ids, r.previous.ids)
	made, err := sign(ctx, r.m, ids, signers)
	if err == nil && made == 0 {
		err = failure.New(failure.Denied, "none of the keys is a root key").
			WithHint("list the root's keys: hsm-image tag root show FILE")
	}
	return err
}

// SignAny is Sign without a failure when none of the signers is a root key.
func (r *RootFile) SignAny(ctx context.Context, signers []*Signer) error {
	_, err := sign(ctx, r.m, slices.Concat(rootKeys(r.m, Root).ids, r.previous.ids), signers)
	return err
}

// Lacking returns how many more signatures the root needs: by its own keys, or by those before, whichever is more.
func (r *RootFile) Lacking() int {
	n := lacking(r.m, rootKeys(r.m, Root))
	if len(r.previous.ids) > 0 {
		n = max(n, lacking(r.m, r.previous))
	}
	return n
}

// Encode returns the root as indented JSON.
func (r *RootFile) Encode() ([]byte, error) { return encodeRoot(r.m) }

// Name returns the name of the file in a set.
func (r *RootFile) Name() string { return fileName(Root, r.m.Signed.Version) }

// Next returns the root that follows, without signatures, with the keys of some roles replaced. A threshold of 0 stays
// as it was.
func (r *RootFile) Next(replaced map[string]RoleKeys) (*RootFile, error) {
	data, err := encode(r.m)
	if err != nil {
		return nil, err
	}
	m, err := parse[metadata.RootType]("root.json", data, maxRoot)
	if err != nil {
		return nil, err
	}
	m.Signatures = []metadata.Signature{} // not null, which is refused
	m.Signed.Version, m.Signed.Expires = m.Signed.Version+1, expiry(rootLifetime)
	for role, keys := range replaced {
		if keys.Threshold == 0 {
			keys.Threshold = m.Signed.Roles[role].Threshold
		}
		if err := setKeys(m, role, keys); err != nil {
			return nil, err
		}
	}
	return &RootFile{m: m, previous: rootKeys(r.m, Root)}, checkRoot(m)
}

// RoleInfo describes a role: who signs it and until when.
type RoleInfo struct {
	Name      string    `json:"name"`
	Version   int64     `json:"version,omitempty"` // 0: it has signed nothing
	Expires   time.Time `json:"expires,omitzero"`
	Threshold int       `json:"threshold"`
	Keys      []string  `json:"keys"` // ids
	Signed    []string  `json:"signed,omitempty"`
	Paths     []string  `json:"paths,omitempty"`
	Tags      int       `json:"tags,omitempty"`
}

// Describe returns the roles that the root names, root first.
func (r *RootFile) Describe() []RoleInfo {
	var all []RoleInfo
	for _, role := range []string{Root, Targets, Snapshot, Timestamp} {
		keys := rootKeys(r.m, role)
		info := RoleInfo{Name: role, Threshold: keys.threshold, Keys: keys.ids}
		if role == Root {
			info.Version, info.Expires = r.m.Signed.Version, r.m.Signed.Expires
			for _, s := range r.m.Signatures {
				if verify(r.m, []metadata.Signature{s}, keySet{keys.keys, []string{s.KeyID}, 1}) {
					info.Signed = append(info.Signed, s.KeyID)
				}
			}
		}
		all = append(all, info)
	}
	return all
}

// Keys returns the keys of a role that the root names.
func (r *RootFile) Keys(role string) (RoleKeys, error) { return rootKeys(r.m, role).read() }

// read returns the keys of a set.
func (s keySet) read() (RoleKeys, error) {
	r := RoleKeys{Threshold: s.threshold}
	for _, id := range s.ids {
		k, err := readKey(s.keys[id])
		if err != nil {
			return r, err
		}
		r.Keys = append(r.Keys, k)
	}
	return r, nil
}

// Replaces reports whether a role has other keys than in another root.
func (r *RootFile) Replaces(before *RootFile, role string) bool {
	was, is := before.m.Signed.Roles[role], r.m.Signed.Roles[role]
	return was.Threshold != is.Threshold || !slices.Equal(was.KeyIDs, is.KeyIDs)
}

// Version returns the version of the root.
func (r *RootFile) Version() int64 { return r.m.Signed.Version }
