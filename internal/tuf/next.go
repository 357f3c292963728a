package tuf

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// next is a state that can follow a view: what is published, and the files that are chosen from proposals.
//
// No registry has a conditional write, so two signers of one role may propose the same version. Then neither is chosen:
// each of them looks again after it has proposed, and proposes a later version with the changes of both. So a file is
// chosen only if it has the changes of all other complete proposals of the file, and no change is lost.
type next struct {
	view    *View
	pending []*Proposal
	pool    pool
	root    *rootFile
	targets *targetsFile
	chosen  map[string]*Proposal    // by role: of the files that are new
	tops    map[string]*targetsFile // by role that lists tags: its file, new or published
	held    []string                // why proposals are not chosen
}

// newNext returns the state that has only what is published.
func (v *View) newNext(pending []*Proposal) *next {
	return &next{view: v, pending: pending, pool: newPool(pending), root: v.trusted.Root,
		targets: v.trusted.Targets[Targets], chosen: map[string]*Proposal{},
		tops: map[string]*targetsFile{}}
}

// hold notes why proposals are not chosen.
func (n *next) hold(format string, args ...any) {
	n.held = append(n.held, fmt.Sprintf(format, args...))
}

// chooseRoot chooses the proposal of the next root, if there is one. It reports whether there is.
func (n *next) chooseRoot() bool {
	for _, p := range n.pending {
		if p.root == nil || p.root.Signed.Version != n.view.trusted.Root.Signed.Version+1 {
			continue
		}
		at, err := p.content(Root)
		if err != nil || checkRoot(p.root) != nil {
			continue
		}
		if !complete(p.root, n.pool.with(at, p), rootKeys(n.view.trusted.Root, Root), rootKeys(p.root, Root)) {
			n.hold("root version %d: not signed by enough keys", p.root.Signed.Version)
			continue
		}
		if data, err := encodeRoot(p.root); err != nil || len(data) > maxRoot {
			continue
		}
		n.root, n.chosen[Root] = p.root, p
		return true
	}
	return false
}

// chooseTargets chooses the newest proposal of targets.json. It reports whether there is one.
func (n *next) chooseTargets() bool {
	base := n.view.trusted.Targets[Targets]
	p := n.newest(Targets, rootKeys(n.root, Targets), func(p *Proposal) items {
		return delegationItems(p.roles[Targets]).changes(delegationItems(base))
	})
	if p == nil || checkDelegations(p.roles[Targets]) != nil {
		return false
	}
	n.targets, n.chosen[Targets] = p.roles[Targets], p
	return true
}

// newest returns the complete proposal of a role's file with the highest version, or nil. There is none if it lacks
// changes of another.
func (n *next) newest(role string, keys keySet, changes func(*Proposal) items) *Proposal {
	found := n.completed(role, keys)
	if len(found) == 0 {
		return nil
	}
	top := found[0]
	said := changes(top)
	for _, p := range found[1:] {
		if !said.covers(changes(p)) {
			n.hold("%s: two proposals (version %d and %d) do not have the changes of each other", role,
				p.roles[role].Signed.Version, top.roles[role].Signed.Version)
			return nil
		}
		if p.roles[role].Signed.Version == top.roles[role].Signed.Version &&
			len(changes(p).changes(said)) > 0 { // the same names, to different values
			n.hold("%s: two proposals of version %d differ", role, top.roles[role].Signed.Version)
			return nil
		}
	}
	return top
}

// completed returns the proposals of a role's file that follow the published one and have enough signatures, the
// highest version first.
func (n *next) completed(role string, keys keySet) (found []*Proposal) {
	for _, p := range n.pending {
		m := p.roles[role]
		if m == nil || !n.follows(role, m) {
			continue
		}
		at, err := p.content(role)
		if err != nil || !complete(m, n.pool.with(at, p), keys) {
			continue
		}
		if data, err := encode(m); err != nil || len(data) > maxTargets { // it is stored as it is encoded here
			continue
		}
		if role != Targets && checkTargets(role, m, keys) != nil {
			continue
		}
		found = append(found, p)
	}
	slices.SortStableFunc(found, func(a, b *Proposal) int {
		return cmp.Or(cmp.Compare(b.roles[role].Signed.Version, a.roles[role].Signed.Version), cmp.Compare(a.ID, b.ID))
	})
	return found
}

// follows reports whether a file can be the one after the published file of its role.
func (n *next) follows(role string, m *targetsFile) bool {
	published := n.view.versionOf(role)
	return m.Signed.Version > published && m.Signed.Version <= published+maxAhead && !m.Signed.IsExpired(time.Now())
}

// checkTargets verifies that the file of a role that lists tags, or of a bin, is one that this package makes. A role
// with these keys delegates to nobody but its own bins, which the same keys sign: not to the bins of another role, nor
// to keys that are not the role's, or no longer.
func checkTargets(role string, m *targetsFile, keys keySet) error {
	if d := m.Signed.Delegations; d != nil && (owner(role) != role || len(m.Signed.Targets) > 0 ||
		mustJSON(d) != mustJSON(toBins(role, keys))) {
		return invalid("it delegates tags to others")
	}
	for tag := range m.Signed.Targets {
		if err := CheckTag(tag); err != nil {
			return err
		}
	}
	return nil
}

// toBins returns the delegation of a role to its bins.
func toBins(role string, keys keySet) *metadata.Delegations {
	return &metadata.Delegations{Keys: keysOf(keys), SuccinctRoles: &metadata.SuccinctRoles{KeyIDs: keys.ids,
		Threshold: keys.threshold, BitLength: bits, NamePrefix: binsOf(role)}}
}

// counts reports whether the published file of a role counts under keys: whether they have signed it, and its bins have
// the same keys.
func counts(role string, base *targetsFile, keys keySet) bool {
	return base != nil && verify(base, base.Signatures, keys) && checkTargets(role, base, keys) == nil
}

// split returns whether the file of a role delegates its tags to bins.
func split(m *targetsFile) bool {
	return m != nil && m.Signed.Delegations != nil && m.Signed.Delegations.SuccinctRoles != nil
}

// published returns the file of a role that is published, or nil.
func (n *next) published(ctx context.Context, role string) (*targetsFile, error) {
	if n.view.versionOf(role) == 0 {
		return nil, nil
	}
	if role != Tags && parentOf(role) == Targets && n.view.delegation(role) == nil {
		return nil, nil // it was removed
	}
	m, err := n.view.role(ctx, role)
	if isAbsent(err) {
		return nil, nil
	}
	return m, err
}

// chooseTags chooses the files of a role that lists tags. It reports whether the role is consistent then: whether what
// is published of it is still signed by the role's keys.
func (n *next) chooseTags(ctx context.Context, role string) (bool, error) {
	keys := delegatedKeys(n.targets, role)
	base, err := n.published(ctx, role)
	if err != nil {
		return false, err
	}
	top := base
	p := n.newest(role, keys, func(p *Proposal) items { return tagChanges(p, role, base) })
	switch {
	case p != nil:
		top, n.chosen[role] = p.roles[role], p
	case base != nil && !counts(role, base, keys):
		n.hold("%s: its file is not signed by its new keys", role)
		return false, nil
	case base == nil && n.view.versionOf(role) > 0: // the snapshot goes on to name the file, which is gone
		n.hold("%s: it was removed before, and its new keys have signed nothing yet", role)
		return false, nil
	}
	n.tops[role] = top
	if !split(top) {
		return true, nil
	}
	ok, err := n.chooseBins(ctx, role, base, top)
	if err != nil || ok || p == nil {
		return ok, err
	}
	n.tops[role] = base // what is published of the role still counts, even if that is nothing
	delete(n.chosen, role)
	for _, bin := range top.Signed.Delegations.SuccinctRoles.GetRoles() {
		delete(n.chosen, bin)
	}
	return n.view.versionOf(role) == 0 || counts(role, base, keys), nil
}

// chooseBins chooses the files of the bins of a role.
func (n *next) chooseBins(ctx context.Context, role string, base, top *targetsFile) (bool, error) {
	keys := delegatedKeys(top, top.Signed.Delegations.SuccinctRoles.GetRoles()[0])
	same := split(base) && mustJSON(base.Signed.Delegations) == mustJSON(top.Signed.Delegations)
	for _, bin := range top.Signed.Delegations.SuccinctRoles.GetRoles() {
		var old items
		var file *targetsFile
		if !n.proposed(bin) && same {
			continue
		}
		if split(base) {
			var err error
			if file, err = n.published(ctx, bin); err != nil {
				return false, err
			}
			old = tagItems(file)
		} else {
			old = inBin(tagItems(base), top, bin)
		}
		p := n.newest(bin, keys, func(p *Proposal) items { return tagItems(p.roles[bin]).changes(old) })
		switch {
		case p != nil:
			n.chosen[bin] = p
		case file == nil || !same && !verify(file, file.Signatures, keys):
			n.hold("%s: the file of %s is not signed by its new keys", role, bin)
			return false, nil
		}
	}
	return true, nil
}

// proposed reports whether a proposal has a file of a role.
func (n *next) proposed(role string) bool {
	return slices.ContainsFunc(n.pending, func(p *Proposal) bool { return p.roles[role] != nil })
}

// tagChanges returns the changes of tags that the file of a role makes in a proposal, with those of bins when it splits
// the role.
func tagChanges(p *Proposal, role string, base *targetsFile) items {
	m := p.roles[role]
	if !split(m) {
		return tagItems(m).changes(tagItems(base))
	}
	if split(base) {
		return items{} // the bins have them
	}
	return tagItems(p.bins(m)...).changes(tagItems(base))
}

// bins returns the files of bins in a proposal.
func (p *Proposal) bins(top *targetsFile) (all []*targetsFile) {
	for _, bin := range top.Signed.Delegations.SuccinctRoles.GetRoles() {
		if m := p.roles[bin]; m != nil {
			all = append(all, m)
		}
	}
	return all
}

// inBin returns the tags that belong to a bin.
func inBin(all items, top *targetsFile, bin string) items {
	some := items{}
	for tag, value := range all {
		if binOf(top, tag) == bin {
			some[tag] = value
		}
	}
	return some
}

// binOf returns the bin of a tag.
func binOf(top *targetsFile, tag string) string {
	return top.Signed.Delegations.SuccinctRoles.GetRolesForTarget(tag)[0].Name
}

// choose returns the newest consistent state that proposals lead to: with the proposed root and targets.json if all
// roles are signed by the keys that these name, or else with the published ones.
//
// A root whose snapshot and timestamp keys are not those of usable is not chosen, if usable is not nil: nothing could be
// published under it.
func (v *View) choose(ctx context.Context, pending []*Proposal, usable func(*rootFile) bool) (*next, error) {
	var held []string
	for _, attempt := range []struct{ root, targets bool }{{true, true}, {true, false}, {false, true}, {false, false}} {
		n := v.newNext(pending)
		if attempt.root && !n.chooseRoot() || attempt.targets && !n.chooseTargets() {
			held = append(held, n.held...)
			continue
		}
		ok := verify(n.targets, n.targets.Signatures, rootKeys(n.root, Targets))
		if attempt.root && usable != nil && !usable(n.root) {
			n.hold("root version %d: the publisher lacks its snapshot or timestamp keys", n.root.Signed.Version)
			ok = false
		}
		for _, r := range n.targets.Signed.Delegations.Roles {
			if !ok {
				break
			}
			var err error
			if ok, err = n.chooseTags(ctx, r.Name); err != nil {
				return nil, err
			}
		}
		held = append(held, n.held...)
		if ok {
			slices.Sort(held)
			n.held = slices.Compact(held)
			return n, nil
		}
	}
	return nil, failure.New(failure.Internal, "the published tag metadata is not consistent")
}

// ahead returns the newest root and targets.json with enough signatures, published or proposed: those that new files of
// roles are signed under.
func (v *View) ahead(pending []*Proposal) *next {
	n := v.newNext(pending)
	n.chooseRoot()
	n.chooseTargets()
	return n
}

// checkRoot verifies that a root has what this package needs.
func checkRoot(m *rootFile) error {
	for _, role := range []string{Root, Targets, Snapshot, Timestamp} {
		r := m.Signed.Roles[role]
		if r == nil || len(r.KeyIDs) == 0 || len(r.KeyIDs) > maxKeys || r.Threshold < 1 || r.Threshold > len(r.KeyIDs) {
			return invalid("the root has no valid keys and threshold for %s", role)
		}
		for _, id := range r.KeyIDs {
			k := m.Signed.Keys[id]
			if k == nil {
				return invalid("the root lacks a key of %s", role)
			}
			if _, err := readKey(k); err != nil {
				return err
			}
		}
	}
	if !m.Signed.ConsistentSnapshot {
		return invalid("the root does not have consistent snapshots")
	}
	return nil
}
