package layerkey

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"io"
	"os"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Recipient is whom a layer's key is wrapped for.
type Recipient struct {
	Name   string           // as it was given
	Public crypto.PublicKey // *rsa.PublicKey, or *ecdsa.PublicKey on P-256, P-384 or P-521
	OAEP   crypto.Hash      // for RSA: crypto.SHA256, or crypto.SHA1 for tokens that know no other
	// what nobody could be asked about; empty if the module says that the key opens what is encrypted to it
	Warning string
}

// KeyID returns the JWK thumbprint of the public key (RFC 7638 with SHA-256) in base64url.
func (r Recipient) KeyID() string { return thumbprint(r.Public) }

func thumbprint(public crypto.PublicKey) string {
	jwk := jose.JSONWebKey{Key: public}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return "" // no key that could be a recipient
	}
	return base64.RawURLEncoding.EncodeToString(sum)
}

// isThumbprint reports whether a kid has the form of KeyID's.
func isThumbprint(kid string) bool {
	sum, err := base64.RawURLEncoding.DecodeString(kid)
	return err == nil && len(sum) == crypto.SHA256.Size()
}

// ParseRecipients reads recipients, which stand in origin: a key by its URI or alias, cert:FILE or pubkey:FILE (PEM; a
// public key also in DER), each with ?oaep=sha1 or ?oaep=sha256 after it to choose the hash of an RSA key. It refuses a
// recipient that cannot open what is encrypted to it, as far as its module or certificate tells, and leaves a warning
// where neither does. No PIN is needed, unless a token shows public keys to nobody else; where the token leaves open
// what a key may do and a PIN is configured, the key is tried.
func ParseRecipients(ctx context.Context, ks *keystore.Keystore, names []string, origin config.Origin) ([]Recipient, error) {
	return parseRecipients(ctx, ks, names, origin, true)
}

// IdentifyRecipients reads recipients as ParseRecipients does, whether or not they can open anything.
func IdentifyRecipients(ctx context.Context, ks *keystore.Keystore, names []string, origin config.Origin) ([]Recipient, error) {
	return parseRecipients(ctx, ks, names, origin, false)
}

func parseRecipients(ctx context.Context, ks *keystore.Keystore, names []string, origin config.Origin, ask bool) ([]Recipient, error) {
	if len(names) == 0 {
		return nil, failure.New(failure.Invalid, "there is no recipient").WithHint("name a key, cert:FILE or pubkey:FILE")
	}
	recipients := make([]Recipient, len(names))
	for i, name := range names {
		r, err := parseRecipient(ctx, ks, name, origin, ask)
		if err != nil {
			return nil, err
		}
		recipients[i] = r
	}
	return recipients, nil
}

func parseRecipient(ctx context.Context, ks *keystore.Keystore, name string, origin config.Origin, ask bool) (Recipient, error) {
	r := Recipient{Name: config.Redact(name)}
	if strings.Contains(name, "pin-value=") {
		return r, failure.New(failure.Invalid, "a recipient carries a PIN (pin-value), which others would see").
			WithHint("leave out the PIN: whoever encrypts needs none")
	}
	reference, hash, chosen := cutOAEP(name)
	if reference == "" {
		return r, failure.New(failure.Invalid, "the recipient %q names nobody", r.Name).
			WithHint("name a key, cert:FILE or pubkey:FILE; is a variable empty?")
	}
	switch {
	case !chosen:
	case hash == "sha256":
		r.OAEP = crypto.SHA256
	case hash == "sha1":
		r.OAEP = crypto.SHA1
	default:
		return r, failure.New(failure.Invalid, "the recipient %q asks for OAEP with %q",
			r.Name, hash).
			WithHint("write oaep=sha256 or oaep=sha1")
	}
	if err := r.find(ctx, ks, reference, origin, ask); err != nil {
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
			"the recipient %q has a key of type %T, which nothing can be encrypted to here", r.Name, r.Public).
			WithHint("use an RSA key, or one on P-256, P-384 or P-521")
	}
	return r, nil
}

// find fills in the public key of a recipient, and asks what it can open.
func (r *Recipient) find(ctx context.Context, ks *keystore.Keystore, reference string, origin config.Origin, ask bool) (err error) {
	if path, ok := strings.CutPrefix(reference, "cert:"); ok {
		r.Public, err = fromCertificate(path, ask)
	} else if path, ok := strings.CutPrefix(reference, "pubkey:"); ok {
		r.Public, err = fromPublicKey(path)
	} else {
		return r.fromKey(ctx, ks, reference, origin, ask)
	}
	r.assume("nobody was asked what its key can do")
	return err
}

// cutOAEP takes ?oaep=HASH, or &oaep=HASH after other attributes of a URI, off the end of a recipient.
func cutOAEP(name string) (reference, hash string, chosen bool) {
	for _, mark := range []string{"?oaep=", "&oaep="} {
		if i := strings.LastIndex(name, mark); i >= 0 {
			return name[:i], name[i+len(mark):], true
		}
	}
	return name, "", false
}

func fromCertificate(path string, ask bool) (crypto.PublicKey, error) {
	found, err := certs.ReadFile(path)
	if err != nil {
		return nil, err
	}
	leaves := certs.Leaves(found)
	if len(leaves) != 1 {
		return nil, failure.New(failure.Invalid, "%s has the certificates of %d recipients", path, len(leaves)).
			WithHint("name a file with one recipient's certificate")
	}
	if ask {
		err = checkCertificate(path, leaves[0], time.Now())
	}
	return leaves[0].PublicKey, err
}

// checkCertificate refuses certificates that are not valid now, or not for encryption. Who issued one is the user's to
// know.
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
	case !mayReceive(leaf):
		return failure.New(failure.Invalid, "the certificate in %s says that its key is not for encryption", path).
			WithHint("use the certificate of a recipient's key (keyEncipherment, or keyAgreement on an elliptic curve), or the key " +
				"alone with pubkey:FILE")
	}
	return nil
}

// mayReceive reports whether a certificate lets its key decrypt or agree on keys (RFC 5280 section 4.2.1.3). One that
// says nothing does.
func mayReceive(leaf *x509.Certificate) bool {
	if leaf.KeyUsage == 0 {
		return true
	}
	if _, isRSA := leaf.PublicKey.(*rsa.PublicKey); isRSA {
		return leaf.KeyUsage&(x509.KeyUsageKeyEncipherment|x509.KeyUsageDataEncipherment) != 0
	}
	return leaf.KeyUsage&x509.KeyUsageKeyAgreement != 0 && leaf.KeyUsage&x509.KeyUsageDecipherOnly == 0
}

const publicKeyLimit = 1 << 16 // bytes; the file of a public key has less than two thousand

func fromPublicKey(path string) (crypto.PublicKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the recipient's public key: %w", err).
			WithHint("check the path, and that this user can read the file")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, publicKeyLimit))
	if err != nil {
		return nil, failure.New(failure.Invalid, "can't read the recipient's public key: %w", err).WithHint("check the file")
	}
	der := data
	if block, _ := pem.Decode(data); block != nil {
		der = block.Bytes
		if strings.Contains(block.Type, "PRIVATE") {
			return nil, failure.New(failure.Invalid, "%s has a private key",
				path).
				WithHint("give the public half; and a private key that has been in a file is no key of a module")
		}
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		if rsaKey, err := x509.ParsePKCS1PublicKey(der); err == nil {
			return rsaKey, nil
		}
		return nil, failure.New(failure.Invalid, "%s has no public key: %w", path, err).
			WithHint("make it with 'notation-hsm cert export --public KEY'")
	}
	return public, nil
}
