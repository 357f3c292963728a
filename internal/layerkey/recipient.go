package layerkey

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Recipient is a public key that layers' keys are wrapped for.
type Recipient struct {
	Name    string           // as the user wrote it, without secrets
	Public  crypto.PublicKey // *rsa.PublicKey, or *ecdsa.PublicKey on P-256, P-384 or P-521
	OAEP    crypto.Hash      // for RSA: crypto.SHA256, or crypto.SHA1 for modules that support no other
	Warning string           // what could not be checked; empty if the module says that the key can decrypt
}

// KeyID returns the JWK thumbprint of the public key (RFC 7638 with SHA-256) in base64url.
func (r Recipient) KeyID() string { return thumbprint(r.Public) }

// thumbprint is KeyID for a public key. It is empty for a key that cannot be a recipient.
func thumbprint(public crypto.PublicKey) string {
	jwk := jose.JSONWebKey{Key: public}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return ""
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// isThumbprint reports whether a kid has the form of KeyID's.
func isThumbprint(kid string) bool {
	sum, err := base64.RawURLEncoding.DecodeString(kid)
	return err == nil && len(sum) == crypto.SHA256.Size()
}

// ParseRecipients returns the recipients that names give; origin is where the names come from. A name is a key's URI or
// alias, cert:FILE or pubkey:FILE (PEM; a public key also in DER). ?oaep=sha1 or ?oaep=sha256 after it chooses the hash
// for an RSA key.
//
// It refuses a recipient whose key cannot decrypt what is encrypted to it, as its module or certificate says, and
// leaves a warning where neither says so. It needs no PIN, except for a token that shows public keys after a login
// alone. Where the token does not say what a key may do and a PIN is configured, the key is tried.
func ParseRecipients(ctx context.Context, ks *keystore.Keystore, names []string, origin config.Origin) ([]Recipient,
	error) {
	return parseRecipients(ctx, ks, names, origin, true)
}

// IdentifyRecipients is ParseRecipients without checking what the keys can do.
func IdentifyRecipients(ctx context.Context, ks *keystore.Keystore, names []string, origin config.Origin) ([]Recipient,
	error) {
	return parseRecipients(ctx, ks, names, origin, false)
}

func parseRecipients(ctx context.Context, ks *keystore.Keystore, names []string, origin config.Origin,
	check bool) ([]Recipient, error) {
	if len(names) == 0 {
		return nil, failure.New(failure.Invalid, "there is no recipient").WithHint("name a key, cert:FILE or pubkey:FILE")
	}
	recipients := make([]Recipient, len(names))
	for i, name := range names {
		r, err := parseRecipient(ctx, ks, name, origin, check)
		if err != nil {
			return nil, err
		}
		recipients[i] = r
	}
	return recipients, nil
}

func parseRecipient(ctx context.Context, ks *keystore.Keystore, name string, origin config.Origin,
	check bool) (Recipient, error) {
	r := Recipient{Name: config.Redact(name)}
	if strings.Contains(name, "pin-value=") {
		return r, failure.New(failure.Invalid, "a recipient carries a PIN (pin-value), which others could read").
			WithHint("leave out the PIN: encrypting needs none")
	}
	reference, hash, chosen := cutOAEP(name)
	if reference == "" {
		return r, failure.New(failure.Invalid, "the recipient %q is empty", r.Name).
			WithHint("name a key, cert:FILE or pubkey:FILE; check that no variable is empty")
	}
	switch {
	case !chosen:
	case hash == "sha256":
		r.OAEP = crypto.SHA256
	case hash == "sha1":
		r.OAEP = crypto.SHA1
	default:
		return r, failure.New(failure.Invalid, "the recipient %q asks for OAEP with %q", r.Name, hash).
			WithHint("write oaep=sha256 or oaep=sha1")
	}
	if err := r.resolve(ctx, ks, reference, origin, check); err != nil {
		return r, err
	}
	if _, isRSA := r.Public.(*rsa.PublicKey); !isRSA {
		if chosen {
			return r, failure.New(failure.Invalid, "the recipient %q is an elliptic curve key, which has no OAEP", r.Name).
				WithHint("leave out oaep=")
		}
		r.OAEP = 0
	}
	if r.KeyID() == "" {
		return r, failure.New(failure.Invalid,
			"the recipient %q has a key of type %T, which is not supported", r.Name, r.Public).
			WithHint("use an RSA key, or one on P-256, P-384 or P-521")
	}
	return r, nil
}

// resolve fills in the public key of a recipient, and checks what the key can do.
func (r *Recipient) resolve(ctx context.Context, ks *keystore.Keystore, reference string, origin config.Origin,
	check bool) (err error) {
	if path, ok := strings.CutPrefix(reference, "cert:"); ok {
		r.Public, err = fromCertificate(path, check)
	} else if path, ok := strings.CutPrefix(reference, "pubkey:"); ok {
		r.Public, err = certs.ReadPublicKey(path)
	} else {
		return r.fromKey(ctx, ks, reference, origin, check)
	}
	r.warn("no module was asked what its key can do")
	return err
}

// cutOAEP cuts ?oaep=HASH, or &oaep=HASH after other attributes of a URI, from the end of a recipient's name.
func cutOAEP(name string) (reference, hash string, chosen bool) {
	for _, mark := range []string{"?oaep=", "&oaep="} {
		if i := strings.LastIndex(name, mark); i >= 0 {
			return name[:i], name[i+len(mark):], true
		}
	}
	return name, "", false
}

// fromCertificate returns the public key of the only leaf in a file.
func fromCertificate(path string, check bool) (crypto.PublicKey, error) {
	found, err := certs.ReadFile(path)
	if err != nil {
		return nil, err
	}
	leaves := certs.Leaves(found)
	if len(leaves) != 1 {
		return nil, failure.New(failure.Invalid, "%s has the certificates of %d recipients", path, len(leaves)).
			WithHint("name a file with one recipient's certificate")
	}
	if check {
		err = checkCertificate(path, leaves[0], time.Now())
	}
	return leaves[0].PublicKey, err
}

// checkCertificate fails with Invalid for a certificate that is not valid at a time, or not for encryption. It does not
// check who issued the certificate: the user chose it.
func checkCertificate(path string, leaf *x509.Certificate, now time.Time) error {
	switch {
	case now.After(leaf.NotAfter):
		return failure.New(failure.Invalid,
			"the recipient's certificate in %s expired on %s", path, leaf.NotAfter.UTC().Format(time.DateOnly)).
			WithHint("ask the recipient for a new certificate, or encrypt to the key alone with pubkey:FILE")
	case now.Before(leaf.NotBefore):
		return failure.New(failure.Invalid,
			"the recipient's certificate in %s is not valid before %s", path, leaf.NotBefore.UTC().Format(time.RFC3339)).
			WithHint("check this machine's clock, or encrypt to the key alone with pubkey:FILE")
	case !allowsEncryption(leaf):
		return failure.New(failure.Invalid, "the certificate in %s says that its key is not for encryption", path).
			WithHint("use a certificate with the key usage keyEncipherment, or keyAgreement for an elliptic curve key, or " +
				"encrypt to the key alone with pubkey:FILE")
	}
	return nil
}

// allowsEncryption reports whether the key usage of a certificate includes decryption or key agreement (RFC 5280
// section 4.2.1.3). A certificate without a key usage allows both.
func allowsEncryption(leaf *x509.Certificate) bool {
	if leaf.KeyUsage == 0 {
		return true
	}
	if _, isRSA := leaf.PublicKey.(*rsa.PublicKey); isRSA {
		return leaf.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageDataEncipherment) != 0
	}
	return leaf.KeyUsage&x509.KeyUsageKeyAgreement != 0 && leaf.KeyUsage&x509.KeyUsageDecipherOnly == 0
}
