package tuf

import (
	"context"
	"crypto/sha256"
	"maps"
	"slices"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Publication is a new state that is to be stored as a whole.
type Publication struct {
	Files map[string][]byte // the new files, with snapshot and timestamp
	Keep  []string          // names of the published files that stay
	In    []string          // IDs of the proposals whose files are all in it, or older than what is
	Held  []string          // why other proposals are not in it
}

// Begin returns the first state of a repository: no tags, and no delegation but that of the targets keys. It fails when
// the root lacks signatures, or the signers are not enough for targets, snapshot and timestamp.
func Begin(ctx context.Context, root *RootFile, signers []*Signer) (*Publication, error) {
	data, err := root.Encode()
	if err != nil {
		return nil, err
	}
	if _, err := CheckPin(data); err != nil {
		return nil, err
	}
	if root.m.Signed.Version != 1 {
		return nil, invalid("the root has version %d, and a new repository begins with version 1", root.m.Signed.Version)
	}
	keys := rootKeys(root.m, Targets)
	targets := metadata.Targets(expiry(targetsLifetime))
	targets.Signed.Delegations = &metadata.Delegations{Keys: map[string]*metadata.Key{}, Roles: []metadata.DelegatedRole{
		{Name: Tags, KeyIDs: keys.ids, Threshold: keys.threshold, Paths: []string{"*"}}}}
	for _, id := range keys.ids {
		targets.Signed.Delegations.Keys[id] = keys.keys[id]
	}
	tags := metadata.Targets(expiry(targetsLifetime))
	c := composer{signers: signers, root: root.m, files: map[string][]byte{root.Name(): data},
		meta: map[string]*metadata.MetaFiles{}}
	for role, m := range map[string]*targetsFile{Targets: targets, Tags: tags} {
		if _, err := sign(ctx, m, keys.ids, signers); err != nil {
			return nil, err
		}
		if n := lacking(m, keys); n > 0 {
			return nil, lacks(Targets, n)
		}
		if err := c.add(role, m); err != nil {
			return nil, err
		}
	}
	if err := c.finish(ctx, 1, 1); err != nil {
		return nil, err
	}
	return &Publication{Files: c.files}, nil
}

func lacks(role string, n int) error {
	return failure.New(failure.Denied, "%d more keys of %s are needed", n, role).
		WithHint("name the keys of " + role + " with --" + role)
}

// CanPublish reports whether signers are enough for snapshot and timestamp, under the published root or a proposed one.
func (v *View) CanPublish(pending []*Proposal, signers []*Signer) bool {
	n := v.newNext(pending)
	for {
		enough := online(n.root, signers)
		if enough || n.root != v.trusted.Root || !n.chooseRoot() {
			return enough
		}
	}
}

// online reports whether signers are enough for snapshot and timestamp under a root.
func online(root *rootFile, signers []*Signer) bool {
	for _, role := range []string{Snapshot, Timestamp} {
		if keys := rootKeys(root, role); len(ofRole(keys, signers)) < keys.threshold {
			return false
		}
	}
	return true
}

// Publish returns the state that follows the view with the proposals that can be in it, signed anew by snapshot and
// timestamp. It returns nil if nothing is new, unless renew asks for new ones, or half of the lifetime of either has
// passed. The proposals are verified: nothing that lacks signatures, goes back, or leaves a role inconsistent is
// published.
func (v *View) Publish(ctx context.Context, pending []*Proposal, signers []*Signer, renew bool) (*Publication, error) {
	n, err := v.choose(ctx, pending, func(root *rootFile) bool { return online(root, signers) })
	if err != nil {
		return nil, err
	}
	snapshot, timestamp := v.trusted.Snapshot, v.trusted.Timestamp
	c := composer{signers: signers, root: n.root, files: map[string][]byte{}, meta: maps.Clone(snapshot.Signed.Meta)}
	for role, p := range n.chosen {
		if role == Root {
			data, err := encodeRoot(p.root)
			if err != nil {
				return nil, err
			}
			c.files[fileName(Root, p.root.Signed.Version)] = data
			continue
		}
		if err := c.add(role, p.roles[role]); err != nil {
			return nil, err
		}
	}
	signed := verify(snapshot, snapshot.Signatures, rootKeys(n.root, Snapshot)) &&
		verify(timestamp, timestamp.Signatures, rootKeys(n.root, Timestamp))
	news := len(c.files) > 0 || !signed
	late := halfway(snapshot.Signed.Expires, snapshotLifetime) || halfway(timestamp.Signed.Expires, timestampLifetime)
	if !news && !renew && !late {
		return n.publication(&Publication{}), nil
	}
	if err := c.finish(ctx, snapshot.Signed.Version+1, timestamp.Signed.Version+1); err != nil {
		return nil, err
	}
	made := &Publication{Files: c.files}
	for version := range v.trusted.Root.Signed.Version {
		made.Keep = append(made.Keep, fileName(Root, version+1))
	}
	for _, role := range append(n.roles(), Targets) {
		made.Keep = append(made.Keep, fileName(role, c.meta[role+".json"].Version))
	}
	made.Keep = slices.DeleteFunc(made.Keep, func(name string) bool { return c.files[name] != nil })
	slices.Sort(made.Keep)
	return n.publication(made), nil
}

// roles returns the roles that list tags and have a file, with their bins.
func (n *next) roles() (names []string) {
	for _, r := range n.targets.Signed.Delegations.Roles {
		top := n.tops[r.Name]
		if top == nil {
			continue
		}
		names = append(names, r.Name)
		if split(top) {
			names = append(names, top.Signed.Delegations.SuccinctRoles.GetRoles()...)
		}
	}
	return names
}

// halfway reports whether half of a lifetime has passed.
func halfway(expires time.Time, lifetime time.Duration) bool { return time.Until(expires) < lifetime/2 }

// publication completes a publication with what becomes of the proposals.
func (n *next) publication(made *Publication) *Publication {
	made.Held = n.held
	for _, p := range n.pending {
		in := true
		for role := range p.raw {
			in = in && n.settled(p, role)
		}
		if in {
			made.In = append(made.In, p.ID)
		}
	}
	return made
}

// settled reports whether a role's file of a proposal is chosen, or cannot be chosen any more.
func (n *next) settled(p *Proposal, role string) bool {
	if role == Root {
		return p.root.Signed.Version <= n.root.Signed.Version
	}
	version := n.view.versionOf(role)
	if c := n.chosen[role]; c != nil {
		version = c.roles[role].Signed.Version
	}
	return p.roles[role].Signed.Version <= version || role != Targets && !n.mayDelegate(owner(role))
}

// mayDelegate reports whether a role is delegated to, or proposed to be.
func (n *next) mayDelegate(role string) bool {
	return delegationItems(n.targets)[role] != "" || slices.ContainsFunc(n.pending, func(p *Proposal) bool {
		m := p.roles[Targets]
		return m != nil && m.Signed.Version > n.view.versionOf(Targets) && delegationItems(m)[role] != ""
	})
}

// composer makes snapshot and timestamp for files.
type composer struct {
	signers []*Signer
	root    *rootFile
	files   map[string][]byte
	meta    map[string]*metadata.MetaFiles
}

// add adds the file of a role.
func (c *composer) add(role string, m *targetsFile) error {
	data, err := encode(m)
	if err != nil {
		return err
	}
	c.files[fileName(role, m.Signed.Version)] = data
	c.meta[role+".json"] = describe(data, m.Signed.Version)
	return nil
}

func describe(data []byte, version int64) *metadata.MetaFiles {
	sum := sha256.Sum256(data)
	return &metadata.MetaFiles{Length: int64(len(data)), Hashes: metadata.Hashes{"sha256": sum[:]}, Version: version}
}

// finish makes snapshot and timestamp.
func (c *composer) finish(ctx context.Context, snapshotVersion, timestampVersion int64) error {
	snapshot := metadata.Snapshot(expiry(snapshotLifetime))
	snapshot.Signed.Version, snapshot.Signed.Meta = snapshotVersion, c.meta
	data, err := signed(ctx, snapshot, Snapshot, c)
	if err != nil {
		return err
	}
	c.files[fileName(Snapshot, snapshotVersion)] = data
	m := metadata.Timestamp(expiry(timestampLifetime))
	m.Signed.Version = timestampVersion
	m.Signed.Meta = map[string]*metadata.MetaFiles{Snapshot + ".json": describe(data, snapshotVersion)}
	data, err = signed(ctx, m, Timestamp, c)
	c.files[fileName(Timestamp, timestampVersion)] = data
	return err
}

// signed returns the file of snapshot or timestamp with the signatures that it needs.
func signed[T metadata.Roles](ctx context.Context, m *metadata.Metadata[T], role string, c *composer) ([]byte, error) {
	keys := rootKeys(c.root, role)
	if _, err := sign(ctx, m, keys.ids, c.signers); err != nil {
		return nil, err
	}
	if n := lacking(m, keys); n > 0 {
		return nil, lacks(role, n)
	}
	return encode(m)
}
