package trust

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/go-ldap/ldap/v3"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// statementPrefix begins the name of every policy statement that comes from a manifest; statements of other names are
// others'.
const statementPrefix = "notation-hsm:"

const (
	anyone          = "*"
	x509Subject     = "x509.subject: "
	documentVersion = "1.0"
)

// identity is a trusted identity as Notation reads it: the parts that a certificate's subject must have. The empty one
// is anyone.
type identity map[string]string

// covers reports whether every subject that other matches is matched by id.
func (id identity) covers(other identity) bool {
	for part, value := range id {
		if other[part] != value {
			return false
		}
	}
	return true
}

// readIdentity reads a distinguished name with Notation's rules, and with the parser that Notation uses, so that two
// names differ here exactly when they do there.
func readIdentity(subject string) (identity, error) {
	if subject == "" {
		return nil, nil
	}
	if err := accepted(trustpolicy.TrustPolicy{RegistryScopes: []string{anyone},
		TrustedIdentities: []string{x509Subject + subject}}); err != nil {
		return nil, failure.New(failure.Invalid,
			"Notation can't take the subject %q for a trusted identity: %w", subject, err).
			WithHint(`it needs C, ST and O, and each part once, as in "C=CH,ST=Zurich,O=Example"`)
	}
	name, err := ldap.ParseDN(subject)
	if err != nil {
		return nil, err
	}
	id := identity{}
	for _, rdn := range name.RDNs {
		part := rdn.Attributes[0].Type
		if part == "S" {
			part = "ST"
		}
		id[part] = rdn.Attributes[0].Value
	}
	return id, nil
}

func checkScope(scope string) error {
	err := accepted(trustpolicy.TrustPolicy{RegistryScopes: []string{scope}, TrustedIdentities: []string{anyone}})
	switch {
	case err == nil:
		_, err := repository(scope)
		return err
	case strings.Contains(scope, "*"):
		return failure.New(failure.Invalid, "the scope %q is a pattern, and Notation knows whole repositories alone", scope).
			WithHint(`name each repository with a --scope of its own, or "*" for all that have no signer of their own`)
	}
	return failure.New(failure.Invalid, "the scope %q is not a repository", scope).
		WithHint("name it with its registry, and without a scheme, tag or digest, as in registry.example.com/team/app")
}

func checkLevel(level string) error {
	const known = "use strict, permissive or audit"
	switch level {
	case trustpolicy.LevelStrict.Name, trustpolicy.LevelPermissive.Name, trustpolicy.LevelAudit.Name:
		return nil
	case trustpolicy.LevelSkip.Name:
		return failure.New(failure.Invalid, "level skip is refused: it verifies nothing, so that everyone could sign").
			WithHint(known)
	}
	return failure.New(failure.Invalid, "there is no verification level %q", level).WithHint(known)
}

// accepted asks Notation about the scopes and identities of a statement.
func accepted(p trustpolicy.TrustPolicy) error {
	p.Name, p.TrustStores = "statement", []string{"ca:store"}
	p.SignatureVerification.VerificationLevel = trustpolicy.LevelStrict.Name
	return (&trustpolicy.Document{Version: documentVersion, TrustPolicies: []trustpolicy.TrustPolicy{p}}).Validate()
}

// group is a scope and who may sign in it.
type group struct {
	scope   string
	signers []Signer // by name
}

// groups returns the scopes in order, or why one policy statement for each can't say what the manifest does.
func (m *Manifest) groups() ([]group, error) {
	scopes := map[string][]Signer{}
	for _, s := range m.Signers {
		for _, scope := range s.Scopes {
			scopes[scope] = append(scopes[scope], s)
		}
	}
	var all []group
	known := map[string]string{}
	for _, scope := range slices.Sorted(maps.Keys(scopes)) {
		name, err := repository(scope)
		if err != nil {
			return nil, err
		}
		if other, ok := known[name]; ok {
			return nil, failure.New(failure.Invalid, "the scopes %q and %q are one repository", other, scope).
				WithHint("name it in one way, without a port that is the default")
		}
		known[name] = scope
		signers := scopes[scope]
		slices.SortFunc(signers, func(a, b Signer) int { return cmp.Compare(a.Name, b.Name) })
		if err := exact(scope, signers); err != nil {
			return nil, err
		}
		all = append(all, group{scope, signers})
	}
	return all, nil
}

// statements returns one policy statement for each scope, in order, or why Notation can't say what the manifest does.
func (m *Manifest) statements() ([]trustpolicy.TrustPolicy, error) {
	groups, err := m.groups()
	if err != nil {
		return nil, err
	}
	var all []trustpolicy.TrustPolicy
	for _, g := range groups {
		statement := trustpolicy.TrustPolicy{
			Name: statementPrefix + g.scope, RegistryScopes: []string{g.scope}, TrustedIdentities: identities(g.signers),
			SignatureVerification: trustpolicy.SignatureVerification{VerificationLevel: g.signers[0].Level},
		}
		for _, s := range g.signers {
			statement.TrustStores = append(statement.TrustStores, "ca:"+storeName(s))
		}
		all = append(all, statement)
	}
	return all, nil
}

// exact refuses signers that one statement can't keep apart. A statement takes any identity it lists under any CA it
// lists, and only one level. So each CA here has to be trusted, by some signer, for the identity of every signer; then
// nothing is let in that no signer allows. A self-signed certificate issues no others, and is never in the way.
func exact(scope string, signers []Signer) error {
	for _, s := range signers {
		if s.Level != signers[0].Level {
			return failure.New(failure.Invalid,
				"signers %q and %q of the scope %q have the levels %s and %s, and Notation has one for each scope",
				signers[0].Name, s.Name, scope, signers[0].Level, s.Level).
				WithHint("give the signers of a scope one level")
		}
		if s.Kind != CA {
			continue
		}
		for _, other := range signers {
			if allowed(signers, s, other.who) {
				continue
			}
			return failure.New(failure.Invalid,
				"in the scope %q, Notation would take %s also under the CA %q of signer %q, where no signer is allowed it; it is "+
					"meant for signer %q alone",
				scope, other.whom(), s.Trusts, s.Name, other.Name).
				WithHint("give both certificates under the same CA (the very same --cert or root), or keep them to " +
					"different scopes")
		}
	}
	return nil
}

// allowed reports whether a signer is trusted under the CA of s with all that an identity matches.
func allowed(signers []Signer, s Signer, who identity) bool {
	return slices.ContainsFunc(signers, func(t Signer) bool { return t.cert.Equal(s.cert) && t.who.covers(who) })
}

// identities returns what the statement of some signers trusts, leaving out what another identity covers: Notation
// takes no two that overlap.
func identities(signers []Signer) []string {
	var list []string
	for i, s := range signers {
		if len(s.who) == 0 {
			return []string{anyone}
		}
		covered := false
		for j, other := range signers {
			covered = covered || (j != i && other.who.covers(s.who) && (j < i || !s.who.covers(other.who)))
		}
		if !covered {
			list = append(list, x509Subject+s.Subject)
		}
	}
	return list
}
