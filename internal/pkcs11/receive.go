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
func (t *Token) Receives(ctx context.Context, public crypto.PublicKey) (key.Receives, error) {
	activity := "asking what key " + keyName(t.settings.Key) + " is for"
	return inSession(ctx, t, activity, func(_ context.Context, s *session) (key.Receives, error) {
		if _, isRSA := public.(*rsa.PublicKey); isRSA {
			return s.receivesRSA(), nil
		}
		return s.receivesEC(), nil
	})
}

func (s *session) receivesRSA() (r key.Receives) {
	if !s.lists(pkcs11.CKM_RSA_PKCS_OAEP) {
		r.Refusal = s.name() + " does not list the mechanism CKM_RSA_PKCS_OAEP"
		return r
	}
	_, decrypts := s.usagesOf(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_DECRYPT)
	object, encrypts := s.usagesOf(pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_ENCRYPT)
	switch {
	case no(decrypts[0]):
		r.Refusal = "its private key object may not decrypt (CKA_DECRYPT is false)"
	case no(encrypts[0]) && decrypts[0] == nil:
		r.Refusal = "its public key object may not encrypt (CKA_ENCRYPT is false)"
	case yes(encrypts[0]):
		r.OAEP = s.oaepHashes(object)
	}
	r.Sure = r.Refusal == "" && (yes(decrypts[0]) || yes(encrypts[0]))
	return r
}

func (s *session) receivesEC() (r key.Receives) {
	if !s.lists(pkcs11.CKM_ECDH1_DERIVE) {
		r.Refusal = s.name() + " does not list the mechanism CKM_ECDH1_DERIVE"
		return r
	}
	_, private := s.usagesOf(pkcs11.CKO_PRIVATE_KEY, pkcs11.CKA_DERIVE)
	_, public := s.usagesOf(pkcs11.CKO_PUBLIC_KEY, pkcs11.CKA_DERIVE, pkcs11.CKA_VERIFY)
	if no(private[0]) {
		r.Refusal = "its private key object may not derive (CKA_DERIVE is false)"
		return r
	}
	// A public key that derives is seldom marked so, but one that verifies no signatures has no other use.
	r.Sure = yes(private[0]) || yes(public[0]) || no(public[1])
	return r
}

func (s *session) lists(mechanism uint) bool {
	return !is(s.calls.hasMechanism(s.pool.slot, mechanism), pkcs11.CKR_MECHANISM_INVALID)
}

// usagesOf returns attributes of the one object of a class that the reference names; nil for what the token does not
// show.
func (s *session) usagesOf(class uint, attributes ...uint) (objectHandle, []*bool) {
	flags := make([]*bool, len(attributes))
	if unnamed(s.settings.Key) {
		return 0, flags
	}
	objects, err := s.search(s.selector(class, s.settings.Key), 2)
	if err != nil || len(objects) != 1 {
		return 0, flags
	}
	values, err := s.calls.attributes(s.handle, objects[0], attributes...)
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
func (s *session) oaepHashes(public objectHandle) []crypto.Hash {
	hashes := []crypto.Hash{}
	for _, hash := range []crypto.Hash{crypto.SHA256, crypto.SHA1} {
		err := s.calls.encryptInit(s.handle, pkcs11.CKM_RSA_PKCS_OAEP, oaepParameter(oaepHashes[hash]), public)
		switch {
		case err == nil:
			hashes = append(hashes, hash)
			_ = s.calls.endEncryption(s.handle) // its result is of no interest
		case !refusesParameter(err):
			return nil
		}
	}
	return hashes
}
