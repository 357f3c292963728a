package custody

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// planRotation makes all decisions of a rotation and creates nothing.
func planRotation(ctx context.Context, o RotationRequest) (*Rotation, error) {
	keys, err := loadSigningKeys()
	if err != nil {
		return nil, err
	}
	entry, err := keys.findOwn(o.Name)
	if err != nil {
		return nil, err
	}
	used, err := config.Resolve(entry.ID, entry.PluginConfig, config.PluginConfig)
	if err != nil {
		return nil, err
	}
	if used.Key.Broker {
		return nil, failure.New(failure.Unsupported,
			"cannot rotate Notation's signing key %q: it is registered as %s, which does not tell its token", o.Name, used.Key).
			WithHint("register it by the URI that it has in its module: notation key delete " + o.Name +
				", then notation-hsm install")
	}
	own, err := resolve(o.keystore, entry)
	if err != nil {
		return nil, err
	}
	s, err := o.keystore.ResolveStored(entry.ID, entry.PluginConfig, config.PluginConfig, o.Given)
	if err != nil {
		return nil, err
	}
	id := make([]byte, 8)
	if _, err := rand.Read(id); err != nil {
		return nil, err
	}
	r := &Rotation{
		Name: o.Name, Begun: time.Now().UTC().Truncate(time.Second),
		OldID: entry.ID, OldName: oldName(keys, o.Name), ID: hex.EncodeToString(id),
	}
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error { return r.copyTerms(ctx, store, k, s, o) })
	if err != nil {
		return nil, err
	}
	uri := own.Key
	uri.Object, uri.ID = r.Label, id
	r.NewID = uri.String()
	return r, r.configure(entry, own, used.Broker)
}

// copyTerms sets what the new key and its certificate have in common with the old ones, and the new label.
func (r *Rotation) copyTerms(
	ctx context.Context, store keystore.Store, k keystore.Key, s *keystore.Reference, o RotationRequest,
) error {
	if t := store.Describe(); t.WriteProtect {
		return failure.New(failure.Denied, "the token %q is read-only", t.Label).
			WithHint("create the key with the vendor's tool, and register it with 'notation-hsm install'")
	}
	info, err := k.Info(ctx)
	if err != nil {
		return err
	}
	if isTrue(info.Extractable) {
		return failure.New(failure.Unsupported, "cannot rotate the key %s, which can be backed up", info.URI).
			WithHint("generate the new key with 'notation-hsm key generate --backup-key', and register it with " +
				"'notation-hsm install'")
	}
	spec, err := key.SpecOf(k.Public())
	if err != nil {
		return err
	}
	r.Spec, r.Tags = string(spec.Name), info.Tags
	if r.Label, err = nextLabel(ctx, store, s, info.Label, o.Name); err != nil {
		return err
	}
	known, err := certificates(ctx, store, s)
	if err != nil {
		return err
	}
	leaf := certs.LeafOf(k.Public(), known, time.Now())
	if leaf == nil {
		return withoutCertificate(info.URI)
	}
	r.Subject, r.Days = leaf.Subject.String(), validityDays(leaf)
	return r.chooseSource(leaf, o)
}

// chooseSource sets where the new certificate comes from: what the request says, or else the source of the old leaf.
func (r *Rotation) chooseSource(leaf *x509.Certificate, o RotationRequest) error {
	if o.Request != "" {
		r.Source = ByRequest
		return nil
	}
	if o.CA == "" && selfSigned(leaf) {
		r.Source = SelfSigned
		return nil
	}
	all, err := ca.List(o.keystore, o.CAFolder)
	if err != nil {
		return err
	}
	for _, a := range all {
		if a.Name != o.CA && (o.CA != "" || leaf.CheckSignatureFrom(a.Certificate()) != nil) {
			continue
		}
		r.Source, r.CA = FromCA, a.Name
		if r.Days = limitDays(r.Days, a.Certificate()); r.Days < 1 {
			return failure.New(failure.Invalid, "the certificate of the CA %q expires within a day", a.Name).
				WithHint("create a new CA with 'notation-hsm ca init', and name it with --ca")
		}
		r.CRL, r.OCSP = httpURL(leaf.CRLDistributionPoints), httpURL(leaf.OCSPServer)
		return nil
	}
	if o.CA != "" {
		return failure.New(failure.NotFound, "there is no CA %q in %s", o.CA, o.CAFolder).
			WithHint("list the CAs with: notation-hsm ca list")
	}
	return failure.New(failure.NotFound, "the issuer of the certificate of %q, %q, is not a CA in %s", leaf.Subject,
		leaf.Issuer, o.CAFolder).
		WithHint("write a request for that CA with --csr FILE; or name one of your own CAs with --ca")
}

// limitDays returns a number of days that is at most what remains of an issuer's certificate: a CA issues no
// certificate that expires after its own.
func limitDays(days int, issuer *x509.Certificate) int {
	return min(days, int(time.Until(issuer.NotAfter).Hours()/24))
}

func selfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawSubject, cert.RawIssuer) &&
		cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

// httpURL returns the first http:// URL, or "".
func httpURL(urls []string) string {
	i := slices.IndexFunc(urls, func(u string) bool { return len(u) > 7 && u[:7] == "http://" })
	if i < 0 {
		return ""
	}
	return urls[i]
}

// nextLabel returns the label that follows a key's label and that no key on the token has: release-2 after release,
// release-3 after release-2.
func nextLabel(ctx context.Context, store keystore.Store, s *keystore.Reference, label, name string) (string, error) {
	if label == "" {
		label = name
	}
	base, number := label, 1
	if i := strings.LastIndex(label, "-"); i > 0 {
		if n, err := strconv.Atoi(label[i+1:]); err == nil && n > 0 {
			base, number = label[:i], n
		}
	}
	for range 1000 {
		number++
		next := fmt.Sprintf("%s-%d", base, number)
		taken, err := store.Taken(ctx, config.URI{Object: next})
		if err != nil {
			return "", err
		}
		if !taken {
			return next, nil
		}
	}
	return "", failure.New(failure.Invalid, "no label is available after %q on the token of %s", label, s.Key).
		WithHint("delete old keys with 'notation-hsm key delete'")
}

// oldName returns the first name for the old key that is not in Notation's list.
func oldName(keys *signingKeys, name string) string {
	for n := 1; ; n++ {
		old := fmt.Sprintf("%s-old-%d", name, n)
		if keys.find(old) == nil {
			return old
		}
	}
}

// configure sets the plugin config of the new key, which is reached with the settings of the old one: broker is that
// through which Notation uses the old one. A certificate-chain file with the old leaf is left out: the new chain is on
// the token.
func (r *Rotation) configure(entry signingKey, old *keystore.Reference, broker string) error {
	settings := maps.Clone(entry.PluginConfig)
	if settings == nil {
		settings = map[string]string{}
	}
	if path := settings[config.CertificateChain]; path != "" {
		leaf, err := hasLeaf(path)
		if err != nil {
			return err
		}
		if leaf {
			delete(settings, config.CertificateChain)
		}
	}
	// Settings in the old URI, or under its alias in the config file, are not found by the new URI.
	now, err := old.Keystore().Resolve(r.NewID, settings, config.PluginConfig)
	if err != nil {
		return err
	}
	if now.PIN != old.PIN {
		return failure.New(failure.Invalid, "cannot use the PIN of the signing key %q for the new key: it is set for the "+
			"old key's alias in the config file", r.Name).
			WithHint("set pin-source there instead")
	}
	used, err := config.Resolve(r.NewID, settings, config.PluginConfig)
	if err != nil {
		return err
	}
	if used.Broker != broker {
		settings[config.Broker] = broker
	}
	if now.PINSource != old.PINSource {
		settings[config.PINSource] = old.PINSource
	}
	if now.ModulePath != old.ModulePath {
		settings[config.ModulePath] = old.ModulePath
	}
	if now.Timeout != old.Timeout {
		settings[config.Timeout] = old.Timeout.String()
	}
	if now.CertificateChain != "" {
		leaf, err := hasLeaf(now.CertificateChain)
		if err != nil {
			return err
		}
		if leaf {
			return failure.New(failure.Invalid, "certificate-chain in the environment or the config file names %s, which has "+
				"the certificate of another key", now.CertificateChain).
				WithHint("name a file that has only the issuers, or remove the setting")
		}
	}
	r.PluginConfig = settings
	return nil
}

// hasLeaf reports whether a PEM file has a leaf certificate, and not only issuers.
func hasLeaf(path string) (bool, error) {
	file, err := certs.ReadFile(path)
	return len(certs.Leaves(file)) > 0, err
}

// validityDays returns the days between the beginning and the end of a certificate's validity, at least 1.
func validityDays(cert *x509.Certificate) int {
	return max(1, int(cert.NotAfter.Sub(cert.NotBefore).Hours()+12)/24)
}
