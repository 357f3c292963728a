package tuf

import (
	"context"
	"maps"
	"slices"
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
func (v *View) FileNames() []string {
	names := []string{fileName(Timestamp, 0), fileName(Snapshot, v.trusted.Snapshot.Signed.Version),
		fileName(Root, v.trusted.Root.Signed.Version)}
	for _, file := range slices.Sorted(maps.Keys(v.trusted.Snapshot.Signed.Meta)) {
		role := file[:len(file)-len(".json")]
		if top := owner(role); top == Targets || top == Tags || v.delegation(top) != nil {
			names = append(names, fileName(role, v.trusted.Snapshot.Signed.Meta[file].Version))
		}
	}
	return names
}

// RootName returns the name of the file of a version of the root.
func RootName(version int64) string { return fileName(Root, version) }

// Held returns why proposals cannot be published as they are.
func (v *View) Held(ctx context.Context, pending []*Proposal) ([]string, error) {
	n, err := v.choose(ctx, pending)
	if err != nil {
		return nil, err
	}
	return n.held, nil
}
