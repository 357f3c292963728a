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

// fromKey fills in the public half of a key in a module: from the leaf of the certificate-chain in its own entry of the
// config file, else from the module. A certificate-chain that holds for more than this key may be another's.
func (r *Recipient) fromKey(ctx context.Context, ks *keystore.Keystore, reference string, origin config.Origin, ask bool) error {
	s, err := ks.Resolve(reference, nil, origin)
	if err != nil {
		return err
	}
	if s.OwnChain {
		r.Public, err = fromCertificate(s.CertificateChain, ask)
		r.assume("its certificate was taken from certificate-chain and its module was not asked")
		return err
	}
	store, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	if r.Public, err = store.Public(ctx); err != nil || !ask {
		return err
	}
	return r.ask(ctx, store, s)
}

// ask has the module say whether the key opens what is encrypted to it.
func (r *Recipient) ask(ctx context.Context, store keystore.Store, s *keystore.Reference) error {
	told, err := store.Receives(ctx, r.Public)
	if err != nil {
		return err
	}
	if told.Refusal != "" {
		return r.refused(failure.New(failure.Denied, "%s", told.Refusal))
	}
	_, isRSA := r.Public.(*rsa.PublicKey)
	if told.Sure && (!isRSA || told.OAEP != nil) {
		return r.choose(told)
	}
	if s.PIN == "" && (s.PINSource == "" || s.PINSource == pin.Prompt || s.PINSource == pin.None) {
		r.assume("its module does not tell what the key may do without a PIN, and none is configured")
		return nil
	}
	if err := store.Login(ctx); err != nil {
		if failure.From(err).CKR == "" { // there is no PIN to be had, and none was tried
			r.assume("its module does not tell what the key may do without a PIN: " + err.Error())
			return nil
		}
		return err
	}
	k, err := store.Key(ctx, r.Public)
	if err != nil {
		return err
	}
	return r.try(ctx, k)
}

// choose takes the hash that the module does, unless the user chose one.
func (r *Recipient) choose(told key.Receives) error {
	if _, isRSA := r.Public.(*rsa.PublicKey); !isRSA {
		return nil
	}
	switch {
	case len(told.OAEP) == 0:
		return r.refused(failure.New(failure.Unsupported, "its module does no OAEP with SHA-256 or SHA-1"))
	case r.OAEP == 0:
		r.OAEP = told.OAEP[0]
	case !slices.Contains(told.OAEP, r.OAEP):
		return r.refused(failure.New(failure.Unsupported, "its module does no OAEP with %s", r.OAEP).
			WithHint("leave out oaep="))
	}
	return nil
}

// try has the key open something, with the first hash of OAEP that its module does, unless the user chose one.
func (r *Recipient) try(ctx context.Context, k keystore.Key) error {
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
		_, _ = rand.Read(secret) // which never fails
		var encrypted, opened []byte
		if encrypted, err = rsa.EncryptOAEP(hash.New(), rand.Reader, public, secret, nil); err != nil {
			return err
		}
		opened, err = k.Decrypt(ctx, encrypted, &rsa.OAEPOptions{Hash: hash})
		if err == nil && subtle.ConstantTimeCompare(opened, secret) == 1 {
			r.OAEP = hash
			return nil
		}
		if !failure.Is(err, failure.Unsupported) {
			break
		}
	}
	return r.refused(err)
}

func (r *Recipient) tryECDH(ctx context.Context, k keystore.Key) error {
	public, ok := r.Public.(*ecdsa.PublicKey)
	if !ok {
		return nil // the caller says what is wrong with the type
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
		return r.refused(err)
	}
	if want, err := ephemeral.ECDH(own); err != nil || subtle.ConstantTimeCompare(shared, want) != 1 {
		return r.refused(err)
	}
	return nil
}

// refused says that the recipient could not open an image, and why. Without a reason, the key has opened something
// wrongly.
func (r *Recipient) refused(why error) error {
	if why == nil {
		why = failure.New(failure.Invalid, "the trial opened to something else, so its public key is another key's")
	}
	f := *failure.From(why)
	f.What = fmt.Sprintf("the recipient %q cannot open what is encrypted to it: %s", r.Name, f.What)
	if f.Hint == "" {
		f.Hint =
			"name a recipient's key, as 'notation-hsm key generate --usage decrypt' makes it; if its module is mistaken, name " +
				"the exported public key with pubkey:FILE"
	}
	return &f
}

// assume leaves a warning of what is taken for granted, since nobody could be asked.
func (r *Recipient) assume(why string) {
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
