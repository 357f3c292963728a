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

// Signer may sign in some repositories. Who that is, is said by one certificate and, under a CA, by a part of the
// subject.
type Signer struct {
	Name string `yaml:"name" json:"name"`
	// repositories, or "*": those that have no signer of their own
	Scopes []string `yaml:"scopes" json:"scopes"`
	Level  string   `yaml:"level" json:"level"` // how strictly Notation verifies
	// what the certificate is; checked, for the reader's sake
	Kind Kind `yaml:"kind" json:"kind"`
	// what a signing certificate's subject has to have; none: any will do
	Subject string `yaml:"subject,omitempty" json:"subject,omitempty"`
	// of the certificate; checked, to be compared by eye or by voice
	Fingerprint string `yaml:"fingerprint" json:"fingerprint"`
	Certificate string `yaml:"certificate" json:"certificate"` // PEM, one

	Trusts string    `yaml:"-" json:"trusts"` // the certificate's subject
	Until  time.Time `yaml:"-" json:"until"`  // when it ends

	cert *x509.Certificate
	who  identity
}

// Kind is what a signer's certificate stands for.
type Kind string

const (
	SelfSigned Kind = "self-signed" // this certificate signs, and no other
	CA         Kind = "ca"          // every certificate under this one signs, as far as the subject allows
)

// whom says which subjects the signer has.
func (s Signer) whom() string {
	if s.Subject == "" {
		return "any subject"
	}
	return fmt.Sprintf("the subject %q", s.Subject)
}

var names = sync.OnceValue(func() *regexp.Regexp { // not at the start, which every signature pays for
	return regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*$`)
})

// read checks a signer as it stands in the manifest.
func (s *Signer) read() error {
	if !names().MatchString(s.Name) || len(s.Name) > 64 { // it becomes a part of file names
		return failure.New(failure.Invalid, "a signer can't be named %q", s.Name).
			WithHint("use small letters, digits, '.', '_' and '-', as in release-team")
	}
	if err := checkLevel(s.Level); err != nil {
		return err
	}
	if len(s.Scopes) == 0 {
		return failure.New(failure.Invalid, "signer %q has no scope",
			s.Name).
			WithHint("name one with --scope registry.example.com/team/app")
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
	list, err := certs.Parse([]byte(s.Certificate))
	if err != nil || len(list) != 1 {
		return failure.New(failure.Invalid, "the certificate of signer %q is not one PEM certificate", s.Name).
			WithHint("put the manifest back as it was, or take the signer out of it with an editor and add it again")
	}
	return s.trust(list[0])
}

// trust checks that the certificate is what the manifest says of it.
func (s *Signer) trust(cert *x509.Certificate) error {
	const hint = "someone changed one of the two by hand; find out who, and put the manifest back as it was, or take the signer out of it with an editor and add it again"
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
			"the certificate of signer %q has not the fingerprint that stands beside it", s.Name).
			WithHint(hint)
	case kind == SelfSigned && s.Subject != "" && s.Subject != cert.Subject.String():
		return failure.New(failure.Invalid, "the certificate of signer %q has not the subject that stands beside it", s.Name).
			WithHint(hint)
	}
	s.cert, s.Trusts, s.Until = cert, cert.Subject.String(), cert.NotAfter.UTC()
	s.who, err = readIdentity(s.Subject)
	return err
}

// Grant lets a signer sign in scopes.
type Grant struct {
	Name   string
	Scopes []string
	Level  string       // "" is strict, or what a signer who is there has
	Cert   *Certificate // nil for a signer who is there
}

// Add makes a signer, or lets one who is there sign in more scopes, and returns the signer.
func Add(ctx context.Context, path string, g Grant) (*Signer, error) {
	var result Signer
	err := change(ctx, path, func(m *Manifest) error {
		s := m.find(g.Name)
		switch {
		case s == nil && g.Cert == nil:
			return failure.New(failure.Invalid, "there is no signer %q yet, and no certificate is given", g.Name).
				WithHint("name a certificate with --cert FILE, --key KEY or --ca NAME")
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
		Name: g.Name, Level: g.Level, Kind: g.Cert.kind, Subject: g.Cert.subject,
		Fingerprint: fingerprint(g.Cert.trusted), Certificate: string(certs.Encode([]*x509.Certificate{g.Cert.trusted})),
	}
	if s.Level == "" {
		s.Level = trustpolicy.LevelStrict.Name
	}
	s.addScopes(g.Scopes)
	return s
}

func (s *Signer) extend(g Grant) error {
	const hint = "choose another name for the new certificate (both are trusted then), or remove the signer first"
	if g.Cert != nil && (!g.Cert.trusted.Equal(s.cert) || g.Cert.subject != s.Subject) {
		return failure.New(failure.Invalid, "there is a signer %q already, with another certificate or subject", s.Name).
			WithHint(hint)
	}
	if g.Level != "" && g.Level != s.Level {
		return failure.New(failure.Invalid, "there is a signer %q already, at level %s", s.Name, s.Level).
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

// Remove takes scopes from a signer, or, without any, the signer. A signer who has no scope left is removed: gone says
// so.
func Remove(ctx context.Context, path, name string, scopes []string) (gone bool, err error) {
	err = change(ctx, path, func(m *Manifest) error {
		s := m.find(name)
		if s == nil {
			return failure.New(failure.Invalid, "there is no signer %q", name).WithHint("see: notation-hsm trust signer list")
		}
		for _, scope := range scopes {
			i := slices.Index(s.Scopes, spelled(scope))
			if i < 0 {
				return failure.New(failure.Invalid, "signer %q has no scope %q", name, scope).
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
