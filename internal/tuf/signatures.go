package tuf

import (
	"crypto/sha256"
	"maps"
	"slices"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// pool has the signatures of all proposals by what they are of. Those who sign one role together make a proposal each,
// of the same content. None of the signatures is verified.
type pool map[content][]metadata.Signature

type content struct {
	role string
	sum  [sha256.Size]byte // of what is signed
}

// maxSignatures is how many signatures of one content are tried: anyone who can write to the repository can add some.
const maxSignatures = 200

func newPool(pending []*Proposal) pool {
	all := pool{}
	for _, p := range pending {
		for role := range p.raw {
			if at, err := p.content(role); err == nil {
				all[at] = append(all[at], p.given[role]...)
			}
		}
	}
	return all
}

func (p *Proposal) content(role string) (content, error) {
	data, err := p.payload(role)
	return content{role, sha256.Sum256(data)}, err
}

// with returns the signatures of what a proposal has of a role, its own first: those of others, which may be many and
// worthless, must not keep it from being complete.
func (all pool) with(at content, p *Proposal) []metadata.Signature {
	return slices.Concat(p.given[at.role], all[at])
}

// keySet are the keys of a role, and how many have to sign.
type keySet struct {
	keys      map[string]*metadata.Key
	ids       []string
	threshold int
}

func rootKeys(root *rootFile, role string) keySet {
	r := root.Signed.Roles[role]
	if r == nil {
		return keySet{}
	}
	return keySet{root.Signed.Keys, r.KeyIDs, r.Threshold}
}

// delegatedKeys returns the keys of a role that a targets file delegates to; none if it does not.
func delegatedKeys(parent *targetsFile, role string) keySet {
	if parent == nil || parent.Signed.Delegations == nil {
		return keySet{}
	}
	d := parent.Signed.Delegations
	if s := d.SuccinctRoles; s != nil && s.IsDelegatedRole(role) {
		return keySet{d.Keys, s.KeyIDs, s.Threshold}
	}
	for _, r := range d.Roles {
		if r.Name == role {
			return keySet{d.Keys, r.KeyIDs, r.Threshold}
		}
	}
	return keySet{}
}

// complete replaces the signatures of metadata by the valid ones of the pool, one for each key, and reports whether
// they are enough for every set of keys.
func complete[T metadata.Roles](m *metadata.Metadata[T], all []metadata.Signature, sets ...keySet) bool {
	valid := map[string]metadata.Signature{}
	for i, s := range all {
		if _, ok := valid[s.KeyID]; ok || i >= maxSignatures {
			continue
		}
		for _, set := range sets {
			if slices.Contains(set.ids, s.KeyID) && verify(m, []metadata.Signature{s}, keySet{set.keys, []string{s.KeyID}, 1}) {
				valid[s.KeyID] = s
			}
		}
	}
	m.Signatures = nil
	for _, id := range slices.Sorted(maps.Keys(valid)) {
		m.Signatures = append(m.Signatures, valid[id])
	}
	return !slices.ContainsFunc(sets, func(set keySet) bool { return !verify(m, m.Signatures, set) })
}

// verify reports whether signatures are enough for a set of keys.
func verify[T metadata.Roles](m *metadata.Metadata[T], signatures []metadata.Signature, set keySet) bool {
	if len(set.ids) == 0 || len(set.ids) > maxKeys {
		return false
	}
	const role = "role"
	delegator := metadata.Root()
	delegator.Signed.Keys = set.keys
	delegator.Signed.Roles[role] = &metadata.Role{KeyIDs: set.ids, Threshold: set.threshold}
	m = &metadata.Metadata[T]{Signed: m.Signed, Signatures: signatures}
	return delegator.VerifyDelegate(role, m) == nil
}

// lacking returns how many more signatures metadata need.
func lacking[T metadata.Roles](m *metadata.Metadata[T], set keySet) int {
	have := 0
	for _, s := range m.Signatures {
		if slices.Contains(set.ids, s.KeyID) && verify(m, []metadata.Signature{s}, keySet{set.keys, []string{s.KeyID}, 1}) {
			have++
		}
	}
	return max(set.threshold-have, 0)
}
