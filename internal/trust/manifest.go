// Package trust answers one question: who may sign which repositories? The answer is kept in one file that people
// review, the manifest, and written from there into the trust store and the trust policy that Notation verifies with.
//
// What Notation can't say exactly is refused: a manifest never reads stricter than the policy that comes of it.
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

// Manifest is the file: every signer, by name. The certificates stand in it, so that it is one file to review, and is
// replaced as a whole.
type Manifest struct {
	Version int      `yaml:"version"`
	Signers []Signer `yaml:"signers"`
}

const (
	manifestVersion = 1
	manifestHeader  = "# Who may sign which repositories. 'notation-hsm trust' keeps this file; 'trust export' tells Notation.\n"
	makeManifest    = "make it with: notation-hsm trust init"
)

// Path returns where the manifest is: file if that is given, else NOTATION_HSM_TRUST, else notation-hsm/trust.yaml in
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

// Init makes a manifest without signers. It returns false when there is a manifest already, which it leaves as it is.
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

// Load reads a manifest and holds it against every rule.
func Load(path string) (*Manifest, error) {
	data, err := bound.ReadFile(path, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.Invalid, "there is no trust manifest: %w", err).WithHint(makeManifest)
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the trust manifest: %w", err).
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
		return nil, failure.New(failure.Invalid, "version %d is not known here, only %d", m.Version, manifestVersion).
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
	_, err := m.statements()
	return m, err
}

// change reads a manifest, changes it and writes it back, with the manifest locked. What would break a rule is not
// written.
func change(ctx context.Context, path string, how func(*Manifest) error) error {
	if _, err := Load(path); err != nil {
		return err // before a lock is left in a folder that was only misspelt
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
	if _, err := m.statements(); err != nil {
		return err
	}
	return m.save(path)
}

// save writes the manifest in one order, so that a change shows as itself in a comparison of two versions. A reader of
// it is no danger: it holds nothing secret.
func (m *Manifest) save(path string) error {
	slices.SortFunc(m.Signers, func(a, b Signer) int { return cmp.Compare(a.Name, b.Name) })
	for _, s := range m.Signers {
		slices.Sort(s.Scopes)
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
