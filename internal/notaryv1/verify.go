package notaryv1

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// reader reads and verifies one repository.
type reader struct {
	source source
	gun    string
	pin    Pin
	root   *metadata
	left   int // bytes that may still be read
	into   *Repository
}

// readRepository reads and verifies a repository.
func readRepository(ctx context.Context, s source, gun string, pin Pin) (*Repository, error) {
	if err := pin.check(); err != nil {
		return nil, err
	}
	r := &reader{source: s, gun: gun, pin: pin, left: maxTotal, into: &Repository{GUN: gun}}
	var err error
	if r.root, err = r.trustRoot(ctx); err != nil {
		return nil, err
	}
	timestamp, err := r.readRole(ctx, roleTimestamp, fileMeta{})
	if err != nil {
		return nil, err
	}
	snapshot, err := r.readRole(ctx, roleSnapshot, timestamp.Meta[roleSnapshot])
	if err != nil {
		return nil, err
	}
	if !snapshot.Meta[roleRoot].matches(r.root.raw) {
		return nil, r.refuse(roleRoot, errors.New("it is not the file that the snapshot lists")).
			WithHint("read it again, since it may have been published meanwhile; if it fails again, the files are mixed up")
	}
	if _, err := r.readRole(ctx, roleRoot, fileMeta{}); err != nil {
		return nil, err
	}
	targets, err := r.readRole(ctx, roleTargets, snapshot.Meta[roleTargets])
	if err != nil {
		return nil, err
	}
	slices.SortFunc(r.into.Roles, func(a, b Role) int {
		order := []string{roleRoot, roleTargets, roleSnapshot, roleTimestamp}
		return cmp.Compare(slices.Index(order, a.Name), slices.Index(order, b.Name))
	})
	top := slices.IndexFunc(r.into.Roles, func(role Role) bool { return role.Name == roleTargets })
	if err := r.addTargets(targets, &r.into.Roles[top], []string{""}); err != nil {
		return nil, err
	}
	if err := r.readDelegations(ctx, targets, roleTargets, []string{""}, snapshot.Meta); err != nil {
		return nil, err
	}
	markPulled(r.into.Targets)
	return r.into, nil
}

// readRole reads the file of a role of the root, verifies it, and adds the role. meta is what the snapshot or the
// timestamp lists for the file.
func (r *reader) readRole(ctx context.Context, name string, meta fileMeta) (*metadata, error) {
	limit := map[string]int{roleTimestamp: maxTimestamp, roleSnapshot: maxSnapshot, roleTargets: maxTargets}[name]
	m := r.root
	var err error
	switch name {
	case roleRoot:
	case roleTimestamp:
		m, err = r.read(ctx, file{role: name}, limit)
	default:
		m, err = r.readListed(ctx, name, meta, limit)
	}
	if err != nil {
		return nil, err
	}
	role, ok := r.root.Roles[name]
	if !ok {
		return nil, r.refuse(name, errors.New("the root has no such role"))
	}
	keys, err := role.keyRing(r.root.Keys)
	if err != nil {
		return nil, r.refuse(name, err)
	}
	signed, err := m.verify(keys, role.Threshold)
	if err != nil {
		return nil, r.refuse(name, err)
	}
	r.into.Roles = append(r.into.Roles, Role{Name: name, Keys: keys, Threshold: role.Threshold, Version: m.Version,
		Expires: m.Expires, Expired: !time.Now().Before(m.Expires), SignedBy: signed})
	return m, nil
}

// readDelegations reads the roles that a role delegates to, and those below them.
func (r *reader) readDelegations(ctx context.Context, parent *metadata, name string, paths []string,
	listed map[string]fileMeta) error {
	for _, d := range parent.Delegations.Roles {
		if len(r.into.Roles) == maxRoles || strings.Count(d.Name, "/") > maxDepth {
			return failure.New(failure.Unsupported, "cannot read %q: it has more than %d roles, or delegations deeper than %d",
				r.gun, maxRoles, maxDepth)
		}
		keys, err := d.keyRing(parent.Delegations.Keys)
		if err != nil {
			return r.refuse(name, fmt.Errorf("its delegation %s has %w", d.Name, err))
		}
		role := Role{Name: d.Name, Keys: keys, Threshold: d.Threshold, Paths: restrict(d.Paths, paths)}
		meta, ok := listed[d.Name]
		if !ok {
			r.into.Roles = append(r.into.Roles, role)
			continue
		}
		m, err := r.readListed(ctx, d.Name, meta, maxTargets)
		if err != nil {
			return err
		}
		role.Version, role.Expires, role.Expired = m.Version, m.Expires, !time.Now().Before(m.Expires)
		if role.SignedBy, role.Refused = m.verify(keys, d.Threshold); role.Refused != nil {
			r.into.Roles = append(r.into.Roles, role)
			continue
		}
		if err := r.addTargets(m, &role, role.Paths); err != nil {
			return err
		}
		r.into.Roles = append(r.into.Roles, role)
		if err := r.readDelegations(ctx, m, d.Name, role.Paths, listed); err != nil {
			return err
		}
	}
	return nil
}

// restrict returns the paths of a delegation that begin with a path of its parent.
func restrict(paths, parent []string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(path string) bool { return !within(path, parent) })
}

// within reports whether a name begins with one of the paths.
func within(name string, paths []string) bool {
	return slices.ContainsFunc(paths, func(path string) bool { return strings.HasPrefix(name, path) })
}

// addTargets adds the targets of a role, in the order of their names.
func (r *reader) addTargets(m *metadata, role *Role, paths []string) error {
	for _, name := range slices.Sorted(maps.Keys(m.Targets)) {
		meta := m.Targets[name]
		if len(r.into.Targets)+len(role.Ignored) >= maxTargetCount {
			return failure.New(failure.Unsupported, "cannot read %q: it has more than %d targets", r.gun, maxTargetCount)
		}
		reason := ""
		switch {
		case !within(name, paths):
			reason = "it is outside of the role's paths"
		case !tagPattern.MatchString(name):
			reason = "it is not a tag"
		case meta.check() != nil || meta.Hashes["sha256"] == nil:
			reason = "it has no usable SHA-256"
		}
		if reason != "" {
			role.Ignored = append(role.Ignored, Ignored{Name: name, Reason: reason})
			continue
		}
		r.into.Targets = append(r.into.Targets, Target{Tag: name, Length: meta.Length, Role: role.Name,
			Digest: digest.NewDigestFromEncoded(digest.SHA256, hex.EncodeToString(meta.Hashes["sha256"]))})
	}
	return nil
}

// markPulled sets Target.Pulled.
func markPulled(targets []Target) {
	rank := func(role string) int {
		switch {
		case role == roleReleases:
			return 3
		case strings.HasPrefix(role, roleReleases+"/"):
			return 2
		case role == roleTargets:
			return 1
		}
		return 0
	}
	best := map[string]int{}
	for _, t := range targets {
		best[t.Tag] = max(best[t.Tag], rank(t.Role))
	}
	for i, t := range targets {
		targets[i].Pulled = (t.Role == roleReleases || t.Role == roleTargets) && rank(t.Role) == best[t.Tag]
	}
}

// readListed reads a file that the snapshot or the timestamp lists.
func (r *reader) readListed(ctx context.Context, role string, meta fileMeta, limit int) (*metadata, error) {
	if meta.check() != nil {
		return nil, r.refuse(role, errors.New("no hash of it is listed"))
	}
	m, err := r.read(ctx, file{role: role, sum: meta.sum()}, limit)
	if err != nil {
		return nil, err
	}
	if !meta.matches(m.raw) {
		return nil, r.refuse(role, errors.New("it is not the file whose hash is listed")).
			WithHint("read it again, since it may have been published meanwhile; if it fails again, the files are mixed up")
	}
	return m, nil
}

// read reads a file and parses it.
func (r *reader) read(ctx context.Context, f file, limit int) (*metadata, error) {
	data, err := r.source.read(ctx, f, min(limit, r.left))
	if err != nil {
		return nil, err
	}
	r.left -= len(data)
	return parseFile(data, f, limit)
}

func parseFile(data []byte, f file, limit int) (*metadata, error) {
	m, err := parse(data, f.role, limit)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read metadata of role %s: %w", f.role, err)
	}
	return m, nil
}

// refuse returns the error for a role that does not verify.
func (r *reader) refuse(role string, err error) *failure.Error {
	return failure.New(failure.Denied, "cannot verify role %s of %q: %w", role, r.gun, err)
}
