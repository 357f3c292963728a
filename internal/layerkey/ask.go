package layerkey

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/subtle"
	"fmt"
	"slices"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/pin"
)

// fromKey fills in the public half of a key in a module. It takes it from the leaf of the certificate-chain in the
// key's own entry of the config file, or else from the module: a certificate-chain that is set for all keys may be
// another key's.
func (r *Recipient) fromKey(ctx context.Context, ks *keystore.Keystore, reference string, origin config.Origin,
	check bool) error {
	s, err := ks.Resolve(reference, nil, origin)
	if err != nil {
		return err
	}
	if s.OwnChain {
		r.Public, err = fromCertificate(s.CertificateChain, check)
		r.warn("its certificate was taken from certificate-chain and its module was not asked")
		return err
	}
	store, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if r.Public, err = store.Public(ctx); err != nil || !check {
		return err
	}
	return r.checkKey(ctx, store, s)
}

// checkKey fails unless the key can decrypt what is encrypted to it, as the module says. Where the module does not say
// and a PIN is configured, it has the key decrypt something; without a PIN, or through a broker, it leaves a warning.
func (r *Recipient) checkKey(ctx context.Context, store keystore.Store, s *keystore.Reference) error {
	receives, err := store.Receives(ctx, r.Public)
	if err != nil {
		return err
	}
	if receives.Refusal != "" {
		return r.cannotDecrypt(failure.New(failure.Denied, "%s", receives.Refusal))
	}
	_, isRSA := r.Public.(*rsa.PublicKey)
	if receives.Sure && (!isRSA || receives.OAEP != nil) {
		return r.chooseOAEP(receives)
	}
	if s.Broker != "" { // it decrypts nothing that could be tried
		r.warn("its broker does not tell what the key may do")
		return nil
	}
	if s.PIN == "" && (s.PINSource == "" || s.PINSource == pin.Prompt || s.PINSource == pin.None) {
		r.warn("its module does not tell what the key may do without a PIN, and none is configured")
		return nil
	}
	if err := store.Login(ctx); err != nil {
		if failure.From(err).CKR == "" { // there was no PIN, and so no login
			r.warn("its module does not tell what the key may do without a PIN: " + err.Error())
			return nil
		}
		return err
	}
	k, err := store.Key(ctx, r.Public)
	if err != nil {
		return err
	}
	return r.tryKey(ctx, k)
}

// chooseOAEP sets the hash of OAEP to the first that the module supports, unless the user chose one that it supports.
// It fails with Unsupported when there is none.
func (r *Recipient) chooseOAEP(receives key.Receives) error {
	if _, isRSA := r.Public.(*rsa.PublicKey); !isRSA {
		return nil
	}
	switch {
	case len(receives.OAEP) == 0:
		return r.cannotDecrypt(failure.New(failure.Unsupported, "its module does not support OAEP with SHA-256 or SHA-1"))
	case r.OAEP == 0:
		r.OAEP = receives.OAEP[0]
	case !slices.Contains(receives.OAEP, r.OAEP):
		return r.cannotDecrypt(failure.New(failure.Unsupported, "its module does not support OAEP with %s", r.OAEP).
			WithHint("leave out oaep="))
	}
	return nil
}

// tryKey has the private key decrypt something that was encrypted to the public key. It sets the hash of OAEP to the
// first that works, unless the user chose one.
func (r *Recipient) tryKey(ctx context.Context, k keystore.Key) error {
	public, isRSA := r.Public.(*rsa.PublicKey)
	if !isRSA {
		return r.tryECDH(ctx, k)
	}
	hashes := []crypto.Hash{crypto.SHA256, crypto.SHA1}
	if r.OAEP != 0 {
		hashes = []crypto.Hash{r.OAEP}
	}
	var err error
	for _, hash := range hashes {
		secret := make([]byte, 32)
		_, _ = rand.Read(secret) // never fails
		var encrypted, decrypted []byte
		if encrypted, err = rsa.EncryptOAEP(hash.New(), rand.Reader, public, secret, nil); err != nil {
			return err
		}
		decrypted, err = k.Decrypt(ctx, encrypted, &rsa.OAEPOptions{Hash: hash})
		if err == nil && subtle.ConstantTimeCompare(decrypted, secret) == 1 {
			r.OAEP = hash
			return nil
		}
		if !failure.Is(err, failure.Unsupported) {
			break
		}
	}
	return r.cannotDecrypt(err)
}

// tryECDH has the private key agree on a secret with a new key.
func (r *Recipient) tryECDH(ctx context.Context, k keystore.Key) error {
	public, ok := r.Public.(*ecdsa.PublicKey)
	if !ok {
		return nil // the caller refuses other types
	}
	own, err := public.ECDH()
	if err != nil {
		return err
	}
	ephemeral, err := own.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	shared, err := k.ECDH(ctx, ephemeral.PublicKey())
	if err != nil {
		return r.cannotDecrypt(err)
	}
	if want, err := ephemeral.ECDH(own); err != nil || subtle.ConstantTimeCompare(shared, want) != 1 {
		return r.cannotDecrypt(err)
	}
	return nil
}

// cannotDecrypt returns the failure of a recipient whose key cannot decrypt what is encrypted to it. why is nil when
// the key decrypted to something else.
func (r *Recipient) cannotDecrypt(why error) error {
	if why == nil {
		why = failure.New(failure.Invalid, "a test decrypted to something else, so the public key is another key's")
	}
	f := *failure.From(why)
	f.What = fmt.Sprintf("the recipient %q cannot decrypt what is encrypted to it: %s", r.Name, f.What)
	if f.Hint == "" {
		f.Hint = "name a key that can decrypt, as 'notation-hsm key generate --usage decrypt' makes it; if the module is " +
			"mistaken, export the public key and name it with pubkey:FILE"
	}
	return &f
}

// warn sets the warning of a recipient whose module was not asked what its key can do, with the reason. Where the user
// chose no hash of OAEP, it is SHA-256.
func (r *Recipient) warn(why string) {
	switch r.Public.(type) {
	case *rsa.PublicKey:
		if r.OAEP == 0 {
			r.OAEP = crypto.SHA256
		}
		r.Warning = fmt.Sprintf("recipient %q: %s; its private key must be allowed to decrypt, with RSA-OAEP and %s", r.Name,
			why, r.OAEP)
		if r.OAEP == crypto.SHA256 {
			r.Warning += " (for a module that knows SHA-1 alone, add ?oaep=sha1)"
		}
	case *ecdsa.PublicKey:
		r.Warning = fmt.Sprintf("recipient %q: %s; its private key must be allowed to derive (CKA_DERIVE), with ECDH", r.Name,
			why)
	}
}
