package tuf

import (
	"context"
	"maps"
	"path"
	"regexp"
	"slices"
	"sync"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Delegation says which tags a signer may sign.
type Delegation struct {
	Name  string
	Paths []string // patterns of tags: * any text, ? one character, [a-z] one of a range
	RoleKeys
}

// pathPattern matches patterns of tags that all TUF clients read the same: without negated ranges and backslashes.
var pathPattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_.*?\[\]-]{1,256}$`) })

// check verifies that a delegation can be made.
func (d Delegation) check() error {
	if err := CheckName(d.Name); err != nil {
		return err
	}
	if len(d.Paths) == 0 || len(d.Paths) > maxPaths {
		return invalid("the delegation %s has %d paths", d.Name, len(d.Paths)).
			WithHint("name the tags that it may sign, as in --paths 'release-*'")
	}
	for _, pattern := range d.Paths {
		if _, err := path.Match(pattern, "v1"); err != nil || !pathPattern().MatchString(pattern) {
			return invalid("the path %q of the delegation %s is not a pattern of tags", pattern, d.Name).
				WithHint("use a tag with * or ?, as in 'release-*'")
		}
	}
	return nil
}

// AmendDelegations signs a change of who may sign which tags: it adds a delegation or replaces the one of its name, or,
// with paths and keys empty, removes it. signers are those of the targets keys, and of the delegation's keys, new and
// old: what the delegation has signed is signed again by its new keys, if they are there.
func (v *View) AmendDelegations(ctx context.Context, pending []*Proposal, d Delegation, signers []*Signer) (
	*Amended, error) {
	change, err := d.item()
	if err != nil {
		return nil, err
	}
	n := v.ahead(pending)
	if change[d.Name] == "" && v.delegation(d.Name) == nil && delegationItems(n.targets)[d.Name] == "" {
		return nil, failure.New(failure.NotFound, "there is no delegation %q", d.Name).
			WithHint("list them: hsm-image tag status")
	}
	a := &edit{next: n, role: Targets, keys: rootKeys(n.root, Targets), files: map[string][]byte{}}
	if a.signers = ofRole(a.keys, signers); len(a.signers) == 0 {
		return nil, wrongKeys(Targets, signers)
	}
	if err := a.targetsFile(ctx, change); err != nil {
		return nil, err
	}
	if change[d.Name] != "" {
		if err := a.resign(ctx, d.Name, signers); err != nil {
			return nil, err
		}
	}
	return a.amended(), nil
}

// targetsFile makes the next targets.json with a change of delegations; of the same change that lacks signatures, it
// adds to the proposal.
func (e *edit) targetsFile(ctx context.Context, change items) error {
	base := e.view.trusted.Targets[Targets]
	if e.keys.threshold > 1 {
		same, err := delegationItems(base).with(change).delegations(base) // in this order: the first of several roles counts
		if err != nil {
			return err
		}
		for _, p := range e.pending {
			m := p.roles[Targets]
			if m == nil || !e.follows(p) || !maps.Equal(delegationItems(m).changes(delegationItems(base)), change) {
				continue
			}
			if !e.mayCosign(p, Targets) || checkDelegations(m) != nil || mustJSON(m.Signed.Delegations) != mustJSON(same) {
				continue
			}
			e.targets = m
			return e.add(ctx, Targets, m, e.keys)
		}
	}
	all := delegationItems(base)
	others := e.completed(Targets, e.keys)
	slices.Reverse(others)
	for _, p := range others {
		changes := delegationItems(p.roles[Targets]).changes(delegationItems(base))
		if err := changes.undone(delegationItems(base), change); err != nil {
			return err
		}
		all = all.with(changes)
	}
	m := e.newFile(Targets)
	var err error
	if m.Signed.Delegations, err = all.with(change).delegations(base); err != nil {
		return err
	}
	if err := checkDelegations(m); err != nil {
		return err
	}
	e.targets = m
	return e.add(ctx, Targets, m, e.keys)
}

// resign signs the files of a role again, under the keys that e.targets names. A role without files gets an empty one.
// It does nothing if what is published is signed by these keys already, or if none of the signers is one of them.
func (e *edit) resign(ctx context.Context, role string, signers []*Signer) error {
	keys := delegatedKeys(e.targets, role)
	base, err := e.published(ctx, role)
	if err != nil {
		return err
	}
	if base != nil && verify(base, base.Signatures, keys) && !split(base) {
		return nil
	}
	r := &edit{next: e.next, role: role, keys: keys, signers: ofRole(keys, signers), base: base, files: e.files}
	if len(r.signers) == 0 {
		return nil
	}
	if !split(base) {
		_, err := r.whole(ctx, tagItems(base), false)
		e.lacks = max(e.lacks, r.lacks)
		return err
	}
	all := items{}
	for _, bin := range base.Signed.Delegations.SuccinctRoles.GetRoles() {
		file, err := r.published(ctx, bin)
		if err != nil {
			return err
		}
		all = all.with(tagItems(file))
	}
	_, err = r.whole(ctx, all, true)
	e.lacks = max(e.lacks, r.lacks)
	return err
}

// AmendTargetsKeys signs targets.json and the role of its tags by the targets keys of a root that is proposed with
// them.
func (v *View) AmendTargetsKeys(ctx context.Context, root *RootFile, signers []*Signer) (*Amended, error) {
	keys := rootKeys(root.m, Targets)
	n := v.newNext(nil)
	n.root = root.m
	e := &edit{next: n, role: Targets, keys: keys, files: map[string][]byte{}, signers: ofRole(keys, signers)}
	base := v.trusted.Targets[Targets]
	change := items{Tags: mustJSON(delegation{Keys: keysOf(keys), Role: metadata.DelegatedRole{Name: Tags,
		KeyIDs:    keys.ids,
		Threshold: keys.threshold, Paths: []string{"*"}}})}
	m := e.newFile(Targets)
	var err error
	if m.Signed.Delegations, err = delegationItems(base).with(change).delegations(base); err != nil {
		return nil, err
	}
	e.targets = m
	if err := e.add(ctx, Targets, m, keys); err != nil {
		return nil, err
	}
	if err := e.resign(ctx, Tags, signers); err != nil {
		return nil, err
	}
	return e.amended(), nil
}

// keysOf returns the keys of a set alone.
func keysOf(s keySet) map[string]*metadata.Key {
	own := map[string]*metadata.Key{}
	for _, id := range s.ids {
		own[id] = s.keys[id]
	}
	return own
}

// Renew signs the files of the roles that signers are of again, so that they expire later, if half of their lifetime
// has passed or all is asked for. It returns an amendment for each role.
func (v *View) Renew(ctx context.Context, pending []*Proposal, signers []*Signer, all bool) ([]*Amended, error) {
	n := v.ahead(pending)
	var made []*Amended
	e := &edit{next: n, role: Targets, keys: rootKeys(n.root, Targets), files: map[string][]byte{}}
	e.signers = ofRole(e.keys, signers)
	if len(e.signers) > 0 && (all || halfway(n.targets.Signed.Expires, targetsLifetime)) {
		if err := e.targetsFile(ctx, items{}); err != nil {
			return nil, err
		}
		made = append(made, e.amended())
	}
	for _, r := range n.targets.Signed.Delegations.Roles {
		e := &edit{next: n, role: r.Name, keys: delegatedKeys(n.targets, r.Name), files: map[string][]byte{}}
		if e.signers = ofRole(e.keys, signers); len(e.signers) == 0 {
			continue
		}
		var err error
		if e.base, err = n.published(ctx, r.Name); err != nil {
			return nil, err
		}
		if e.base == nil || !all && !halfway(e.base.Signed.Expires, targetsLifetime) {
			continue
		}
		var amended *Amended
		if e.keys.threshold > 1 {
			if amended, err = e.cosign(ctx, items{}); err != nil {
				return nil, err
			}
		}
		if amended == nil {
			if amended, err = e.renewed(ctx); err != nil {
				return nil, err
			}
		}
		made = append(made, amended)
	}
	return made, nil
}

// renewed makes all files of a role again.
func (e *edit) renewed(ctx context.Context) (*Amended, error) {
	if !split(e.base) {
		return e.change(ctx, items{})
	}
	top := e.newFile(e.role)
	top.Signed.Delegations = toBins(e.role, e.keys)
	if err := e.add(ctx, e.role, top, e.keys); err != nil {
		return nil, err
	}
	for _, bin := range e.base.Signed.Delegations.SuccinctRoles.GetRoles() {
		file, err := e.published(ctx, bin)
		if err != nil {
			return nil, err
		}
		all := tagItems(file)
		for _, p := range e.completed(bin, e.keys) {
			all = all.with(tagItems(p.roles[bin]).changes(tagItems(file)))
		}
		m := e.newFile(bin)
		if m.Signed.Targets, err = all.targets(); err != nil {
			return nil, err
		}
		if err := e.add(ctx, bin, m, e.keys); err != nil {
			return nil, err
		}
	}
	return e.amended(), nil
}

// item returns the name and the item of a delegation; "" removes it.
func (d Delegation) item() (items, error) {
	change := items{d.Name: ""}
	if len(d.Paths) > 0 || len(d.Keys) > 0 {
		if err := d.check(); err != nil {
			return nil, err
		}
		ids, keys, err := d.read()
		if err != nil {
			return nil, invalid("the delegation %s: %w", d.Name, err)
		}
		change[d.Name] = mustJSON(delegation{Keys: keys, Role: metadata.DelegatedRole{Name: d.Name, KeyIDs: ids,
			Threshold: d.Threshold, Paths: d.Paths}})
	}
	return change, nil
}

// HasDelegation reports whether a change of AmendDelegations is published, or is in a complete proposal with the
// changes of all others.
func (v *View) HasDelegation(pending []*Proposal, d Delegation) (published, proposed bool, err error) {
	change, err := d.item()
	if err != nil {
		return false, false, err
	}
	n := v.ahead(pending)
	base := delegationItems(v.trusted.Targets[Targets])
	for _, p := range n.completed(Targets, rootKeys(n.root, Targets)) {
		said, ok := delegationItems(p.roles[Targets]).changes(base)[d.Name]
		if ok && said != change[d.Name] && base[d.Name] == change[d.Name] {
			return false, false, nil // it is to be changed back
		}
	}
	now := base[d.Name] == change[d.Name]
	if len(n.held) > 0 && n.targets == v.trusted.Targets[Targets] {
		return now, false, nil
	}
	return now, delegationItems(n.targets)[d.Name] == change[d.Name], nil
}

// HasRoot reports whether a root is published, or in a complete proposal.
func (v *View) HasRoot(pending []*Proposal, root *RootFile) (published, proposed bool, err error) {
	version := root.m.Signed.Version
	if v.trusted.Root.Signed.Version > version {
		return false, false, failure.New(failure.Conflict, "the root has version %d already", v.trusted.Root.Signed.Version).
			WithHint("make the root again: hsm-image tag rotate")
	}
	same := func(m *rootFile) bool {
		mine, err := payload(root.m)
		theirs, theirErr := payload(m)
		return err == nil && theirErr == nil && string(mine) == string(theirs)
	}
	n := v.ahead(pending)
	return same(v.trusted.Root), same(n.root), nil
}
