// Package migrate moves an image repository from Notary v1 (Docker Content Trust) to tags that are signed here: a Plan
// says what the repository has there and what becomes of it here, and Apply does it.
//
// Every tag belongs to one role here. docker pull takes the tag of targets/releases if there is one, else that of
// targets; so does a plan. targets/releases is where Docker copies the tags of all signers: a tag that a signer's own
// delegation has with the same digest is the signer's. What remains belongs to the targets keys (role tags), unless a
// key is given for a delegation "releases".
package migrate

import (
	"cmp"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/notaryv1"
	"github.com/notation-hsm/notation-hsm/internal/tuf"
)

const (
	releases = "releases" // the delegation that Docker copies tags into
	prefix   = "targets/" // of the delegations of Notary
	maxPaths = 32         // of a delegation here
	allTags  = "*"        // the pattern of all tags
)

// Plan is what a repository has in Notary v1, and what becomes of it here.
type Plan struct {
	Repository string   `json:"repository"`
	GUN        string   `json:"gun"`
	Roles      []Role   `json:"roles"`      // of Notary
	Top        []Made   `json:"top"`        // root, snapshot and timestamp here
	Signers    []Made   `json:"signers"`    // the roles that sign tags here
	Tags       []Tag    `json:"tags"`       // that are signed here, or will be
	Left       []Left   `json:"left"`       // what is left out
	Notes      []string `json:"notes"`      // what is different here
	Signatures int      `json:"signatures"` // of Notation, that the images get unless they have them
}

// Role is a role of Notary v1.
type Role struct {
	Name      string    `json:"name"`
	Keys      []Key     `json:"keys"`
	Threshold int       `json:"threshold"`
	Paths     []string  `json:"paths,omitempty"` // prefixes of tags; unchecked, quote them
	Version   int64     `json:"version"`         // 0: it has signed nothing
	Expires   time.Time `json:"expires,omitzero"`
	Expired   bool      `json:"expired"`
	SignedBy  []string  `json:"signedBy"`
	Tags      int       `json:"tags"`
}

// Key is a key of a role of Notary v1.
type Key struct {
	ID        string    `json:"id"`
	Algorithm string    `json:"algorithm"`
	Subject   string    `json:"subject,omitempty"` // unchecked, quote it
	Expires   time.Time `json:"expires,omitzero"`  // of its certificate
	Expired   bool      `json:"expired,omitempty"`
	Unusable  string    `json:"unusable,omitempty"`
}

// Made is a role here.
type Made struct {
	Name      string   `json:"name"`
	From      string   `json:"from"` // the role of Notary
	Paths     []string `json:"paths,omitempty"`
	Keys      []string `json:"keys,omitempty"` // the new ones, as the user has named them
	Threshold int      `json:"threshold"`
	Exists    bool     `json:"exists"` // it is here already, and stays as it is
	Tags      int      `json:"tags"`
}

// Tag is a tag and the role that signs it here.
type Tag struct {
	Tag    string        `json:"tag"`
	Digest digest.Digest `json:"digest"`
	Size   int64         `json:"size"`
	From   []string      `json:"from"` // the roles of Notary that have it with this digest
	Role   string        `json:"role"`
	Signed bool          `json:"signed"` // it is signed here already
}

// Left is what is left out.
type Left struct {
	What   string `json:"what"` // may have names that are unchecked: they are quoted
	Reason string `json:"reason"`
	Lost   bool   `json:"lost"` // it is a tag that Notary has, and that will not verify here
}

// Given are the new keys, as the user has named them.
type Given struct {
	Signers   map[string][]string // of the delegations that shall exist here; nil: not decided yet
	Top       map[string][]string // of root, targets, snapshot and timestamp; none: not decided yet
	Threshold int                 // of the root; 0: as in Notary
}

// New plans the migration of a repository. It fails with Invalid if a signer is given that Notary does not have.
func New(from *notaryv1.Repository, repository string, given Given) (*Plan, error) {
	p := &Plan{Repository: repository, GUN: from.GUN, Left: []Left{}, Notes: []string{}, Tags: []Tag{}}
	for _, r := range from.Roles {
		p.addRole(r, from.Targets)
		if r.Expired {
			p.note("%s expired on %s: check that nothing newer was signed", r.Name, r.Expires.Format(time.DateOnly))
		}
	}
	b := &builder{Plan: p, given: given, here: map[string]string{}}
	b.addSigners(from.Roles)
	for _, name := range slices.Sorted(maps.Keys(given.Signers)) {
		if !slices.ContainsFunc(p.Signers, func(m Made) bool { return m.Name == name && name != tuf.Tags }) {
			return nil, failure.New(failure.Invalid, "there is no delegation %q to make for %s", name, from.GUN).
				WithHint("give --signer for delegations that the plan lists: " + b.names(from.Roles))
		}
	}
	b.addTags(from.Targets)
	b.count()
	return p, nil
}

// addRole adds a role of Notary, with what of it does not count.
func (p *Plan) addRole(r notaryv1.Role, targets []notaryv1.Target) {
	role := Role{Name: r.Name, Threshold: r.Threshold, Paths: r.Paths, Version: r.Version, Expires: r.Expires,
		Expired: r.Expired, SignedBy: r.SignedBy}
	for _, k := range r.Keys {
		one := Key{ID: k.ID, Algorithm: k.Algorithm, Subject: k.Subject, Expires: k.Expires, Expired: k.Expired}
		if k.Unusable != nil {
			one.Unusable = k.Unusable.Error()
		}
		role.Keys = append(role.Keys, one)
	}
	for _, t := range targets {
		if t.Role == r.Name {
			role.Tags++
		}
	}
	p.Roles = append(p.Roles, role)
	if r.Refused != nil {
		p.leave(false, r.Refused.Error(), "all tags of %s", r.Name)
	}
	for _, i := range r.Ignored {
		p.leave(false, i.Reason, "%.140q of %s", i.Name, r.Name)
	}
}

func (p *Plan) leave(lost bool, reason, what string, args ...any) {
	p.Left = append(p.Left, Left{What: fmt.Sprintf(what, args...), Reason: reason, Lost: lost})
}

func (p *Plan) note(format string, args ...any) {
	p.Notes = append(p.Notes, fmt.Sprintf(format, args...))
}

// Lost returns how many tags of Notary will not verify here.
func (p *Plan) Lost() (n int) {
	for _, l := range p.Left {
		if l.Lost {
			n++
		}
	}
	return n
}

// Todo returns how many tags are not signed here yet.
func (p *Plan) Todo() (n int) {
	for _, t := range p.Tags {
		if !t.Signed {
			n++
		}
	}
	return n
}

// signer returns a role that signs tags here.
func (p *Plan) signer(name string) *Made {
	i := slices.IndexFunc(p.Signers, func(m Made) bool { return m.Name == name })
	if i < 0 {
		return nil
	}
	return &p.Signers[i]
}

// Threshold returns the threshold that a role gets here.
func (p *Plan) Threshold(role string) int {
	for _, m := range slices.Concat(p.Top, p.Signers) {
		if m.Name == role {
			return m.Threshold
		}
	}
	return 1
}

// count counts the tags of each role, and the signatures of Notation.
func (p *Plan) count() {
	signatures := map[[2]string]bool{}
	for i := range p.Signers {
		p.Signers[i].Tags = 0
	}
	for _, t := range p.Tags {
		if made := p.signer(t.Role); made != nil {
			made.Tags++
		}
		signatures[[2]string{t.Role, t.Digest.String()}] = true
	}
	p.Signatures = len(signatures)
}

// builder makes a plan.
type builder struct {
	*Plan
	given Given
	here  map[string]string // the roles here, by those of Notary
}

// addSigners decides which roles there are here.
func (b *builder) addSigners(roles []notaryv1.Role) {
	for _, r := range roles {
		m := Made{Name: r.Name, From: r.Name, Keys: b.given.Top[r.Name], Threshold: max(r.Threshold, 1)}
		switch {
		case r.Name == tuf.Targets:
			b.here[r.Name] = tuf.Tags
			m.Name, m.Paths = tuf.Tags, []string{allTags}
			b.Signers = append(b.Signers, m)
			b.tellMissing(m, "--targets KEY")
		case r.Name == tuf.Root && b.given.Threshold > 0:
			if m.Threshold = b.given.Threshold; m.Threshold < r.Threshold {
				b.note("the threshold of root is %d here, and %d in Notary", m.Threshold, r.Threshold)
			}
			b.Top = append(b.Top, m)
		case r.Name == tuf.Root:
			b.Top = append(b.Top, m)
			b.tellMissing(m, "--root KEY")
		case r.Name == tuf.Snapshot || r.Name == tuf.Timestamp:
			m.Threshold = 1
			b.Top = append(b.Top, m)
		case strings.HasPrefix(r.Name, prefix):
			b.addDelegation(r)
		}
	}
}

// tellMissing notes that fewer keys are given than the threshold needs, if some are.
func (b *builder) tellMissing(m Made, flag string) {
	if n := len(m.Keys); n > 0 && n < m.Threshold {
		b.note("%s needs %d of its keys in Notary, and %d of them are given: repeat %s", m.From, m.Threshold, n, flag)
	}
}

// addDelegation adds a delegation, if it can be made here and shall be.
func (b *builder) addDelegation(r notaryv1.Role) {
	name := nameHere(r.Name)
	m := Made{Name: name, From: r.Name, Paths: patterns(r.Paths), Threshold: max(r.Threshold, 1)}
	if reason := b.reason(m); reason != "" {
		b.note("%s is not made here, since %s: its tags belong to the role %s", r.Name, reason, tuf.Tags)
		return
	}
	keys, given := b.given.Signers[name]
	switch {
	case given:
		m.Keys = keys
		b.tellMissing(m, "--signer "+name+"=KEY")
	case b.given.Signers == nil && name != releases:
	case name == releases:
		b.note("%s is not made here: its tags belong to the signers who have them too, and else to the role %s; "+
			"to make it, give --signer %s=KEY", r.Name, tuf.Tags, name)
		return
	default:
		b.note("%s is not made here: its tags belong to the role %s; to make it, give --signer %s=KEY", r.Name, tuf.Tags,
			name)
		return
	}
	b.here[r.Name] = name
	b.Signers = append(b.Signers, m)
}

// reason says why a delegation cannot be made here; "": it can.
func (b *builder) reason(m Made) string {
	switch err := tuf.CheckName(m.Name); {
	case err != nil:
		return err.Error()
	case b.signer(m.Name) != nil:
		return fmt.Sprintf("there is another one with the name %s", m.Name)
	case len(m.Paths) == 0:
		return "it may sign no tag"
	case len(m.Paths) > maxPaths:
		return fmt.Sprintf("it has %d paths, more than %d", len(m.Paths), maxPaths)
	}
	return ""
}

// nameHere returns the name of a delegation here: targets/alice is alice, and targets/alice/ci is alice-ci.
func nameHere(role string) string {
	return strings.ReplaceAll(strings.TrimPrefix(role, prefix), "/", "-")
}

// names lists the delegations of Notary as they are named here.
func (b *builder) names(roles []notaryv1.Role) string {
	var all []string
	for _, r := range roles {
		if strings.HasPrefix(r.Name, prefix) {
			all = append(all, nameHere(r.Name))
		}
	}
	return cmp.Or(strings.Join(all, ", "), "there are none")
}

var tagPrefix = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)

// patterns returns the patterns of the tags that begin with one of Notary's paths. It leaves out paths that no tag
// begins with, and those that another one covers.
func patterns(paths []string) []string {
	var all []string
	for _, path := range paths {
		if path != "" && !tagPrefix.MatchString(path) {
			continue
		}
		covered := slices.ContainsFunc(paths, func(other string) bool {
			return other != path && strings.HasPrefix(path, other)
		})
		if pattern := path + allTags; !covered && !slices.Contains(all, pattern) {
			all = append(all, pattern)
		}
	}
	return all
}

// addTags decides which digest each tag has, and which role signs it.
func (b *builder) addTags(targets []notaryv1.Target) {
	byTag := map[string][]notaryv1.Target{}
	for _, t := range targets {
		byTag[t.Tag] = append(byTag[t.Tag], t)
	}
	unpulled := 0
	for _, tag := range slices.Sorted(maps.Keys(byTag)) {
		if err := tuf.CheckTag(tag); err != nil {
			b.leave(true, err.Error(), "tag %s", tag)
			continue
		}
		of := byTag[tag]
		first := of[0]
		if i := slices.IndexFunc(of, func(t notaryv1.Target) bool { return t.Pulled }); i >= 0 {
			first = of[i]
		} else {
			unpulled++
		}
		made := Tag{Tag: tag, Digest: first.Digest, Size: first.Length, Role: b.roleOf(first, of)}
		for _, t := range of {
			if t.Digest == first.Digest {
				made.From = append(made.From, t.Role)
				continue
			}
			b.leave(false, fmt.Sprintf("%s has the tag with another digest, which counts: %s", first.Role, first.Digest),
				"tag %s of %s, %s", tag, t.Role, t.Digest)
		}
		b.Tags = append(b.Tags, made)
	}
	if unpulled > 0 {
		b.note("tags of delegations alone, which 'docker pull' does not take and 'notary list' shows: %d; here they verify",
			unpulled)
	}
}

// roleOf returns the role that signs a tag here.
func (b *builder) roleOf(first notaryv1.Target, of []notaryv1.Target) string {
	if role := b.here[first.Role]; role != "" && role != releases {
		return role
	}
	for _, t := range of {
		if role := b.here[t.Role]; t.Digest == first.Digest && role != "" && role != releases && role != tuf.Tags {
			return role
		}
	}
	return cmp.Or(b.here[first.Role], tuf.Tags)
}
