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

// plan decides everything about a rotation and makes nothing.
func plan(ctx context.Context, o Order) (*Rotation, error) {
	keys, err := loadSigningKeys()
	if err != nil {
		return nil, err
	}
	entry, err := keys.findOwn(o.Name)
	if err != nil {
		return nil, err
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
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error { return r.likeOld(ctx, store, k, s, o) })
	if err != nil {
		return nil, err
	}
	uri := own.Key
	uri.Object, uri.ID = r.Label, id
	r.NewID = uri.String()
	return r, r.configure(entry, own)
}

// likeOld takes over what the new key and its certificate have in common with the old ones.
func (r *Rotation) likeOld(ctx context.Context, store keystore.Store, k keystore.Key, s *keystore.Reference, o Order) error {
	if t := store.Describe(); t.WriteProtect {
		return failure.New(failure.Denied, "the token %q is read-only", t.Label).
			WithHint("make the key with the vendor's tool, and register it with 'notation-hsm install'")
	}
	info, err := k.Info(ctx)
	if err != nil {
		return err
	}
	if info.Extractable != nil && *info.Extractable {
		return failure.New(failure.Denied, "the key %s may be wrapped for backups, and its successor would not be", info.URI).
			WithHint("make the new one with 'notation-hsm key generate --backup-key', and register it with " +
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
		return failure.New(failure.Invalid, "the key %s has no certificate that the next one could be like", info.URI).
			WithHint("make a new key with 'notation-hsm key generate', and register it with 'notation-hsm install'")
	}
	r.Subject, r.Days = leaf.Subject.String(), lifetime(leaf)
	return r.chooseWay(leaf, o)
}

func (r *Rotation) chooseWay(leaf *x509.Certificate, o Order) error {
	if o.Request != "" {
		r.Way = ByRequest
		return nil
	}
	if o.CA == "" && selfSigned(leaf) {
		r.Way = SelfSigned
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
		r.Way, r.CA = FromCA, a.Name
		if r.Days = atMost(r.Days, a.Certificate()); r.Days < 1 {
			return failure.New(failure.Invalid, "the CA %q ends within a day", a.Name).
				WithHint("make a new CA with 'notation-hsm ca init', and name it with --ca")
		}
		r.CRL, r.OCSP = httpURL(leaf.CRLDistributionPoints), httpURL(leaf.OCSPServer)
		return nil
	}
	if o.CA != "" {
		return failure.New(failure.Invalid, "there is no CA %q in %s", o.CA,
			o.CAFolder).
			WithHint("see them with: notation-hsm ca list")
	}
	return failure.New(failure.Invalid,
		"the certificate of %q was issued by %q, which is no CA in %s", leaf.Subject, leaf.Issuer, o.CAFolder).
		WithHint("write a request for that CA with --csr FILE, and give its answer with --cert FILE; or name one of " +
			"your own with --ca")
}

// atMost cuts a number of days down to what a CA has left: it issues nothing that would outlive it.
func atMost(days int, issuer *x509.Certificate) int {
	return min(days, int(time.Until(issuer.NotAfter).Hours()/24))
}

func selfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawSubject, cert.RawIssuer) &&
		cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil
}

func httpURL(urls []string) string {
	i := slices.IndexFunc(urls, func(u string) bool { return len(u) > 7 && u[:7] == "http://" })
	if i < 0 {
		return ""
	}
	return urls[i]
}

// nextLabel counts on from a key's label, release to release-2 to release-3, to one that no key on the token has.
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
	return "", failure.New(failure.Invalid, "every label from %s on is taken on the token of %s", label, s.Key).
		WithHint("delete old keys with 'notation-hsm key delete'")
}

// oldName is the first name that Notation has not got for the key that goes out of use.
func oldName(keys *signingKeys, name string) string {
	for n := 1; ; n++ {
		old := fmt.Sprintf("%s-old-%d", name, n)
		if keys.find(old) == nil {
			return old
		}
	}
}

// configure makes the plugin config of the new key: it is reached as the old one is. A certificate-chain with the old
// leaf must not stay, since the new chain is on the token.
func (r *Rotation) configure(entry signingKey, old *keystore.Reference) error {
	settings := maps.Clone(entry.PluginConfig)
	if settings == nil {
		settings = map[string]string{}
	}
	if path := settings[config.CertificateChain]; path != "" {
		leaf, err := leafFile(path)
		if err != nil {
			return err
		}
		if leaf {
			delete(settings, config.CertificateChain)
		}
	}
	// What the old reference itself carried, or the config file under its alias, has to be said here.
	now, err := old.Keystore().Resolve(r.NewID, settings, config.PluginConfig)
	if err != nil {
		return err
	}
	if now.PIN != old.PIN {
		return failure.New(failure.Invalid,
			"the PIN of the signing key %q stands under its alias in the config file, and can't be carried over to the "+
				"new key",
			r.Name).
			WithHint("give it a pin-source instead")
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
		leaf, err := leafFile(now.CertificateChain)
		if err != nil {
			return err
		}
		if leaf {
			return failure.New(failure.Invalid,
				"certificate-chain, in the environment or the config file, names %s for every key, and the new key's certificate "+
					"is not in it", now.CertificateChain).
				WithHint("name a file with the issuers alone there, or take the setting out")
		}
	}
	r.PluginConfig = settings
	return nil
}
