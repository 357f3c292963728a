package trust

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Tags pins the tags of one repository to the root of its TUF metadata: which digest a tag has is what these metadata
// say, whatever the registry says. Only the root's structure is read here; package tuf verifies its signatures.
type Tags struct {
	Scope       string `yaml:"scope" json:"scope"`             // one repository
	Threshold   int    `yaml:"threshold" json:"threshold"`     // of the root's keys; written for the reader, and checked
	Fingerprint string `yaml:"fingerprint" json:"fingerprint"` // SHA-256 of Root; checked, and compared by people
	// how long remembered metadata count while the registry gives none, in whole seconds; 0: not at all
	Stale time.Duration `yaml:"stale,omitempty" json:"-"`
	Root  Root          `yaml:"root" json:"root"` // root.json

	Keys    int       `yaml:"-" json:"keys"`        // of the root role
	Version int64     `yaml:"-" json:"rootVersion"` // of the root
	Until   time.Time `yaml:"-" json:"until"`       // when the root expires; a newer root may follow it even then
}

// Root is the content of a root.json, byte by byte, since its fingerprint is compared. It is text in YAML and JSON.
type Root []byte

// MarshalText returns the content.
func (r Root) MarshalText() ([]byte, error) { return r, nil }

// UnmarshalText copies the content from text.
func (r *Root) UnmarshalText(text []byte) error {
	*r = slices.Clone(text)
	return nil
}

// MarshalYAML returns the entry with the root as a literal block, so that a review sees it as it is.
func (t Tags) MarshalYAML() (any, error) {
	stale := ""
	if t.Stale > 0 {
		stale = FormatStale(t.Stale)
	}
	return struct {
		Scope       string     `yaml:"scope"`
		Threshold   int        `yaml:"threshold"`
		Fingerprint string     `yaml:"fingerprint"`
		Stale       string     `yaml:"stale,omitempty"`
		Root        *yaml.Node `yaml:"root"`
	}{t.Scope, t.Threshold, t.Fingerprint, stale,
		&yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.LiteralStyle, Value: string(t.Root)}}, nil
}

// FormatStale returns a duration of whole seconds in the largest unit that expresses it exactly, as in 72h.
func FormatStale(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

const (
	maxStale = 365 * 24 * time.Hour
	maxRoot  = 256 << 10 // bytes; one with ten keys has some 10 KiB
)

var rootLimits = bound.Limits{Bytes: maxRoot, Depth: bound.Depth, Elements: 10_000}

// rootRole is the part of a root.json that is read here.
type rootRole struct {
	Signatures []struct {
		KeyID string `json:"keyid"`
		Sig   string `json:"sig"`
	} `json:"signatures"`
	Signed struct {
		Type    string                     `json:"_type"`
		Version int64                      `json:"version"`
		Expires time.Time                  `json:"expires"`
		Keys    map[string]json.RawMessage `json:"keys"`
		Roles   struct {
			Root struct {
				IDs       []string `json:"keyids"`
				Threshold int      `json:"threshold"`
			} `json:"root"`
		} `json:"roles"`
	} `json:"signed"`
}

// parseRoot reads a root.json. It fails unless the root role has as many different keys as its threshold needs.
func parseRoot(data []byte) (*rootRole, error) {
	r := &rootRole{}
	if !utf8.Valid(data) {
		return nil, errors.New("it is not UTF-8")
	}
	if err := bound.JSON(data, rootLimits); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, err
	}
	role := &r.Signed.Roles.Root
	slices.Sort(role.IDs)
	role.IDs = slices.Compact(role.IDs)
	for _, id := range role.IDs {
		if _, ok := r.Signed.Keys[id]; !ok {
			return nil, fmt.Errorf("it does not have its key %.64q", id)
		}
	}
	switch {
	case r.Signed.Type != "root":
		return nil, fmt.Errorf("its type is %.64q", r.Signed.Type)
	case r.Signed.Version < 1:
		return nil, fmt.Errorf("its version is %d", r.Signed.Version)
	case role.Threshold < 1 || role.Threshold > len(role.IDs):
		return nil, fmt.Errorf("its threshold is %d of %d keys", role.Threshold, len(role.IDs))
	}
	return r, nil
}

// lacking returns how many more root keys have to sign the root. Signatures are counted, and not verified.
func (r *rootRole) lacking() int {
	signed := map[string]bool{}
	for _, s := range r.Signatures {
		if s.Sig != "" && slices.Contains(r.Signed.Roles.Root.IDs, s.KeyID) {
			signed[s.KeyID] = true
		}
	}
	return max(r.Signed.Roles.Root.Threshold-len(signed), 0)
}

// describe sets what the root says.
func (t *Tags) describe() error {
	r, err := parseRoot(t.Root)
	if err != nil {
		return failure.New(failure.Invalid, "the root for the tags of %q is not a TUF root: %w", t.Scope, err).
			WithHint("name a file with the root role's metadata, as in 1.root.json")
	}
	if n := r.lacking(); n > 0 {
		return failure.New(failure.Invalid, "the root for the tags of %q lacks %d signatures by its own keys", t.Scope, n).
			WithHint("have its custodians sign it: hsm-image tag root sign FILE --key KEY")
	}
	t.Fingerprint = fmt.Sprintf("sha256:%x", sha256.Sum256(t.Root))
	t.Threshold, t.Keys = r.Signed.Roles.Root.Threshold, len(r.Signed.Roles.Root.IDs)
	t.Version, t.Until = r.Signed.Version, r.Signed.Expires.UTC()
	return nil
}

// read validates an entry of the manifest.
func (t *Tags) read() error {
	if err := checkTagsScope(t.Scope); err != nil {
		return err
	}
	t.Scope = spelled(t.Scope)
	if err := checkStale(t.Stale); err != nil {
		return err
	}
	given := *t
	if err := t.describe(); err != nil {
		return err
	}
	if t.Fingerprint != given.Fingerprint || t.Threshold != given.Threshold {
		return failure.New(failure.Invalid,
			"the root for the tags of %q does not have the fingerprint and the threshold in the manifest", t.Scope).
			WithHint("the manifest was edited by hand: find out who edited it, and restore it; or remove the entry " +
				"with an editor and add it again")
	}
	return nil
}

func checkTagsScope(scope string) error {
	if scope == anyone {
		return failure.New(failure.Invalid, `the scope of tags is "*", and each repository has a root of its own`).
			WithHint("name the repository, as in registry.example.com/team/app")
	}
	return checkScope(scope)
}

func checkStale(stale time.Duration) error {
	if stale < 0 || stale > maxStale || stale%time.Second != 0 {
		return failure.New(failure.Invalid, "stale is %s, and has to be whole seconds, up to %s", stale,
			FormatStale(maxStale)).WithHint("write it as in 72h")
	}
	return nil
}

// AddTags pins the tags of a repository to a root, of which t has the Scope, the Root and Stale, and returns the whole
// entry. It fails with Conflict if the repository has another root already, or another Stale and t has one. With
// replace, it replaces the whole entry.
func AddTags(ctx context.Context, path string, t Tags, replace bool) (*Tags, error) {
	if err := cmp.Or(checkTagsScope(t.Scope), checkStale(t.Stale)); err != nil {
		return nil, err
	}
	t.Scope = spelled(t.Scope)
	if err := t.describe(); err != nil {
		return nil, err
	}
	err := change(ctx, path, func(m *Manifest) error {
		existing := m.findTags(t.Scope)
		switch {
		case existing == nil:
			m.Tags = append(m.Tags, t)
			return nil
		case replace:
		case existing.Fingerprint != t.Fingerprint:
			return failure.New(failure.Conflict, "the tags of %q have another root already, %s", existing.Scope,
				existing.Fingerprint).
				WithHint("compare the fingerprints, and give --replace to trust the new root instead")
		case t.Stale != 0 && t.Stale != existing.Stale:
			return failure.New(failure.Conflict, "the tags of %q have another stale already, %s", existing.Scope,
				FormatStale(existing.Stale)).
				WithHint("give --replace to change it")
		default:
			t.Stale = existing.Stale
		}
		*existing = t
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &t, nil
}

// RemoveTags removes the root of a repository's tags. It fails with NotFound if there is none, and with Invalid if a
// signer has paths in the repository.
func RemoveTags(ctx context.Context, path, scope string) error {
	return change(ctx, path, func(m *Manifest) error {
		existing := m.findTags(scope)
		if existing == nil {
			return noTags(scope).WithHint("list the repositories that have one: notation-hsm trust tags list")
		}
		gone := existing.Scope
		m.Tags = slices.DeleteFunc(m.Tags, func(t Tags) bool { return t.Scope == gone })
		return nil
	})
}

func noTags(scope string) *failure.Error {
	return failure.New(failure.NotFound, "the trust manifest has no root for the tags of %q", scope).
		WithHint("add it with: notation-hsm trust tags add " + scope + " --root FILE")
}

// Pin returns the pinned root of a repository's tags from a manifest. It fails with NotFound if there is no manifest,
// or no root in it.
func Pin(path, repository string) (*Tags, error) {
	m, err := Load(path)
	if err != nil {
		return nil, err
	}
	t := m.findTags(repository)
	if t == nil {
		return nil, noTags(repository)
	}
	return t, nil
}

// findTags returns the entry of a repository, however it is spelled, or nil.
func (m *Manifest) findTags(scope string) *Tags {
	i := slices.IndexFunc(m.Tags, func(t Tags) bool { return oneRepository(t.Scope, scope) })
	if i < 0 {
		return nil
	}
	return &m.Tags[i]
}

// checkPaths fails for signers whose paths would not count: in repositories whose tags have no root, and at a level at
// which anyone may sign.
func (m *Manifest) checkPaths() error {
	for _, s := range m.Signers {
		if len(s.Paths) == 0 {
			continue
		}
		if s.audited() {
			return failure.New(failure.Invalid, "signer %q has paths and the level %s, at which everyone may sign", s.Name,
				s.Level).WithHint("set the level to strict or permissive")
		}
		for _, scope := range s.Scopes {
			if m.findTags(scope) == nil {
				return failure.New(failure.Invalid, "signer %q has paths, and the tags of its scope %q have no root", s.Name,
					scope).
					WithHint("add the root with: notation-hsm trust tags add REPOSITORY --root FILE; or remove the paths " +
						"or the scope")
			}
		}
	}
	return nil
}
