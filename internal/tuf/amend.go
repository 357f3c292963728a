package tuf

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Change is a change of the tags of one role.
type Change struct {
	Set    []Target // tags with digest and size
	Remove []string
}

// Amended are the new files of a change, which are to be proposed.
type Amended struct {
	Files   map[string][]byte
	Role    string // whose files they are
	Lacking int    // how many more signatures the role needs
	Bytes   int    // of the files
}

// items returns the change for items. It fails for tags that cannot be signed.
func (c Change) items() (items, error) {
	all := items{}
	for _, t := range c.Set {
		if err := CheckTag(t.Tag); err != nil {
			return nil, err
		}
		if err := t.Digest.Validate(); err != nil || t.Digest.Algorithm() != "sha256" || t.Size <= 0 {
			return nil, invalid("tag %s: %q of %d bytes is not a manifest with a SHA-256", t.Tag, t.Digest, t.Size)
		}
		var sum metadata.HexBytes
		if err := sum.UnmarshalJSON([]byte(`"` + t.Digest.Encoded() + `"`)); err != nil {
			return nil, invalid("tag %s: %w", t.Tag, err)
		}
		all[t.Tag] = mustJSON(&metadata.TargetFiles{Length: t.Size, Hashes: metadata.Hashes{"sha256": sum}})
	}
	for _, tag := range c.Remove {
		if err := CheckTag(tag); err != nil {
			return nil, err
		}
		all[tag] = ""
	}
	return all, nil
}

// Amend signs a change of the tags of a role, on top of what is published and of the complete proposals of the role. It
// fails with Denied if no signer is of the role, or if the role may not sign a tag.
//
// Of a role that several keys sign together, it adds signatures to a proposal with the same change, if there is one.
func (v *View) Amend(ctx context.Context, pending []*Proposal, role string, c Change, signers []*Signer) (*Amended,
	error) {
	want, err := c.items()
	if err != nil {
		return nil, err
	}
	n := v.ahead(pending)
	e, err := n.edit(ctx, role, signers)
	if err != nil {
		return nil, err
	}
	for tag := range want {
		if ok, err := e.delegated.IsDelegatedPath(tag); err != nil || !ok && want[tag] != "" {
			return nil, failure.New(failure.Denied, "the role %s may not sign tag %s: its paths are %s", role, tag,
				strings.Join(e.delegated.Paths, ", ")).
				WithHint("have another signer sign it, or change the delegation: hsm-image tag delegate add")
		}
	}
	if e.keys.threshold > 1 {
		if made, err := e.cosign(ctx, want); made != nil || err != nil {
			return made, err
		}
	}
	return e.change(ctx, want)
}

// edit is a change of a role that lists tags.
type edit struct {
	*next
	role      string
	delegated metadata.DelegatedRole
	keys      keySet
	signers   []*Signer
	base      *targetsFile // what is published of the role; nil: nothing
	files     map[string][]byte
	lacks     int
}

func (n *next) edit(ctx context.Context, role string, signers []*Signer) (*edit, error) {
	e := &edit{next: n, role: role, keys: delegatedKeys(n.targets, role), files: map[string][]byte{}}
	i := slices.IndexFunc(n.targets.Signed.Delegations.Roles,
		func(r metadata.DelegatedRole) bool { return r.Name == role })
	if i < 0 {
		return nil, failure.New(failure.NotFound, "there is no delegation %q", role).
			WithHint("list them: hsm-image tag status")
	}
	e.delegated = n.targets.Signed.Delegations.Roles[i]
	if e.signers = ofRole(e.keys, signers); len(e.signers) == 0 {
		return nil, wrongKeys(role, signers)
	}
	var err error
	e.base, err = n.published(ctx, role)
	return e, err
}

// wrongKeys is the failure of a change that none of the signers may make.
func wrongKeys(role string, signers []*Signer) error {
	return failure.New(failure.Denied, "cannot sign as role %s: key %s is not one of its keys", role, shortIDs(signers)).
		WithHint("list the keys of each role: hsm-image tag status REPO")
}

// shortIDs returns the first digits of the keys' IDs, as 'hsm-image tag status' shows them.
func shortIDs(signers []*Signer) string {
	var ids []string
	for _, s := range signers {
		ids = append(ids, fmt.Sprintf("%.12s", s.ID))
	}
	return strings.Join(ids, ", ")
}

func ofRole(keys keySet, signers []*Signer) (some []*Signer) {
	for _, s := range signers {
		if s.in(keys.ids) {
			some = append(some, s)
		}
	}
	return some
}

// RoleOf returns the role that lists tags and that a key signs for a tag: tags, or the first delegation that may sign
// it. It fails with Denied if there is none.
func (v *View) RoleOf(pending []*Proposal, tag string, signers []*Signer) (string, error) {
	n := v.ahead(pending)
	var own []string
	for _, r := range n.targets.Signed.Delegations.Roles {
		if len(ofRole(delegatedKeys(n.targets, r.Name), signers)) == 0 {
			continue
		}
		own = append(own, r.Name)
		if ok, err := r.IsDelegatedPath(tag); err == nil && ok {
			return r.Name, nil
		}
	}
	if len(own) > 0 {
		return "", failure.New(failure.Denied, "the key is one of the role %s, which may not sign tag %s",
			strings.Join(own, ", "), tag).
			WithHint("have another signer sign it, or change the delegation: hsm-image tag delegate add")
	}
	return "", failure.New(failure.Denied, "the key is of no role that signs tags: %s", shortIDs(signers)).
		WithHint("list the keys of each role: hsm-image tag status REPO")
}

// cosign adds signatures to the proposal that makes the same change and lacks some. It returns nil if there is none.
func (e *edit) cosign(ctx context.Context, want items) (*Amended, error) {
	for _, p := range e.pending {
		if !slices.Contains(p.Roles(), e.role) || !e.follows(p) {
			continue
		}
		same, err := e.sameChange(ctx, p, want)
		if err != nil {
			return nil, err
		}
		if !same {
			continue
		}
		if slices.ContainsFunc(e.own(p), func(role string) bool { return !e.mayCosign(p, role) }) {
			continue
		}
		for _, role := range e.own(p) {
			m := p.roles[role]
			if err := e.add(ctx, role, m, e.keys); err != nil {
				return nil, err
			}
		}
		return e.amended(), nil
	}
	return nil, nil
}

// mayCosign reports whether another's file is as this package makes it, apart from its change, which the caller
// compares: with a valid signature by one of the role's keys, the usual lifetime, and nothing else in it. It leaves the
// valid signatures.
func (e *edit) mayCosign(p *Proposal, role string) bool {
	m := p.roles[role]
	at, err := p.content(role)
	if err != nil {
		return false
	}
	complete(m, e.pool.with(at, p), e.keys)
	plain := metadata.Targets(m.Signed.Expires)
	plain.Signed.Version, plain.Signed.Targets = m.Signed.Version, m.Signed.Targets
	plain.Signed.Delegations = m.Signed.Delegations
	theirs, err := payload(m)
	ours, plainErr := payload(plain)
	left := time.Until(m.Signed.Expires)
	return err == nil && plainErr == nil && string(theirs) == string(ours) && len(m.Signatures) > 0 &&
		left > targetsLifetime/2 && left <= targetsLifetime+time.Hour // clocks differ
}

// own returns the roles of a proposal's files that are of the role: it and its bins.
func (e *edit) own(p *Proposal) (roles []string) {
	for role := range p.roles {
		if owner(role) == e.role {
			roles = append(roles, role)
		}
	}
	slices.Sort(roles)
	return roles
}

// follows reports whether all files of the role in a proposal are newer than the published ones.
func (e *edit) follows(p *Proposal) bool {
	for _, role := range e.own(p) {
		if !e.next.follows(role, p.roles[role]) {
			return false
		}
	}
	return true
}

// sameChange reports whether a proposal of the role makes a change and no other.
func (e *edit) sameChange(ctx context.Context, p *Proposal, want items) (bool, error) {
	made := items{}
	for _, role := range e.own(p) {
		if err := checkTargets(role, p.roles[role], e.keys); err != nil {
			return false, nil //nolint:nilerr // it counts for nothing
		}
	}
	if p.roles[e.role] != nil {
		made = tagChanges(p, e.role, e.base)
	}
	if split(e.base) {
		for _, role := range e.own(p) {
			if role == e.role {
				continue
			}
			m := p.roles[role]
			old, err := e.published(ctx, role)
			if err != nil {
				return false, err
			}
			maps.Copy(made, tagItems(m).changes(tagItems(old)))
		}
	}
	return maps.Equal(made, want), nil
}

// change makes new files with a change.
func (e *edit) change(ctx context.Context, want items) (*Amended, error) {
	others := e.completed(e.role, e.keys)
	slices.Reverse(others) // the highest version last
	wasSplit := split(e.base)
	if !wasSplit {
		old := tagItems(e.base)
		all, forced := old, false
		for _, p := range others {
			changes := tagChanges(p, e.role, e.base)
			if err := changes.undone(old, want); err != nil {
				return nil, err
			}
			all, forced = all.with(changes), forced || split(p.roles[e.role])
		}
		return e.whole(ctx, all.with(want), forced)
	}
	return e.inBins(ctx, want)
}

// whole makes the file of a role that is not split yet, or splits it when it has become too long.
func (e *edit) whole(ctx context.Context, all items, forced bool) (*Amended, error) {
	m := e.newFile(e.role)
	var err error
	if m.Signed.Targets, err = all.targets(); err != nil {
		return nil, err
	}
	data, err := encode(m)
	if err != nil {
		return nil, err
	}
	if len(data) <= splitSize && !forced {
		return e.done(e.add(ctx, e.role, m, e.keys))
	}
	m.Signed.Targets = map[string]*metadata.TargetFiles{}
	m.Signed.Delegations = toBins(e.role, e.keys)
	if err := e.add(ctx, e.role, m, e.keys); err != nil {
		return nil, err
	}
	for _, bin := range m.Signed.Delegations.SuccinctRoles.GetRoles() {
		b := e.newFile(bin)
		if b.Signed.Targets, err = inBin(all, m, bin).targets(); err != nil {
			return nil, err
		}
		if err := e.add(ctx, bin, b, e.keys); err != nil {
			return nil, err
		}
	}
	return e.amended(), nil
}

// inBins makes the files of the bins that a change touches.
func (e *edit) inBins(ctx context.Context, want items) (*Amended, error) {
	touched := map[string]items{}
	for tag, value := range want {
		bin := binOf(e.base, tag)
		if touched[bin] == nil {
			touched[bin] = items{}
		}
		touched[bin][tag] = value
	}
	for _, bin := range slices.Sorted(maps.Keys(touched)) {
		file, err := e.published(ctx, bin)
		if err != nil {
			return nil, err
		}
		old := tagItems(file)
		all := old
		others := e.completed(bin, e.keys)
		slices.Reverse(others)
		for _, p := range others {
			changes := tagItems(p.roles[bin]).changes(old)
			if err := changes.undone(old, touched[bin]); err != nil {
				return nil, err
			}
			all = all.with(changes)
		}
		m := e.newFile(bin)
		if m.Signed.Targets, err = all.with(touched[bin]).targets(); err != nil {
			return nil, err
		}
		if err := e.add(ctx, bin, m, e.keys); err != nil {
			return nil, err
		}
	}
	return e.amended(), nil
}

// newFile returns an empty file of a role, with the version after the published one and all complete proposals.
func (e *edit) newFile(role string) *targetsFile {
	m := metadata.Targets(expiry(targetsLifetime))
	m.Signed.Version = e.view.versionOf(role) + 1
	for _, p := range e.completed(role, e.keys) {
		m.Signed.Version = max(m.Signed.Version, p.roles[role].Signed.Version+1)
	}
	return m
}

// expiry returns when metadata that are made now expire.
func expiry(lifetime time.Duration) time.Time {
	return time.Now().UTC().Truncate(time.Second).Add(lifetime)
}

// add signs a file and adds it.
func (e *edit) add(ctx context.Context, role string, m *targetsFile, keys keySet) error {
	if _, err := sign(ctx, m, keys.ids, e.signers); err != nil {
		return err
	}
	data, err := encode(m)
	if err != nil {
		return err
	}
	if len(data) > maxTargets {
		return failure.New(failure.Unsupported, "the file of role %s would have %d bytes, more than %d", role, len(data),
			maxTargets).WithHint("delegate some of its tags to another role")
	}
	e.files[fileName(role, m.Signed.Version)] = data
	e.lacks = max(e.lacks, lacking(m, keys))
	return nil
}

func (e *edit) amended() *Amended {
	size := 0
	for _, data := range e.files {
		size += len(data)
	}
	return &Amended{Files: e.files, Role: e.role, Lacking: e.lacks, Bytes: size}
}

func (e *edit) done(err error) (*Amended, error) {
	if err != nil {
		return nil, err
	}
	return e.amended(), nil
}

// Has reports whether a change of a role is published, or in a complete proposal that follows what is published and has
// the changes of all others. If not, it has to be amended again.
func (v *View) Has(ctx context.Context, pending []*Proposal, role string, c Change) (published, proposed bool,
	err error) {
	want, err := c.items()
	if err != nil {
		return false, false, err
	}
	n := v.ahead(pending)
	e := &edit{next: n, role: role, keys: delegatedKeys(n.targets, role)}
	if e.base, err = n.published(ctx, role); err != nil {
		return false, false, err
	}
	units := map[string]items{} // of the change, by the file that has the tags: that of the role, or of a bin
	for tag, value := range want {
		unit := role
		if split(e.base) {
			unit = binOf(e.base, tag)
		}
		if units[unit] == nil {
			units[unit] = items{}
		}
		units[unit][tag] = value
	}
	published, proposed = true, true
	for unit, some := range units {
		now, next, err := e.unit(ctx, unit, some)
		if err != nil {
			return false, false, err
		}
		published, proposed = published && now, proposed && next
	}
	return published, proposed, nil
}

// unit reports whether changes of one file of the role are published, and whether they are proposed.
func (e *edit) unit(ctx context.Context, unit string, want items) (published, proposed bool, err error) {
	file := e.base
	if unit != e.role {
		if file, err = e.published(ctx, unit); err != nil {
			return false, false, err
		}
	}
	old := tagItems(file)
	changes := func(p *Proposal) items {
		if unit == e.role {
			return tagChanges(p, e.role, e.base)
		}
		return tagItems(p.roles[unit]).changes(old)
	}
	var all []items // of complete proposals
	for _, p := range e.completed(unit, e.keys) {
		all = append(all, changes(p))
	}
	newest := items{}
	if p := e.newest(unit, e.keys, changes); p != nil {
		newest = changes(p)
	} else if len(all) > 0 {
		newest = nil
	}
	published, proposed = true, true
	for tag, value := range want {
		otherwise := slices.ContainsFunc(all, func(i items) bool { // a proposal makes it something else
			said, ok := i[tag]
			return ok && said != value
		})
		published = published && old[tag] == value && !otherwise
		said, ok := newest[tag]
		proposed = proposed && newest != nil && (ok && said == value || !ok && old[tag] == value && !otherwise)
	}
	return published, proposed, nil
}
