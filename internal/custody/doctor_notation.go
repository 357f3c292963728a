package custody

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"slices"
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

// checkPlugin checks that the plugin that Notation starts is this program.
func checkPlugin(context.Context) (Check, error) {
	program, path, err := pluginPaths()
	if err != nil {
		return Check{}, err
	}
	const hint = "run: notation-hsm install"
	if sameFile(program, path) {
		return ok("%s", path), nil
	}
	installed, err := os.ReadFile(path)
	if err != nil {
		return Check{}, failure.New(failure.NotFound, "the plugin hsm is not installed: %w", err).WithHint(hint)
	}
	if info, err := os.Stat(path); err == nil && info.Mode()&0o111 == 0 {
		return Check{}, failure.New(failure.Invalid, "the plugin %s is not executable", path).WithHint(hint)
	}
	own, err := os.ReadFile(program)
	if err != nil {
		return Check{}, unreadable(program, err)
	}
	if !bytes.Equal(own, installed) {
		return warning(hint, "%s is another version than this program", path), nil
	}
	return ok("%s", path), nil
}

func (e *examination) checkSigningKey(_ context.Context) (Check, error) {
	names, err := registeredAs(e.settings.Keystore(), e.store.Describe(), e.info)
	if err != nil {
		return Check{}, err
	}
	if len(names) == 0 {
		return warning("run: notation-hsm install --key-name NAME --key KEY; or sign with --plugin hsm --id KEY",
			"the key is not in Notation's list of signing keys"), nil
	}
	return ok("%s", strings.Join(names, ", ")), nil
}

// checkWithoutLogin checks the certificates of a signing key in Notation's list.
func checkWithoutLogin(ctx context.Context, ks *keystore.Keystore, entry signingKey) (Check, error) {
	s, err := resolve(ks, entry)
	if err != nil {
		return Check{}, err
	}
	withoutPIN := *s
	withoutPIN.PIN, withoutPIN.PINSource = "", "" // so that the keystore cannot log in
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
	if !store.Describe().PINPad { // a PIN pad would ask for the PIN
		if public, err := store.Public(ctx); err == nil {
			leaves = []*x509.Certificate{certs.LeafOf(public, known, time.Now())}
		}
	}
	if len(leaves) != 1 || leaves[0] == nil {
		return warning("run: notation-hsm doctor "+quoted(entry.ID), "its certificate cannot be read without a login"), nil
	}
	chain, err := certs.Chain(leaves[0], known, nil, time.Now())
	if err != nil {
		return Check{}, err
	}
	c, err := checkValidity(chain, time.Now())
	if err != nil {
		return Check{}, err
	}
	if err := certs.Check(chain, time.Now()); err != nil {
		return Check{}, err
	}
	if c.Outcome == OK {
		c = ok("%s; its certificate expires %s; no login was made", s.Key, c.Detail)
	}
	return c, nil
}

// checkRotation warns of an unfinished rotation of a signing key.
func checkRotation(name string) (Check, error) {
	journal, err := journalPath(name)
	if err != nil {
		return Check{}, err
	}
	r, err := readJournal(journal)
	if err != nil || r == nil {
		return ok("none"), err
	}
	return warning("run: notation-hsm key rotate "+name, "it was started on %s and is not finished",
		r.Begun.Format(time.DateOnly)), nil
}

func quoted(reference string) string { return `"` + reference + `"` }

// checkTrustPolicy checks that Notation on this machine trusts the key's chain for some repositories.
func (e *examination) checkTrustPolicy(ctx context.Context) (Check, error) {
	if _, err := folders.NotationConfig(); err != nil {
		return Check{}, err
	}
	if _, err := fs.Stat(dir.ConfigFS(), dir.PathTrustPolicy); errors.Is(err, fs.ErrNotExist) {
		return warning("to verify on this machine as well, see: notation policy --help",
			"Notation has no trust policy on this machine"), nil
	}
	policy, err := trustpolicy.LoadDocument()
	if err == nil {
		err = policy.Validate()
	}
	if err != nil {
		return Check{}, failure.New(failure.Invalid, "Notation's trust policy is not valid: %w", err).
			WithHint("show it with: notation policy show")
	}
	var refusals []string
	for _, statement := range policy.TrustPolicies {
		refusal := e.refusalOf(ctx, statement)
		if refusal == "" {
			return ok("accepted by statement %q, for %s", statement.Name, strings.Join(statement.RegistryScopes, ", ")), nil
		}
		refusals = append(refusals, "statement \""+statement.Name+"\": "+refusal)
	}
	return Check{}, failure.New(failure.Invalid,
		"no statement of Notation's trust policy accepts the chain (%s)", strings.Join(refusals, "; ")).
		WithHint("add the chain's root to a trust store with 'notation cert add', and the subject to the trusted identities")
}

// refusalOf returns why a statement of the trust policy does not accept the chain, or "". By the Notary Project's trust
// store and trust policy specification, a trust store of the statement must have a certificate of the chain, and the
// leaf's subject must have all attributes of one trusted identity.
func (e *examination) refusalOf(ctx context.Context, statement trustpolicy.TrustPolicy) string {
	if statement.SignatureVerification.VerificationLevel == trustpolicy.LevelSkip.Name {
		return "its level is skip, which verifies nothing"
	}
	stores := truststore.NewX509TrustStore(dir.ConfigFS())
	trusted := false
	for _, name := range statement.TrustStores {
		kind, store, _ := strings.Cut(name, ":")
		if truststore.Type(kind) != truststore.TypeCA {
			continue
		}
		anchors, err := stores.GetCertificates(ctx, truststore.TypeCA, store)
		if err != nil {
			return err.Error()
		}
		trusted = trusted || slices.ContainsFunc(anchors, func(anchor *x509.Certificate) bool {
			return slices.ContainsFunc(e.chain, anchor.Equal)
		})
	}
	if !trusted {
		return "its trust stores have no certificate of the chain"
	}
	for _, identity := range statement.TrustedIdentities {
		if identity == "*" || hasIdentity(e.leaf, identity) {
			return ""
		}
	}
	return "the subject matches none of its trusted identities"
}

// hasIdentity reports whether a certificate's subject has every attribute of a trusted identity, such as
// "x509.subject: C=CH, O=Example".
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

// attributes returns the attributes of a distinguished name by their types.
func attributes(dn *ldap.DN) map[string]string {
	values := map[string]string{}
	for _, rdn := range dn.RDNs {
		for _, a := range rdn.Attributes {
			if a.Type == "S" { // Notation reads it as ST
				a.Type = "ST"
			}
			values[a.Type] = a.Value
		}
	}
	return values
}
