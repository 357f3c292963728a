package tuf

import (
	"context"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/theupdateframework/go-tuf/v2/metadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/trustedmetadata"
	"github.com/theupdateframework/go-tuf/v2/metadata/updater"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// targetsFile are the metadata of a role that lists tags, or delegates them.
type targetsFile = metadata.Metadata[metadata.TargetsType]

// View is one verified state of a repository's tags. It is not safe for concurrent use.
type View struct {
	updater *updater.Updater
	trusted trustedmetadata.TrustedMetadata
	files   Files
	fetch   *fetcher
	dir     string
	stale   bool
}

// Target is what a tag is.
type Target struct {
	Tag    string        `json:"tag"`
	Digest digest.Digest `json:"digest"` // of the manifest
	Size   int64         `json:"size"`   // of the manifest, in bytes
	Role   string        `json:"role"`   // the role that signed it: tags, or a delegation
	Stale  bool          `json:"stale,omitempty"`
}

// Versions are the versions of the top roles.
type Versions struct{ Root, Timestamp, Snapshot, Targets int64 }

// Versions returns the versions of the view.
func (v *View) Versions() Versions {
	return Versions{v.trusted.Root.Signed.Version, v.trusted.Timestamp.Signed.Version,
		v.trusted.Snapshot.Signed.Version, v.trusted.Targets[Targets].Signed.Version}
}

// Expiry are the times at which roles expire.
type Expiry struct{ Root, Timestamp, Snapshot, Targets time.Time }

// Expiry returns when the roles of the view expire.
func (v *View) Expiry() Expiry {
	return Expiry{v.trusted.Root.Signed.Expires, v.trusted.Timestamp.Signed.Expires, v.trusted.Snapshot.Signed.Expires,
		v.trusted.Targets[Targets].Signed.Expires}
}

// remembered returns the versions of root and timestamp, as they are on the disk or as they were just read.
func (v *View) remembered() [2]int64 {
	if v.trusted.Timestamp != nil {
		return [2]int64{v.trusted.Root.Signed.Version, v.trusted.Timestamp.Signed.Version}
	}
	data, err := bound.ReadFile(filepath.Join(v.dir, Timestamp+".json"), maxTimestamp)
	if err != nil {
		return [2]int64{}
	}
	m, err := parse[metadata.TimestampType](Timestamp, data, maxTimestamp)
	if err != nil {
		return [2]int64{}
	}
	return [2]int64{v.updater.GetTrustedMetadataSet().Root.Signed.Version, m.Signed.Version}
}

// check verifies what TUF leaves to the application: the delegations of targets.json.
func (v *View) check() error { return checkDelegations(v.trusted.Targets[Targets]) }

// checkDelegations verifies that targets.json lists no tags, and delegations that this package makes.
func checkDelegations(targets *targetsFile) error {
	refuse := func(format string, args ...any) error {
		return failure.New(failure.Denied, "cannot use targets.json: "+format, args...).
			WithHint("use the hsm-image that wrote it, or a newer one")
	}
	d := targets.Signed.Delegations
	switch {
	case len(targets.Signed.Targets) > 0:
		return refuse("it lists tags itself")
	case d == nil || len(d.Roles) == 0 || d.Roles[0].Name != Tags:
		return refuse("its first delegation is not %q", Tags)
	case len(d.Roles) > maxDelegations+1:
		return refuse("it has more than %d delegations", maxDelegations)
	}
	names := map[string]bool{}
	for _, r := range d.Roles {
		if r.Name != Tags {
			if err := CheckName(r.Name); err != nil {
				return refuse("%w", err)
			}
		}
		if names[r.Name] || r.Threshold < 1 || len(r.KeyIDs) > maxKeys || len(r.Paths) > maxPaths || len(r.Paths) == 0 {
			return refuse("its delegation %q is there twice, or has no threshold, too many keys or no paths", r.Name)
		}
		names[r.Name] = true
	}
	return nil
}

// Resolve returns what a tag is. It fails with Denied if no role that may sign the tag has signed it.
//
// The search of TUF (section 5.6.7) ends in the bins of a role: succinct_roles are terminating. Here it goes on with
// the next role, so that a role with many tags does not hide those after it.
func (v *View) Resolve(ctx context.Context, tag string) (Target, error) {
	if err := CheckTag(tag); err != nil {
		return Target{}, err
	}
	unlock, err := state.Lock(ctx, v.dir) // for files of roles, which are remembered
	if err != nil {
		return Target{}, err
	}
	defer unlock()
	for _, r := range v.trusted.Targets[Targets].Signed.Delegations.Roles {
		if ok, err := r.IsDelegatedPath(tag); err != nil || !ok {
			continue
		}
		m, err := v.role(ctx, r.Name)
		if err == nil && split(m) {
			m, err = v.role(ctx, binOf(m, tag))
		}
		switch {
		case isAbsent(err):
			return Target{}, failure.New(failure.Denied,
				"tag %s is not signed: the delegation %s, which may sign it, has signed "+
					"nothing yet", tag, r.Name).WithHint("have it signed: hsm-image tag sign")
		case err != nil:
			return Target{}, err
		}
		if found := m.Signed.Targets[tag]; found != nil {
			return v.target(tag, r.Name, found)
		}
		if r.Terminating {
			break
		}
	}
	return Target{}, v.unsigned(tag)
}

// target returns what a role has signed of a tag.
func (v *View) target(tag, role string, found *metadata.TargetFiles) (Target, error) {
	t := Target{Tag: tag, Size: found.Length, Role: role, Stale: v.stale}
	sum, ok := found.Hashes["sha256"]
	if t.Digest = digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(sum)); !ok || t.Digest.Validate() != nil ||
		found.Length <= 0 {
		return Target{}, failure.New(failure.Denied, "tag %s is signed without the SHA-256 or the size of a manifest", tag).
			WithHint("sign the tag again: hsm-image tag sign")
	}
	return t, nil
}

// owner returns the role that a bin belongs to, or the role itself.
func owner(role string) string {
	if binSuffix().MatchString(role) {
		return parentOf(role)
	}
	return role
}

// unsigned returns the failure for a tag that no role lists. It names a removed delegation that listed it, if its file
// is remembered.
func (v *View) unsigned(tag string) error {
	var removed string
	for file := range v.trusted.Snapshot.Signed.Meta {
		role := owner(file[:len(file)-len(filepath.Ext(file))])
		if role == Targets || role == Tags || v.delegation(role) != nil {
			continue
		}
		if listed, err := os.ReadFile(filepath.Join(v.dir, filepath.Base(file))); err == nil {
			if m, err := parse[metadata.TargetsType](file, listed, maxTargets); err == nil && m.Signed.Targets[tag] != nil {
				removed = role
			}
		}
	}
	if removed != "" {
		return failure.New(failure.Denied, "tag %s is no longer signed: the delegation %s, which signed it, was removed", tag,
			removed).WithHint("have another signer sign it: hsm-image tag sign")
	}
	return failure.New(failure.Denied, "tag %s is not signed: no role that may sign it lists it", tag).
		WithHint("have it signed: hsm-image tag sign")
}

// delegation returns the delegation of a name, or nil.
func (v *View) delegation(name string) *metadata.DelegatedRole {
	roles := v.trusted.Targets[Targets].Signed.Delegations.Roles
	if i := slices.IndexFunc(roles, func(r metadata.DelegatedRole) bool { return r.Name == name }); i >= 0 {
		return &roles[i]
	}
	return nil
}

// role returns the verified metadata of targets, of a role that lists tags, or of a bin. It fails with NotFound for a
// role that has signed nothing.
func (v *View) role(ctx context.Context, name string) (*targetsFile, error) {
	if m := v.trusted.Targets[name]; m != nil {
		return m, v.checkBins(name, m)
	}
	parent := parentOf(name)
	if parent != Targets {
		if _, err := v.role(ctx, parent); err != nil {
			return nil, err
		}
	}
	meta := v.trusted.Snapshot.Signed.Meta[name+".json"]
	if meta == nil {
		return nil, failure.New(failure.NotFound, "the role %s has signed nothing", name)
	}
	path := filepath.Join(v.dir, name+".json")
	if data, err := bound.ReadFile(path, maxTargets); err == nil && checkJSON(name, data, maxTargets) == nil {
		if m, err := v.trusted.UpdateDelegatedTargets(data, name, parent); err == nil {
			return m, v.checkBins(name, m)
		}
	}
	if v.files == nil {
		return nil, failure.New(failure.Unavailable, "cannot read the tag metadata of %s: the registry cannot be reached",
			name)
	}
	v.fetch.ctx = ctx
	length := meta.Length
	if length == 0 {
		length = maxTargets
	}
	data, err := v.fetch.DownloadFile(fileName(name, meta.Version), length, 0)
	if err != nil {
		if v.fetch.failed != nil {
			return nil, v.fetch.failed
		}
		return nil, explain(err)
	}
	m, err := v.trusted.UpdateDelegatedTargets(data, name, parent)
	if err != nil {
		return nil, explain(err)
	}
	if err := keep(path, data); err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot write %s: %w", path, err).
			WithHint("check the folder's permissions and that the disk is not full")
	}
	return m, v.checkBins(name, m)
}

// checkBins verifies that a role other than targets delegates its tags to its own bins alone, if at all, under its own
// keys.
func (v *View) checkBins(name string, m *targetsFile) error {
	if name == Targets {
		return nil
	}
	if checkTargets(name, m, delegatedKeys(v.trusted.Targets[parentOf(name)], name)) != nil {
		return failure.New(failure.Denied, "cannot use the tag metadata of the role %s: it delegates tags to others", name).
			WithHint("use the hsm-image that wrote it, or a newer one")
	}
	return nil
}

// keep remembers a file of a role. It need not be on the disk at once: the snapshot has its hash.
func keep(path string, data []byte) error {
	file, err := os.CreateTemp(filepath.Dir(path), "role")
	if err != nil {
		return err
	}
	_, err = file.Write(data)
	if err = errors.Join(err, file.Close()); err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		_ = os.Remove(file.Name())
	}
	return err
}

// List returns the targets of every role that lists tags, in the order in which roles count, and tags by name. A tag of
// several roles is listed for each; the first is what it is.
func (v *View) List(ctx context.Context) ([]Target, error) {
	var all []Target
	for _, r := range v.trusted.Targets[Targets].Signed.Delegations.Roles {
		listed, err := v.tagsOf(ctx, r.Name)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, tag := range slices.Sorted(maps.Keys(listed)) {
			if ok, err := r.IsDelegatedPath(tag); err != nil || !ok {
				continue // it does not count
			}
			all = append(all, Target{Tag: tag, Role: r.Name, Size: listed[tag].Length, Stale: v.stale,
				Digest: digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(listed[tag].Hashes["sha256"]))})
		}
	}
	return all, nil
}

// tagsOf returns all tags that a role lists, in its own file or in its bins.
func (v *View) tagsOf(ctx context.Context, name string) (map[string]*metadata.TargetFiles, error) {
	top, err := v.role(ctx, name)
	if err != nil {
		return nil, err
	}
	all := maps.Clone(top.Signed.Targets)
	if all == nil {
		all = map[string]*metadata.TargetFiles{}
	}
	if d := top.Signed.Delegations; d != nil && d.SuccinctRoles != nil {
		for _, bin := range d.SuccinctRoles.GetRoles() {
			m, err := v.role(ctx, bin)
			if err != nil {
				return nil, err
			}
			maps.Copy(all, m.Signed.Targets)
		}
	}
	return all, nil
}

// versionOf returns the version of a role that the snapshot names, or 0.
func (v *View) versionOf(role string) int64 {
	if meta := v.trusted.Snapshot.Signed.Meta[role+".json"]; meta != nil {
		return meta.Version
	}
	return 0
}
