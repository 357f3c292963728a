// Package trust answers one question: who may sign which repositories? The answer is one reviewed file, the trust
// manifest. Export writes it into the trust stores and the trust policy that Notation verifies with.
//
// A manifest that Notation cannot express exactly is refused: no policy is weaker than its manifest reads.
package trust

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Manifest is the trust manifest: every signer, by name, with certificates, the repositories whose tags have a root,
// and those whose signatures need approvals. It is one file, to be reviewed and replaced as a whole.
type Manifest struct {
	Version   int         `yaml:"version"`
	Tags      []Tags      `yaml:"tags,omitempty"` // one for each repository
	Approvers []Approver  `yaml:"approvers,omitempty"`
	Approvals []Approvals `yaml:"approvals,omitempty"` // one for each scope
	Signers   []Signer    `yaml:"signers"`
}

const (
	manifestVersion = 1
	manifestHeader  = "# Who may sign which repositories. 'notation-hsm trust' edits this file; " +
		"'trust export' writes it for Notation.\n"
	makeManifest = "make it with: notation-hsm trust init"
)

// Path returns the path of the manifest: file if it is set, else NOTATION_HSM_TRUST, else notation-hsm/trust.yaml in
// the user's configuration directory.
func Path(file string) (string, error) {
	if path := cmp.Or(file, os.Getenv("NOTATION_HSM_TRUST")); path != "" {
		return path, nil
	}
	dir, err := folders.Config()
	if err != nil {
		return "", failure.New(failure.Invalid, "cannot find the trust manifest: %w", err).
			WithHint("name the file with --manifest")
	}
	return filepath.Join(dir, "notation-hsm", "trust.yaml"), nil
}

// Init creates a manifest without signers. It returns false when there is one already, and leaves it unchanged.
func Init(ctx context.Context, path string) (made bool, err error) {
	unlock, err := state.Lock(ctx, filepath.Dir(path))
	if err != nil {
		return false, err
	}
	defer unlock()
	if _, err := Load(path); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	return true, (&Manifest{Version: manifestVersion}).save(path)
}

// Load reads and validates a manifest. It fails with NotFound when there is none.
func Load(path string) (*Manifest, error) {
	data, err := bound.ReadFile(path, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.NotFound, "there is no trust manifest: %w", err).WithHint(makeManifest)
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot read the trust manifest: %w", err).
			WithHint("check the path and its permissions")
	}
	m, err := parse(data)
	if err != nil {
		return nil, failure.New(failure.Invalid, "the trust manifest %s: %w", path, err).
			WithHint(cmp.Or(failure.From(err).Hint, "see docs/trust.md for an example"))
	}
	return m, nil
}

const maxManifest = 1 << 20 // bytes; a signer has some 3 KiB

func parse(data []byte) (*Manifest, error) {
	m := &Manifest{}
	if _, err := config.YAML(data, maxManifest); err != nil {
		return nil, err
	}
	if err := yaml.Load(data, m, yaml.WithKnownFields()); err != nil {
		return nil, err
	}
	if m.Version != manifestVersion {
		return nil, failure.New(failure.Invalid, "version %d is not supported, only %d", m.Version, manifestVersion).
			WithHint("use the notation-hsm that wrote it, or a newer one")
	}
	for i := range m.Signers {
		s := &m.Signers[i]
		if err := s.read(); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(m.Signers[:i], func(other Signer) bool { return other.Name == s.Name }) {
			return nil, failure.New(failure.Invalid, "two signers are named %q", s.Name).
				WithHint("rename or remove one of the two")
		}
	}
	for i := range m.Tags {
		if err := m.Tags[i].read(); err != nil {
			return nil, err
		}
		if slices.ContainsFunc(m.Tags[:i], func(t Tags) bool { return oneRepository(t.Scope, m.Tags[i].Scope) }) {
			return nil, failure.New(failure.Invalid, "the tags of %q have two roots", m.Tags[i].Scope).
				WithHint("remove one of the two entries")
		}
	}
	if err := m.readApprovals(); err != nil {
		return nil, err
	}
	return m, m.check()
}

// readApprovals validates approvers and approvals.
func (m *Manifest) readApprovals() error {
	if err := readApprovers(m.Approvers); err != nil {
		return err
	}
	return readApprovals(m.Approvals, m.Approvers)
}

// check verifies what entries of the manifest require of others.
func (m *Manifest) check() error {
	if _, err := m.statements(); err != nil {
		return err
	}
	return cmp.Or(m.checkPaths(), m.checkApprovals())
}

// change reads a manifest, changes it and writes it back, with the manifest locked. It fails, and writes nothing, when
// the changed manifest is not valid.
func change(ctx context.Context, path string, how func(*Manifest) error) error {
	if _, err := Load(path); err != nil {
		return err // before a lock file is left in a misspelt folder
	}
	unlock, err := state.Lock(ctx, filepath.Dir(path))
	if err != nil {
		return err
	}
	defer unlock()
	m, err := Load(path)
	if err != nil {
		return err
	}
	if err := how(m); err != nil {
		return err
	}
	if err := m.check(); err != nil {
		return err
	}
	return m.save(path)
}

// save writes the manifest with its lists sorted, so that a diff of two versions shows only the change. The file is
// readable for everyone: nothing in it is secret.
func (m *Manifest) save(path string) error {
	slices.SortFunc(m.Signers, func(a, b Signer) int { return cmp.Compare(a.Name, b.Name) })
	slices.SortFunc(m.Tags, func(a, b Tags) int { return cmp.Compare(a.Scope, b.Scope) })
	slices.SortFunc(m.Approvals, func(a, b Approvals) int { return cmp.Compare(a.Scope, b.Scope) })
	slices.SortFunc(m.Approvers, func(a, b Approver) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range m.Signers {
		slices.Sort(s.Scopes)
		slices.Sort(s.Paths)
	}
	data, err := yaml.Dump(m, yaml.WithIndent(2))
	if err != nil {
		return err
	}
	return state.Write(path, append([]byte(manifestHeader), data...), permissions(path, 0o644))
}

// find returns the signer of a name, or nil.
func (m *Manifest) find(name string) *Signer {
	for i := range m.Signers {
		if m.Signers[i].Name == name {
			return &m.Signers[i]
		}
	}
	return nil
}
