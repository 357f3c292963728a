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

// statementPrefix is the prefix of the names of policy statements that come from a manifest.
const statementPrefix = "notation-hsm:"

const (
	anyone          = "*"
	x509Subject     = "x509.subject: "
	documentVersion = "1.0"
)

// identity is a trusted identity as Notation reads it: the attributes that a certificate's subject must have. The empty
// one matches any subject.
type identity map[string]string

// covers reports whether id matches every subject that other matches.
func (id identity) covers(other identity) bool {
	for part, value := range id {
		if other[part] != value {
			return false
		}
	}
	return true
}

// readIdentity reads a distinguished name with the rules and the parser of Notation, so that two names are equal here
// exactly when Notation treats them as equal.
func readIdentity(subject string) (identity, error) {
	if subject == "" {
		return nil, nil
	}
	if err := accepted(trustpolicy.TrustPolicy{RegistryScopes: []string{anyone},
		TrustedIdentities: []string{x509Subject + subject}}); err != nil {
		return nil, failure.New(failure.Invalid,
			"Notation does not accept the subject %q as a trusted identity: %w", subject, err).
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
		return failure.New(failure.Invalid,
			"the scope %q is a pattern, and Notation supports whole repositories only", scope).
			WithHint(`add a --scope for each repository, or "*" for all repositories that no other scope names`)
	}
	return failure.New(failure.Invalid, "the scope %q is not a repository", scope).
		WithHint("write it with its registry, without scheme, tag or digest, as in registry.example.com/team/app")
}

func checkLevel(level string) error {
	const known = "use strict, permissive or audit"
	switch level {
	case trustpolicy.LevelStrict.Name, trustpolicy.LevelPermissive.Name, trustpolicy.LevelAudit.Name:
		return nil
	case trustpolicy.LevelSkip.Name:
		return failure.New(failure.Invalid, "level skip is refused: it verifies nothing, so anyone could sign").
			WithHint(known)
	}
	return failure.New(failure.Invalid, "unknown verification level %q", level).WithHint(known)
}

// accepted validates the scopes and identities of a statement with Notation's code.
func accepted(p trustpolicy.TrustPolicy) error {
	p.Name, p.TrustStores = "statement", []string{"ca:store"}
	p.SignatureVerification.VerificationLevel = trustpolicy.LevelStrict.Name
	return (&trustpolicy.Document{Version: documentVersion, TrustPolicies: []trustpolicy.TrustPolicy{p}}).Validate()
}

// group is a scope and its signers.
type group struct {
	scope   string
	signers []Signer // by name
}

// groups returns the scopes in order. It fails when one policy statement for each cannot express the manifest.
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
			return nil, failure.New(failure.Invalid, "the scopes %q and %q are the same repository", other, scope).
				WithHint("use one spelling, without a default port")
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

// statements returns one policy statement for each scope, in order. It fails when Notation cannot express the manifest.
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

// exact refuses signers that one statement cannot keep apart. A statement accepts every identity it lists under every
// CA it lists, and has one level. So each CA must be trusted, by some signer, for the identity of every signer; then
// the statement accepts nothing that no signer allows. A self-signed certificate issues no others, so it needs no
// check.
func exact(scope string, signers []Signer) error {
	for _, s := range signers {
		if s.Level != signers[0].Level {
			return failure.New(failure.Invalid,
				"signers %q and %q of the scope %q have the levels %s and %s, and Notation has one level for each scope",
				signers[0].Name, s.Name, scope, signers[0].Level, s.Level).
				WithHint("set one level for all signers of a scope")
		}
		if s.Kind != CA {
			continue
		}
		for _, other := range signers {
			if allowed(signers, s, other.who) {
				continue
			}
			return failure.New(failure.Invalid,
				"in the scope %q, Notation would also accept %s of signer %q under the CA %q of signer %q",
				scope, other.subjects(), other.Name, s.Trusts, s.Name).
				WithHint("use certificates under the same CA (the very same --cert or root), or different scopes")
		}
	}
	return nil
}

// allowed reports whether a signer is trusted under the CA of s for every subject that an identity matches.
func allowed(signers []Signer, s Signer, who identity) bool {
	return slices.ContainsFunc(signers, func(t Signer) bool { return t.cert.Equal(s.cert) && t.who.covers(who) })
}

// identities returns the trusted identities of some signers, without those that another identity covers: Notation
// refuses identities that overlap.
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
