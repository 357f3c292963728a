package trust

import (
	"context"
	"crypto/x509"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Signer may sign in some repositories. A certificate identifies the signer and, under a CA, attributes of the subject.
type Signer struct {
	Name string `yaml:"name" json:"name"`
	// repositories, or "*": those that no other scope names
	Scopes []string `yaml:"scopes" json:"scopes"`
	Level  string   `yaml:"level" json:"level"` // how strictly Notation verifies
	// patterns of the tags that the signer may sign; empty: all. Only in repositories whose tags have a root
	Paths []string `yaml:"paths,omitempty" json:"paths,omitempty"`
	// of the certificate; written for the reader, and checked
	Kind Kind `yaml:"kind" json:"kind"`
	// attributes that a signing certificate's subject must have; empty: any subject
	Subject string `yaml:"subject,omitempty" json:"subject,omitempty"`
	// of the certificate; checked, and compared by people
	Fingerprint string `yaml:"fingerprint" json:"fingerprint"`
	Certificate string `yaml:"certificate" json:"certificate"` // PEM, one

	Trusts string    `yaml:"-" json:"trusts"` // the certificate's subject
	Until  time.Time `yaml:"-" json:"until"`  // when it expires

	cert *x509.Certificate
	who  identity
}

// Kind is the kind of a signer's certificate.
type Kind string

const (
	SelfSigned Kind = "self-signed" // this certificate alone signs
	CA         Kind = "ca"          // every certificate under this one signs, if its subject matches
)

// audited reports whether everyone may sign, whoever the signers are.
func (s Signer) audited() bool { return s.Level == trustpolicy.LevelAudit.Name }

// subjects describes the subjects that the signer may have.
func (s Signer) subjects() string {
	if s.Subject == "" {
		return "any subject"
	}
	return fmt.Sprintf("the subject %q", s.Subject)
}

var names = sync.OnceValue(func() *regexp.Regexp { // not at the start, which every signature pays for
	return regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
})

// read validates a signer of the manifest.
func (s *Signer) read() error {
	if !names().MatchString(s.Name) || len(s.Name) > 64 { // it becomes a part of file names
		return failure.New(failure.Invalid, "%q is not the name of a signer", s.Name).
			WithHint("use lower-case letters, digits, '.', '_' and '-', as in release-team")
	}
	if err := checkLevel(s.Level); err != nil {
		return err
	}
	if len(s.Scopes) == 0 {
		return failure.New(failure.Invalid, "signer %q has no scope", s.Name).
			WithHint("add one with --scope registry.example.com/team/app")
	}
	for i, given := range s.Scopes {
		if err := checkScope(given); err != nil {
			return err
		}
		scope := spelled(given)
		s.Scopes[i] = scope
		if slices.Contains(s.Scopes[:i], scope) {
			return failure.New(failure.Invalid, "signer %q has the scope %q twice", s.Name, scope).
				WithHint("remove one of the two")
		}
	}
	if err := validatePaths(s.Paths); err != nil {
		return err
	}
	list, err := certs.Parse([]byte(s.Certificate))
	if err != nil || len(list) != 1 {
		return failure.New(failure.Invalid, "the certificate of signer %q is not one PEM certificate", s.Name).
			WithHint("restore the manifest; or remove the signer with an editor and add it again")
	}
	return s.trust(list[0])
}

// trust verifies that the manifest describes the certificate.
func (s *Signer) trust(cert *x509.Certificate) error {
	const hint = "the manifest was edited by hand: find out who edited it, and restore it; or remove the signer " +
		"with an editor and add it again"
	kind, err := kindOf(cert)
	switch {
	case err != nil:
		return err
	case s.Kind != kind:
		return failure.New(failure.Invalid,
			"signer %q is of kind %q, but its certificate is of kind %q", s.Name, s.Kind, kind).
			WithHint(hint)
	case s.Fingerprint != fingerprint(cert):
		return failure.New(failure.Invalid,
			"the certificate of signer %q does not have the fingerprint in the manifest", s.Name).
			WithHint(hint)
	case kind == SelfSigned && s.Subject != "" && s.Subject != cert.Subject.String():
		return failure.New(failure.Invalid, "the certificate of signer %q does not have the subject in the manifest", s.Name).
			WithHint(hint)
	}
	s.cert, s.Trusts, s.Until = cert, cert.Subject.String(), cert.NotAfter.UTC()
	s.who, err = readIdentity(s.Subject)
	return err
}

// Grant allows a signer to sign in scopes.
type Grant struct {
	Name   string
	Scopes []string
	Level  string       // "" is strict, or the level of an existing signer
	Paths  []string     // empty is all tags, or the paths of an existing signer
	Cert   *Certificate // nil for an existing signer
}

// Add adds a signer, or adds scopes to an existing one, and returns the signer.
func Add(ctx context.Context, path string, g Grant) (*Signer, error) {
	var result Signer
	err := change(ctx, path, func(m *Manifest) error {
		s := m.find(g.Name)
		switch {
		case s == nil && g.Cert == nil:
			return failure.New(failure.NotFound, "there is no signer %q, and no certificate is given", g.Name).
				WithHint("give a certificate with --cert FILE, --key KEY or --ca NAME")
		case s == nil:
			m.Signers = append(m.Signers, g.signer())
			s = &m.Signers[len(m.Signers)-1]
		default:
			if err := s.extend(g); err != nil {
				return err
			}
		}
		err := s.read()
		result = *s
		return err
	})
	if err != nil {
		return nil, err
	}
	return &result, nil
}

func (g Grant) signer() Signer {
	s := Signer{
		Name: g.Name, Level: g.Level, Paths: g.Paths, Kind: g.Cert.kind, Subject: g.Cert.subject,
		Fingerprint: fingerprint(g.Cert.trusted), Certificate: string(certs.Encode([]*x509.Certificate{g.Cert.trusted})),
	}
	if s.Level == "" {
		s.Level = trustpolicy.LevelStrict.Name
	}
	s.addScopes(g.Scopes)
	return s
}

func (s *Signer) extend(g Grant) error {
	const hint = "choose another name, which trusts both certificates; or remove the signer first"
	if g.Cert != nil && (!g.Cert.trusted.Equal(s.cert) || g.Cert.subject != s.Subject) {
		return failure.New(failure.Conflict, "there is already a signer %q with another certificate or subject", s.Name).
			WithHint(hint)
	}
	if g.Level != "" && g.Level != s.Level {
		return failure.New(failure.Conflict, "there is already a signer %q with the level %s", s.Name, s.Level).
			WithHint("remove the signer and add it again")
	}
	if len(g.Paths) > 0 && !slices.Equal(slices.Sorted(slices.Values(g.Paths)), slices.Sorted(slices.Values(s.Paths))) {
		return failure.New(failure.Conflict, "there is already a signer %q with other paths", s.Name).
			WithHint("remove the signer and add it again")
	}
	s.addScopes(g.Scopes)
	return nil
}

func (s *Signer) addScopes(scopes []string) {
	for _, given := range scopes {
		if scope := spelled(given); !slices.Contains(s.Scopes, scope) {
			s.Scopes = append(s.Scopes, scope)
		}
	}
}

// Remove removes scopes from a signer, or the signer if scopes is empty. A signer without a scope left is removed; gone
// reports it.
func Remove(ctx context.Context, path, name string, scopes []string) (gone bool, err error) {
	err = change(ctx, path, func(m *Manifest) error {
		s := m.find(name)
		if s == nil {
			return failure.New(failure.NotFound, "there is no signer %q", name).
				WithHint("list them: notation-hsm trust signer list")
		}
		for _, scope := range scopes {
			i := slices.Index(s.Scopes, spelled(scope))
			if i < 0 {
				return failure.New(failure.NotFound, "signer %q has no scope %q", name, scope).
					WithHint("the scopes are: " + strings.Join(s.Scopes, ", "))
			}
			s.Scopes = slices.Delete(s.Scopes, i, i+1)
		}
		gone = len(scopes) == 0 || len(s.Scopes) == 0
		if gone {
			m.Signers = slices.DeleteFunc(m.Signers, func(other Signer) bool { return other.Name == name })
		}
		return nil
	})
	return gone, err
}
