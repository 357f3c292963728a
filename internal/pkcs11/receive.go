package pkcs11

import (
	"context"
	"crypto"
	"crypto/rsa"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Receives returns what the token shows of the key that the settings name, of which public is the public half, as a
// recipient's: whether the token lists the mechanism, what the private and the public key object may do, as far as they
// are visible, and for RSA with which hashes the module begins an encryption with OAEP. It does not log in.
func (t *Token) Receives(ctx context.Context, public crypto.PublicKey) (r key.Receives, err error) {
	err = t.within(ctx, "asking what key "+keyName(t.settings.Key)+" is for", func(context.Context) error {
		if _, isRSA := public.(*rsa.PublicKey); isRSA {
			r = t.receivesRSA()
		} else {
			r = t.receivesEC()
		}
		return nil
	})
	return r, err
}

func (t *Token) receivesRSA() (r key.Receives) {
	if !t.lists(pkcs11.CKM_RSA_PKCS_OAEP) {
		r.Refusal = t.name() + " does not list the mechanism CKM_RSA_PKCS_OAEP"
		return r
	}
	_, decrypts := t.usagesOf(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_DECRYPT)
	object, encrypts := t.usagesOf(pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_ENCRYPT)
	switch {
	case no(decrypts[0]):
		r.Refusal = "its private key object may not decrypt (CKA_DECRYPT is false)"
	case no(encrypts[0]) && decrypts[0] == nil:
		r.Refusal = "its public key object may not encrypt (CKA_ENCRYPT is false)"
	case yes(encrypts[0]):
		r.OAEP = t.oaepHashes(object)
	}
	r.Sure = r.Refusal == "" && (yes(decrypts[0]) || yes(encrypts[0]))
	return r
}

func (t *Token) receivesEC() (r key.Receives) {
	if !t.lists(pkcs11.CKM_ECDH1_DERIVE) {
		r.Refusal = t.name() + " does not list the mechanism CKM_ECDH1_DERIVE"
		return r
	}
	_, private := t.usagesOf(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_DERIVE)
	_, public := t.usagesOf(pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_DERIVE, pkcs11.CKA_VERIFY)
	if no(private[0]) {
		r.Refusal = "its private key object may not derive (CKA_DERIVE is false)"
		return r
	}
	// A public key that derives is seldom marked so, but one that verifies no signatures has no other use.
	r.Sure = yes(private[0]) || yes(public[0]) || no(public[1])
	return r
}

func (t *Token) lists(mechanism uint) bool {
	return !is(t.calls.hasMechanism(t.slot, mechanism), pkcs11.CKR_MECHANISM_INVALID)
}

// usagesOf returns attributes of the one object of a class that the reference names; nil for what the token does not
// show.
func (t *Token) usagesOf(class uint, attributes ...uint) (objectHandle, []*bool) {
	flags := make([]*bool, len(attributes))
	if unnamed(t.settings.Key) {
		return 0, flags
	}
	objects, err := t.search(t.selector(class, t.settings.Key), 2)
	if err != nil || len(objects) != 1 {
		return 0, flags
	}
	values, err := t.calls.attributes(t.sessions.first, objects[0], attributes...)
	if err != nil {
		return 0, flags
	}
	for i, value := range values {
		if len(value) == 1 {
			set := value[0] != 0
			flags[i] = &set
		}
	}
	return objects[0], flags
}

func yes(flag *bool) bool { return flag != nil && *flag }

func no(flag *bool) bool { return flag != nil && !*flag }

// oaepHashes returns the hashes of OAEP, the safer one first, with which the module begins to encrypt; nil if it does
// not tell, since it encrypts nothing with public keys, for instance.
func (t *Token) oaepHashes(public objectHandle) []crypto.Hash {
	hashes := []crypto.Hash{}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
		err := t.calls.encryptInit(t.sessions.first, pkcs11.CKM_RSA_PKCS_OAEP, oaepParameter(oaepHashes[hash]), public)
		switch {
		case err == nil:
			hashes = append(hashes, hash)
			_ = t.calls.endEncryption(t.sessions.first) // its result is of no interest
		case !refusesParameter(err):
			return nil
		}
	}
	return hashes
}
