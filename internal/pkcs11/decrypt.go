package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"encoding/binary"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Decrypt opens an RSA ciphertext in the module. opts select the scheme: *rsa.OAEPOptions for RSAES-OAEP (RFC 8017
// section 7.1; one hash for both of its uses, and no label), *rsa.PKCS1v15DecryptOptions for RSAES-PKCS1-v1_5 (section
// 7.2). With its SessionKeyLen, a ciphertext that does not open gives a random key, so that nobody learns from errors
// which ciphertexts are well formed.
func (k *Key) Decrypt(ctx context.Context, ciphertext []byte, opts crypto.DecrypterOpts) ([]byte, error) {
	public, ok := k.public.(*rsa.PublicKey)
	if !ok {
		return nil, failure.New(failure.Invalid, "key %s does not decrypt: it is no RSA key", k.name()).
			WithHint("use an RSA key")
	}
	if len(ciphertext) != public.Size() {
		return nil, failure.New(failure.Invalid, "%d bytes cannot be encrypted to key %s, whose ciphertexts have %d",
			len(ciphertext), k.name(), public.Size())
	}
	switch o := opts.(type) {
	case *rsa.OAEPOptions:
		return k.decryptOAEP(ctx, ciphertext, o)
	case *rsa.PKCS1v15DecryptOptions: //nolint:staticcheck // deprecated as dangerous, and what CMS in images has
		return k.decryptPKCS1(ctx, ciphertext, o.SessionKeyLen)
	}
	return nil, failure.New(failure.Internal, "no decryption with options of type %T", opts)
}

func (k *Key) decryptOAEP(ctx context.Context, ciphertext []byte, o *rsa.OAEPOptions) ([]byte, error) {
	hashes, ok := oaepHashes[o.Hash]
	if !ok || len(o.Label) > 0 || (o.MGFHash != 0 && o.MGFHash != o.Hash) {
		return nil, failure.New(failure.Internal, "no OAEP with %v, a label of %d bytes and %v", o.Hash, len(o.Label),
			o.MGFHash)
	}
	plain, err := k.decryptWith(ctx, pkcs11.CKM_RSA_PKCS_OAEP, oaepParameter(hashes), ciphertext)
	if o.Hash != crypto.SHA1 && refusesParameter(err) {
		f := failure.From(err)
		f.Kind = failure.Unsupported
		f.What = k.name() + " cannot be used: " + k.token.name() + " does no OAEP with " + o.Hash.String()
		f.Hint =
			"encrypt to this key with SHA-1, by ?oaep=sha1 after the recipient; SHA-1 is safe in OAEP, and some tokens know " +
				"no other hash"
		return nil, f
	}
	return plain, err
}

func refusesParameter(err error) bool {
	return is(err, pkcs11.CKR_MECHANISM_PARAM_INVALID) || is(err, pkcs11.CKR_MECHANISM_INVALID) ||
		is(err, pkcs11.CKR_ARGUMENTS_BAD)
}

func (k *Key) decryptPKCS1(ctx context.Context, ciphertext []byte, length int) ([]byte, error) {
	plain, err := k.decryptWith(ctx, pkcs11.CKM_RSA_PKCS, nil, ciphertext)
	if length == 0 {
		return plain, err
	}
	if err != nil && !badCiphertext(err) {
		return nil, err
	}
	if err != nil || len(plain) != length {
		plain = make([]byte, length)
		_, err = rand.Read(plain)
	}
	return plain, err
}

// badCiphertext reports whether the module found nothing encrypted to this key. SoftHSM answers CKR_GENERAL_ERROR then.
func badCiphertext(err error) bool {
	return is(err, pkcs11.CKR_ENCRYPTED_DATA_INVALID) || is(err, pkcs11.CKR_ENCRYPTED_DATA_LEN_RANGE) ||
		is(err, pkcs11.CKR_DATA_INVALID) ||
		is(err, pkcs11.CKR_FUNCTION_FAILED) || is(err, pkcs11.CKR_GENERAL_ERROR)
}

type oaepHash struct{ hash, mgf uint }

var oaepHashes = map[crypto.Hash]oaepHash{
	crypto.SHA1:   {pkcs11.CKM_SHA_1, pkcs11.CKG_MGF1_SHA1},
	crypto.SHA224: {pkcs11.CKM_SHA224, pkcs11.CKG_MGF1_SHA224},
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512},
}

// oaepParameter is a CK_RSA_PKCS_OAEP_PARAMS (PKCS#11 2.40 mechanisms, section 2.1.7) with an empty label: hash, mask
// generation function, CKZ_DATA_SPECIFIED, a null pointer and the length 0, each as long as a C unsigned long.
func oaepParameter(h oaepHash) []byte {
	var parameter []byte
	for _, word := range []uint{h.hash, h.mgf, pkcs11.CKZ_DATA_SPECIFIED, 0, 0} {
		if wordSize == 8 {
			parameter = binary.NativeEndian.AppendUint64(parameter, uint64(word))
		} else {
			parameter = binary.NativeEndian.AppendUint32(parameter, uint32(word)) //nolint:gosec // the constants fit
		}
	}
	return parameter
}

// decryptWith decrypts in two calls, with a login between them for a key that needs one.
func (k *Key) decryptWith(ctx context.Context, mechanism uint, parameter, ciphertext []byte) ([]byte, error) {
	return useKey(ctx, k, "decrypting with key "+k.name(), "did not decrypt", func(u use) ([]byte, error) {
		err := u.calls.decryptInit(u.handle, mechanism, parameter, u.object)
		if is(err, pkcs11.CKR_OPERATION_ACTIVE) { // one that failed before has left its operation behind
			_, _ = u.calls.decrypt(u.handle, ciphertext)
			err = u.calls.decryptInit(u.handle, mechanism, parameter, u.object)
		}
		if err != nil {
			return nil, k.notPermitted(err, "decrypt", "CKA_DECRYPT")
		}
		if u.login != nil {
			if err := u.login(); err != nil {
				return nil, err
			}
		}
		plain, err := u.calls.decrypt(u.handle, ciphertext)
		if u.login == nil && u.wantsLoginForUse(err) {
			return nil, errWantsLogin
		}
		return plain, err
	})
}

// notPermitted says which attribute the key lacks, when that is why the module refused.
func (k *Key) notPermitted(err error, what, attribute string) error {
	if !is(err, pkcs11.CKR_KEY_FUNCTION_NOT_PERMITTED) && !is(err, pkcs11.CKR_KEY_TYPE_INCONSISTENT) {
		return err
	}
	t := k.token
	f := failure.From(t.failed(err, "key %s on %s may not %s (%s is false)", k.name(), t.name(), what, attribute))
	f.Kind, f.Hint = failure.Denied, "use a recipient's key, as 'notation-hsm key generate --usage decrypt' makes it"
	return f
}

// ECDH returns the x coordinate that the key shares with another's public key, as long as the curve's field (SEC 1
// section 3.3.1, without the cofactor, which is 1 on these curves). The module derives a secret for it and shows it.
func (k *Key) ECDH(ctx context.Context, remote *ecdh.PublicKey) ([]byte, error) {
	public, ok := k.public.(*ecdsa.PublicKey)
	if !ok {
		return nil, failure.New(failure.Invalid, "key %s does no ECDH: it is no elliptic curve key", k.name()).
			WithHint("use an elliptic curve key")
	}
	if own, err := public.ECDH(); err != nil || own.Curve() != remote.Curve() {
		return nil, failure.New(failure.Invalid, "key %s is on another curve than %v", k.name(), remote.Curve())
	}
	size := (public.Params().BitSize + 7) / 8
	return useKey(ctx, k, "deriving with key "+k.name(), "did not derive", func(u use) ([]byte, error) {
		return k.derive(u, remote.Bytes(), size)
	})
}

// derive has the module derive a secret of size bytes from an uncompressed point, and reads its value.
func (k *Key) derive(u use, point []byte, size int) ([]byte, error) {
	template := []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_SECRET_KEY),
		pkcs11.NewAttribute(pkcs11.CKA_KEY_TYPE, pkcs11.CKK_GENERIC_SECRET),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, false), pkcs11.NewAttribute(pkcs11.CKA_SENSITIVE, false),
		pkcs11.NewAttribute(pkcs11.CKA_EXTRACTABLE, true), pkcs11.NewAttribute(pkcs11.CKA_VALUE_LEN, size),
	}
	secret, err := u.calls.deriveECDH(u.handle, pkcs11.CKM_ECDH1_DERIVE, u.object, point, template)
	if refusesParameter(err) { // some modules want the point as CKA_EC_POINT has it, in an OCTET STRING
		secret, err = u.calls.deriveECDH(u.handle, pkcs11.CKM_ECDH1_DERIVE, u.object, octetString(point), template)
	}
	if is(err, pkcs11.CKR_FUNCTION_NOT_SUPPORTED) || is(err, pkcs11.CKR_MECHANISM_INVALID) {
		f := failure.From(u.failed(err, "%s does no ECDH with key %s", u.name(), k.name()))
		f.Kind, f.Hint = failure.Unsupported, "use an RSA key on this token"
		return nil, f
	}
	if err != nil {
		return nil, k.notPermitted(err, "derive", "CKA_DERIVE")
	}
	defer func() { _ = u.calls.destroyObject(u.handle, secret) }()
	values, err := u.calls.attributes(u.handle, secret, pkcs11.CKA_VALUE)
	if err != nil {
		return nil, err
	}
	if len(values[0]) != size {
		return nil, failure.New(failure.Unsupported, "%s does not show what it derives", u.name()).
			WithHint("use an RSA key on this token")
	}
	return values[0], nil
}
