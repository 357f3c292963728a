package trust

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// tagsFile is the file of a trust directory with the repositories whose tags have a root. Notation does not read it.
const tagsFile = "tags.json"

const (
	tagsVersion = 1
	maxTagsFile = 4 << 20 // bytes; a manifest is smaller
)

var tagsLimits = bound.Limits{Bytes: maxTagsFile, Depth: bound.Depth, Elements: 100_000}

// pinnedFile is the content of tagsFile.
type pinnedFile struct {
	Version      int       `json:"version"`
	Repositories []*Pinned `json:"repositories"`
}

// Pinned is what a trust directory says about the tags of one repository.
type Pinned struct {
	Scope        string `json:"scope"`           // canonical
	StaleSeconds int64  `json:"stale,omitempty"` // how long remembered metadata count while the registry gives none
	Root         Root   `json:"root"`            // root.json
	// every signer of the repository; empty if everyone whom the trust policy accepts may sign every tag
	Signers []PinnedSigner `json:"signers,omitempty"`
}

// PinnedSigner is a signer of a repository, as Signer.
type PinnedSigner struct {
	Name        string   `json:"name"`
	Fingerprint string   `json:"fingerprint"`
	Kind        Kind     `json:"kind"`
	Subject     string   `json:"subject,omitempty"`
	Paths       []string `json:"paths,omitempty"`

	who identity
}

// Stale returns StaleSeconds as a duration.
func (p *Pinned) Stale() time.Duration { return time.Duration(p.StaleSeconds) * time.Second }

// Allows fails unless a signer may sign the tag with a certificate chain, leaf first, that Notation has verified for
// the repository. As in the trust policy, a self-signed certificate is the leaf; a CA is anywhere in the chain, and the
// leaf's subject has the signer's attributes. One signer that may is enough, if several have the chain.
func (p *Pinned) Allows(tag string, chain []*x509.Certificate) error {
	if len(p.Signers) == 0 {
		return nil
	}
	var denied []string
	for _, s := range p.Signers {
		if !s.has(chain) {
			continue
		}
		if matchPaths(s.Paths, tag) {
			return nil
		}
		denied = append(denied, fmt.Sprintf("signer %q may only sign the tags %s", s.Name, strings.Join(s.Paths, ", ")))
	}
	if denied == nil {
		return fmt.Errorf("its certificate is of no signer of the tags of %s", p.Scope)
	}
	return errors.New(strings.Join(denied, "; "))
}

// has reports whether a chain is the signer's.
func (s PinnedSigner) has(chain []*x509.Certificate) bool {
	if len(chain) == 0 {
		return false
	}
	if s.Kind == SelfSigned {
		return fingerprint(chain[0]) == s.Fingerprint
	}
	if !slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return fingerprint(c) == s.Fingerprint }) {
		return false
	}
	if len(s.who) == 0 {
		return true
	}
	leaf, err := readIdentity(chain[0].Subject.String())
	return err == nil && len(leaf) > 0 && s.who.covers(leaf)
}

// ReadTags returns the repositories of a trust directory whose tags have a root, by their canonical names. Without the
// file there are none. It fails when the file cannot be read, is larger than allowed, or has anything that this version
// does not know: to ignore a part of it would be to trust more.
//
// Read the trust policy before and after: if it is the same, the tags are not older than the policy (Export).
func ReadTags(dir string) (map[string]*Pinned, error) {
	path := filepath.Join(dir, tagsFile)
	data, err := bound.ReadFile(path, maxTagsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the roots of tags: %w", err).
			WithHint("check the file's permissions")
	}
	pinned, err := parseTags(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot use the roots of tags in %s: %w", path, err).
			WithHint("remove the file and write it again with: notation-hsm trust export")
	}
	return pinned, nil
}

func parseTags(data []byte) (map[string]*Pinned, error) {
	if err := bound.JSON(data, tagsLimits); err != nil {
		return nil, err
	}
	var file pinnedFile
	if err := json.Unmarshal(data, &struct{ Version *int }{&file.Version}); err != nil {
		return nil, err
	}
	if file.Version != tagsVersion {
		return nil, fmt.Errorf("version %d is not supported, only %d", file.Version, tagsVersion)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&file); err != nil {
		return nil, err
	}
	pinned := map[string]*Pinned{}
	for _, p := range file.Repositories {
		if p == nil {
			return nil, errors.New("a repository is null")
		}
		if err := p.read(); err != nil {
			return nil, fmt.Errorf("the repository %.200q: %w", p.Scope, err)
		}
		if _, ok := pinned[p.Scope]; ok {
			return nil, fmt.Errorf("the repository %.200q is in it twice", p.Scope)
		}
		pinned[p.Scope] = p
	}
	return pinned, nil
}

// fingerprintForm is the form of fingerprints.
var fingerprintForm = sync.OnceValue(func() *regexp.Regexp { // not at the start, which every signature pays for
	return regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
})

// read validates a repository of the file.
func (p *Pinned) read() error {
	if name, err := repository(p.Scope); err != nil {
		return err
	} else if name != p.Scope || name == anyone {
		return errors.New("it is not the canonical name of a repository")
	}
	if p.StaleSeconds < 0 || p.StaleSeconds > int64(maxStale/time.Second) {
		return fmt.Errorf("stale is %d seconds, and has to be 0 to %d", p.StaleSeconds, maxStale/time.Second)
	}
	if _, err := parseRoot(p.Root); err != nil {
		return fmt.Errorf("its root: %w", err)
	}
	for i := range p.Signers {
		s := &p.Signers[i]
		if !fingerprintForm().MatchString(s.Fingerprint) || s.Kind != SelfSigned && s.Kind != CA {
			return fmt.Errorf("the signer %.64q is of kind %.64q with the fingerprint %.100q", s.Name, s.Kind, s.Fingerprint)
		}
		err := validatePaths(s.Paths)
		if err == nil {
			s.who, err = s.identity()
		}
		if err != nil {
			return fmt.Errorf("the signer %.64q: %w", s.Name, err)
		}
	}
	return nil
}

// identity returns the attributes that the subject of a signing certificate needs. A self-signed certificate is known
// by its fingerprint, and its subject may lack what Notation needs in an identity.
func (s PinnedSigner) identity() (identity, error) {
	if s.Kind == SelfSigned {
		return nil, nil
	}
	return readIdentity(s.Subject)
}

// pinned returns what the trust directory gets, by scope in order: for each repository, its signers, or those of "*" if
// it has none. It lists none where everyone may sign, or a statement of others decides who may.
func (m *Manifest) pinned(others []trustpolicy.TrustPolicy) ([]*Pinned, error) {
	groups, err := m.groups()
	if err != nil {
		return nil, err
	}
	var all []*Pinned
	for _, t := range m.Tags {
		scope, err := repository(t.Scope)
		if err != nil {
			return nil, err
		}
		p := &Pinned{Scope: scope, StaleSeconds: int64(t.Stale / time.Second), Root: t.Root}
		for _, s := range signersOf(scope, groups, others) {
			p.Signers = append(p.Signers, PinnedSigner{Name: s.Name, Fingerprint: s.Fingerprint, Kind: s.Kind,
				Subject: s.Subject, Paths: s.Paths})
		}
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Pinned) int { return strings.Compare(a.Scope, b.Scope) })
	return all, nil
}

// signersOf returns the signers whose certificates the trust policy demands in a repository, or none.
func signersOf(scope string, groups []group, others []trustpolicy.TrustPolicy) []Signer {
	for _, name := range []string{scope, anyone} {
		for _, statement := range others {
			if slices.ContainsFunc(statement.RegistryScopes, func(s string) bool { return oneRepository(s, name) }) {
				return nil
			}
		}
		for _, g := range groups {
			if !oneRepository(g.scope, name) {
				continue
			}
			if g.signers[0].audited() {
				return nil
			}
			return g.signers
		}
	}
	return nil
}

// readPinned reads the file that an export is about to replace, in the order of scopes.
func (f folder) readPinned() ([]*Pinned, error) {
	pinned, err := ReadTags(filepath.Dir(f.policy))
	var all []*Pinned
	for _, p := range pinned {
		all = append(all, p)
	}
	slices.SortFunc(all, func(a, b *Pinned) int { return strings.Compare(a.Scope, b.Scope) })
	return all, err
}

// withOld returns the repositories of an export and those that only the last one had, in the order of scopes.
func withOld(pinned, old []*Pinned) []*Pinned {
	all := slices.Clone(pinned)
	for _, o := range old {
		if !slices.ContainsFunc(pinned, func(p *Pinned) bool { return p.Scope == o.Scope }) {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b *Pinned) int { return strings.Compare(a.Scope, b.Scope) })
	return all
}

// writePinned replaces the file, unless it has this content. Without a repository it removes the file.
func (f folder) writePinned(pinned []*Pinned) error {
	e := extra{name: tagsFile, what: "the roots of tags", limit: maxTagsFile,
		check: func(data []byte) error { _, err := parseTags(data); return err }}
	if len(pinned) == 0 {
		return f.removeExtra(e)
	}
	return f.writeExtra(e, pinnedFile{tagsVersion, pinned})
}
