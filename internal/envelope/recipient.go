package envelope

import (
	"context"
	"crypto"
	"crypto/ecdsa"
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

// ParseRecipients reads recipients: a key by its URI or alias, cert:FILE or pubkey:FILE (PEM; a public key also in DER), each with
// ?oaep=sha1 after it where an RSA key is in a token that knows OAEP with SHA-1 alone. No PIN is asked for unless a token shows public
// keys to nobody else.
func ParseRecipients(ctx context.Context, names []string) ([]Recipient, error) {
	if len(names) == 0 {
		return nil, failure.New(failure.Invalid, "name a key, cert:FILE or pubkey:FILE", "there is no recipient")
	}
	recipients := make([]Recipient, len(names))
	for i, name := range names {
		r, err := parseRecipient(ctx, name)
		if err != nil {
			return nil, err
		}
		recipients[i] = r
	}
	return recipients, nil
}

func parseRecipient(ctx context.Context, name string) (Recipient, error) {
	r := Recipient{Name: name}
	if strings.Contains(name, "pin-value=") {
		return r, failure.New(failure.Invalid, "leave out the PIN: whoever encrypts needs none", "a recipient carries a PIN (pin-value), which others would see")
	}
	reference, hash, chosen := cutOAEP(name)
	if reference == "" {
		return r, failure.New(failure.Invalid, "name a key, cert:FILE or pubkey:FILE; is a variable empty?", "the recipient %q names nobody", name)
	}
	switch hash {
	case "sha256":
		r.OAEP = crypto.SHA256
	case "sha1":
		r.OAEP = crypto.SHA1
	default:
		return r, failure.New(failure.Invalid, "write oaep=sha256 (the default) or oaep=sha1", "the recipient %q asks for OAEP with %q", name, hash)
	}
	var err error
	if path, ok := strings.CutPrefix(reference, "cert:"); ok {
		r.Public, err = fromCertificate(path)
	} else if path, ok := strings.CutPrefix(reference, "pubkey:"); ok {
		r.Public, err = fromPublicKey(path)
	} else {
		r.Public, err = fromKey(ctx, reference)
	}
	if err != nil {
		return r, err
	}
	switch r.Public.(type) {
	case *rsa.PublicKey:
	case *ecdsa.PublicKey:
		if chosen {
			return r, failure.New(failure.Invalid, "leave out oaep=", "the recipient %q is an elliptic curve key, which has no OAEP", name)
		}
		r.OAEP = 0
	}
	if r.KeyID() == "" {
		return r, failure.New(failure.Invalid, "use an RSA key, or one on P-256, P-384 or P-521", "the recipient %q has a key of type %T, which nothing can be encrypted to here", name, r.Public)
	}
	return r, nil
}

// cutOAEP takes ?oaep=HASH, or &oaep=HASH after other attributes of a URI, off the end of a recipient.
func cutOAEP(name string) (reference, hash string, chosen bool) {
	for _, mark := range []string{"?oaep=", "&oaep="} {
		if i := strings.LastIndex(name, mark); i >= 0 {
			return name[:i], name[i+len(mark):], true
		}
	}
	return name, "sha256", false
}

func fromCertificate(path string) (crypto.PublicKey, error) {
	found, err := certs.ReadFile(path)
	if err != nil {
		return nil, err
	}
	leaves := certs.Leaves(found)
	if len(leaves) != 1 {
		return nil, failure.New(failure.Invalid, "name a file with one recipient's certificate", "%s has the certificates of %d recipients", path, len(leaves))
	}
	leaf := leaves[0]
	if time.Now().After(leaf.NotAfter) {
		return nil, failure.New(failure.Invalid, "ask the recipient for a new certificate, or encrypt to the key alone with pubkey:FILE",
			"the recipient's certificate in %s expired on %s", path, leaf.NotAfter.UTC().Format(time.DateOnly))
	}
	if !mayReceive(leaf) {
		return nil, failure.New(failure.Invalid, "use the certificate of a recipient's key (keyEncipherment, or keyAgreement on an elliptic curve), or the key alone with pubkey:FILE",
			"the certificate in %s says that its key is not for encryption", path)
	}
	return leaf.PublicKey, nil
}

// mayReceive reports whether a certificate lets its key decrypt or agree on keys (RFC 5280 section 4.2.1.3). One that says nothing does.
func mayReceive(leaf *x509.Certificate) bool {
	uses := x509.KeyUsageKeyEncipherment | x509.KeyUsageDataEncipherment
	if _, isRSA := leaf.PublicKey.(*rsa.PublicKey); !isRSA {
		uses = x509.KeyUsageKeyAgreement
	}
	return leaf.KeyUsage == 0 || leaf.KeyUsage&uses != 0
}

const publicKeyLimit = 1 << 16 // bytes; the file of a public key has less than two thousand

func fromPublicKey(path string) (crypto.PublicKey, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, failure.New(failure.Invalid, "check the path, and that this user can read the file", "can't read the recipient's public key: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, publicKeyLimit))
	if err != nil {
		return nil, failure.New(failure.Invalid, "check the file", "can't read the recipient's public key: %w", err)
	}
	der := data
	if block, _ := pem.Decode(data); block != nil {
		der = block.Bytes
		if strings.Contains(block.Type, "PRIVATE") {
			return nil, failure.New(failure.Invalid, "give the public half; and a private key that has been in a file is no key of a module", "%s has a private key", path)
		}
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		if rsaKey, err := x509.ParsePKCS1PublicKey(der); err == nil {
			return rsaKey, nil
		}
		return nil, failure.New(failure.Invalid, "make it with 'notation-hsm cert export --public KEY'", "%s has no public key: %w", path, err)
	}
	return public, nil
}

// fromKey returns the public half of a key in a module: from the leaf of the certificate-chain in its own entry of the config file, else from
// the module. A certificate-chain that holds for more than this key may be another's.
func fromKey(ctx context.Context, reference string) (crypto.PublicKey, error) {
	s, err := config.Resolve(reference, nil, config.Flags)
	if err != nil {
		return nil, err
	}
	if s.OwnChain {
		return fromCertificate(s.CertificateChain)
	}
	store, err := keystore.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return store.Public()
}
