package tuf

import (
	"context"
)

// Status returns the roles of the repository: root, targets, snapshot, timestamp, and those that list tags.
func (v *View) Status(ctx context.Context) ([]RoleInfo, error) {
	all := (&RootFile{m: v.trusted.Root}).Describe()
	for i, r := range all {
		switch r.Name {
		case Targets:
			m := v.trusted.Targets[Targets]
			all[i].Version, all[i].Expires = m.Signed.Version, m.Signed.Expires
		case Snapshot:
			all[i].Version, all[i].Expires = v.trusted.Snapshot.Signed.Version, v.trusted.Snapshot.Signed.Expires
		case Timestamp:
			all[i].Version, all[i].Expires = v.trusted.Timestamp.Signed.Version, v.trusted.Timestamp.Signed.Expires
		}
	}
	for _, r := range v.trusted.Targets[Targets].Signed.Delegations.Roles {
		info := RoleInfo{Name: r.Name, Threshold: r.Threshold, Keys: r.KeyIDs, Paths: r.Paths}
		m, err := v.role(ctx, r.Name)
		if err != nil && !isAbsent(err) {
			return nil, err
		}
		if err == nil {
			info.Version, info.Expires = m.Signed.Version, m.Signed.Expires
			listed, err := v.tagsOf(ctx, r.Name)
			if err != nil {
				return nil, err
			}
			info.Tags = len(listed)
		}
		all = append(all, info)
	}
	return all, nil
}

// Root returns the newest root.
func (v *View) Root() *RootFile { return &RootFile{m: v.trusted.Root} }

// Delegations returns who may sign which tags, in the order in which they count, without the role of the targets keys'
// own tags.
func (v *View) Delegations() ([]Delegation, error) {
	var all []Delegation
	for _, r := range v.trusted.Targets[Targets].Signed.Delegations.Roles[1:] {
		keys, err := delegatedKeys(v.trusted.Targets[Targets], r.Name).read()
		if err != nil {
			return nil, err
		}
		all = append(all, Delegation{Name: r.Name, Paths: r.Paths, RoleKeys: keys})
	}
	return all, nil
}

// FileNames returns the names of the files that are the state, without those of earlier roots.
func (v *View) FileNames(ctx context.Context) ([]string, error) {
	names := []string{fileName(Timestamp, 0), fileName(Snapshot, v.trusted.Snapshot.Signed.Version),
		fileName(Root, v.trusted.Root.Signed.Version), fileName(Targets, v.versionOf(Targets))}
	for _, r := range v.trusted.Targets[Targets].Signed.Delegations.Roles {
		top, err := v.role(ctx, r.Name)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		names = append(names, fileName(r.Name, v.versionOf(r.Name)))
		if split(top) {
			for _, bin := range top.Signed.Delegations.SuccinctRoles.GetRoles() {
				names = append(names, fileName(bin, v.versionOf(bin)))
			}
		}
	}
	return names, nil
}

// RootName returns the name of the file of a version of the root.
func RootName(version int64) string { return fileName(Root, version) }

// Held returns why proposals cannot be published as they are.
func (v *View) Held(ctx context.Context, pending []*Proposal) ([]string, error) {
	n, err := v.choose(ctx, pending, nil)
	if err != nil {
		return nil, err
	}
	return n.held, nil
}
