package custody

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/go-ldap/ldap/v3"
	"github.com/notaryproject/notation-go/dir"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/notaryproject/notation-go/verifier/truststore"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// plugin checks that Notation finds this very program.
func pluginCheck(context.Context) (Check, error) {
	self, path, err := places()
	if err != nil {
		return Check{}, err
	}
	const hint = "run: notation-hsm install"
	if same(self, path) {
		return ok("%s", path), nil
	}
	installed, err := os.ReadFile(path)
	if err != nil {
		return Check{}, failure.New(failure.Invalid, "Notation has no plugin hsm: %w", err).WithHint(hint)
	}
	if info, err := os.Stat(path); err == nil && info.Mode()&0o111 == 0 {
		return Check{}, failure.New(failure.Invalid, "the plugin %s is not executable", path).WithHint(hint)
	}
	program, err := os.ReadFile(self)
	if err != nil {
		return Check{}, failure.New(failure.Internal, "can't read this program's own file: %w", err)
	}
	if !bytes.Equal(program, installed) {
		return warning(hint, "%s is another version than this program", path), nil
	}
	return ok("%s", path), nil
}

func (v *visit) registered(_ context.Context) (Check, error) {
	names, err := registeredAs(v.settings.Keystore(), v.store.Describe(), v.info)
	if err != nil {
		return Check{}, err
	}
	if len(names) == 0 {
		return warning("run: notation-hsm install --key-name NAME --key KEY; without it, sign with --plugin hsm --id KEY",
			"Notation has no signing key for it"), nil
	}
	return ok("%s", strings.Join(names, ", ")), nil
}

// glance looks at a signing key of Notation's without a login.
func glance(ctx context.Context, ks *keystore.Keystore, entry signingKey) (Check, error) {
	s, err := resolve(ks, entry)
	if err != nil {
		return Check{}, err
	}
	withoutPIN := *s
	withoutPIN.PIN, withoutPIN.PINSource = "", "" // so that nothing below can log in
	store, err := withoutPIN.Open(ctx)
	if err != nil {
		return Check{}, err
	}
	defer store.Close()
	known, err := certificates(ctx, store, s)
	if err != nil {
		return Check{}, err
	}
	leaves := certs.Leaves(known)
	if !store.Describe().PINPad { // which would ask for the PIN
		if public, err := store.Public(ctx); err == nil {
			leaves = []*x509.Certificate{certs.LeafOf(public, known, time.Now())}
		}
	}
	if len(leaves) != 1 || leaves[0] == nil {
		return warning("run: notation-hsm doctor "+quoted(entry.ID), "its certificate can't be seen without a login"), nil
	}
	chain, err := certs.Chain(leaves[0], known, nil, time.Now())
	if err != nil {
		return Check{}, err
	}
	c, err := expires(chain, time.Now())
	if err != nil {
		return Check{}, err
	}
	if err := certs.Check(chain, time.Now()); err != nil {
		return Check{}, err
	}
	if c.Result == OK {
		c = ok("%s; its certificate expires %s; not logged in", s.Key, c.Detail)
	}
	return c, nil
}

// rotating warns of a rotation that has not come to its end.
func rotating(name string) (Check, error) {
	journal, err := journalOf(name)
	if err != nil {
		return Check{}, err
	}
	r, err := readJournal(journal)
	if err != nil || r == nil {
		return ok("none"), err
	}
	return warning("run: notation-hsm key rotate "+name,
		"it was begun on %s and has not come to its end", r.Begun.Format(time.DateOnly)), nil
}

func quoted(reference string) string { return `"` + reference + `"` }

// trusted checks that Notation on this machine would accept an image that the key signs, as far as certificates decide.
func (v *visit) trusted(ctx context.Context) (Check, error) {
	if _, err := folders.NotationConfig(); err != nil {
		return Check{}, err
	}
	if _, err := fs.Stat(dir.ConfigFS(), dir.PathTrustPolicy); errors.Is(err, fs.ErrNotExist) {
		return warning("to verify here as well, see: notation policy --help", "Notation has no trust policy on this machine"),
			nil
	}
	policy, err := trustpolicy.LoadDocument()
	if err == nil {
		err = policy.Validate()
	}
	if err != nil {
		return Check{}, failure.New(failure.Invalid, "Notation's trust policy is not valid: %w", err).
			WithHint("see it with: notation policy show")
	}
	var why []string
	for _, statement := range policy.TrustPolicies {
		problem := v.refusedBy(ctx, statement)
		if problem == "" {
			return ok("accepted by statement %q, for %s", statement.Name, strings.Join(statement.RegistryScopes, ", ")), nil
		}
		why = append(why, "statement \""+statement.Name+"\": "+problem)
	}
	return Check{}, failure.New(failure.Invalid,
		"no statement of Notation's trust policy accepts the chain (%s)", strings.Join(why, "; ")).
		WithHint("add the chain's root to a trust store with 'notation cert add', and the subject to the trusted identities")
}

// refusedBy returns why a statement of the policy does not accept the chain, or "". It follows the Notary Project's
// trust store and trust policy specification: a certificate of the chain is in a store of the statement, and the leaf's
// subject has all that one trusted identity has.
func (v *visit) refusedBy(ctx context.Context, statement trustpolicy.TrustPolicy) string {
	if statement.SignatureVerification.VerificationLevel == trustpolicy.LevelSkip.Name {
		return "it verifies nothing"
	}
	stores := truststore.NewX509TrustStore(dir.ConfigFS())
	found := false
	for _, name := range statement.TrustStores {
		kind, store, _ := strings.Cut(name, ":")
		if truststore.Type(kind) != truststore.TypeCA {
			continue
		}
		anchors, err := stores.GetCertificates(ctx, truststore.TypeCA, store)
		if err != nil {
			return err.Error()
		}
		for _, anchor := range anchors {
			found = found || containsCert(v.chain, anchor)
		}
	}
	if !found {
		return "no certificate of the chain is in its trust stores"
	}
	for _, identity := range statement.TrustedIdentities {
		if identity == "*" || hasIdentity(v.leaf, identity) {
			return ""
		}
	}
	return "the subject is none of its trusted identities"
}

func containsCert(chain []*x509.Certificate, cert *x509.Certificate) bool {
	for _, c := range chain {
		if c.Equal(cert) {
			return true
		}
	}
	return false
}

// hasIdentity reports whether a certificate's subject has every part of a trusted identity such as "x509.subject: C=CH,
// O=Example".
func hasIdentity(leaf *x509.Certificate, identity string) bool {
	kind, value, _ := strings.Cut(identity, ":")
	want, err := ldap.ParseDN(value)
	if kind != "x509.subject" || err != nil {
		return false
	}
	subject, err := ldap.ParseDN(leaf.Subject.String())
	if err != nil {
		return false
	}
	has := attributes(subject)
	for name, value := range attributes(want) {
		if has[name] != value {
			return false
		}
	}
	return true
}

func attributes(dn *ldap.DN) map[string]string {
	parts := map[string]string{}
	for _, rdn := range dn.RDNs {
		for _, a := range rdn.Attributes {
			if a.Type == "S" { // Notation takes it for ST
				a.Type = "ST"
			}
			parts[a.Type] = a.Value
		}
	}
	return parts
}
