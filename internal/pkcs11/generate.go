package pkcs11

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Generate makes a key pair on the token that the settings name: sensitive, not extractable, good for signing and nothing
// else. It refuses a label that a private key on the token has already. The new key's URI and public half are returned.
//
// crypto11 does the work, in a session and with a login of its own; so ours ends before it starts, and there is one login.
func Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	t, err := Open(ctx, s)
	if err != nil {
		return key.Info{}, err
	}
	secret, err := t.readPIN()
	defer clear(secret)
	t.Close()
	if err != nil {
		return key.Info{}, err
	}
	if t.info.flags&pkcs11.CKF_WRITE_PROTECTED != 0 {
		return key.Info{}, failure.New(failure.Denied, "make the key with the vendor's tool", "%s is read-only", t.name())
	}
	if len(r.ID) == 0 {
		r.ID = make([]byte, 8)
		if _, err := rand.Read(r.ID); err != nil {
			return key.Info{}, err
		}
	}
	t.timeout *= 10 // a smart card takes minutes to find the primes of an RSA key
	info := key.Info{Label: r.Label, ID: r.ID, URI: config.URI{Token: t.info.label, ID: r.ID, Object: r.Label}.String()}
	err = t.within("making the key", func(context.Context) error {
		slot := int(t.slot)
		c, err := crypto11.Configure(&crypto11.Config{
			Path: t.path, SlotNumber: &slot, Pin: string(secret), MaxSessions: 2, LoginNotSupported: !t.wantsLogin(),
		})
		if err != nil {
			return t.failed(err, "can't log in to %s", t.name())
		}
		defer c.Close()
		if err := t.unused(c, r); err != nil {
			return err
		}
		info.Public, err = generate(c, r)
		if err != nil {
			return t.failed(err, "%s did not make the key", t.name())
		}
		return nil
	})
	return info, err
}

// unused fails when a private key has the label or the id already: two keys of one name could not be told apart.
func (t *Token) unused(c *crypto11.Context, r key.Request) error {
	for _, taken := range []struct {
		attribute uint
		value     []byte
		what      string
	}{{pkcs11.CKA_LABEL, []byte(r.Label), "label"}, {pkcs11.CKA_ID, r.ID, "id"}} {
		same := crypto11.NewAttributeSet()
		_ = same.Set(taken.attribute, taken.value) // bytes are always taken
		keys, err := c.FindPrivateKeysWithAttributes(same)
		if err != nil {
			return t.failed(err, "can't search %s", t.name())
		}
		if len(keys) > 0 {
			return failure.New(failure.Invalid, "choose another "+taken.what+", or use the key that is there: see 'notation-hsm key list'",
				"%s has a key with this %s already (%s)", t.name(), taken.what, config.URI{Token: t.info.label, ID: r.ID, Object: r.Label})
		}
	}
	return nil
}

func generate(c *crypto11.Context, r key.Request) (crypto.PublicKey, error) {
	public, err := crypto11.NewAttributeSetWithIDAndLabel(r.ID, []byte(r.Label))
	if err != nil {
		return nil, err
	}
	private := public.Copy()
	for attribute, value := range map[uint]bool{
		pkcs11.CKA_TOKEN: true, pkcs11.CKA_VERIFY: true, pkcs11.CKA_ENCRYPT: false, pkcs11.CKA_WRAP: false,
	} {
		_ = public.Set(attribute, value) // booleans are always taken
	}
	for attribute, value := range map[uint]bool{
		pkcs11.CKA_TOKEN: true, pkcs11.CKA_PRIVATE: true, pkcs11.CKA_SENSITIVE: true, pkcs11.CKA_EXTRACTABLE: false,
		pkcs11.CKA_SIGN: true, pkcs11.CKA_DECRYPT: false, pkcs11.CKA_UNWRAP: false, pkcs11.CKA_DERIVE: false,
	} {
		_ = private.Set(attribute, value)
	}
	var signer crypto.Signer
	switch r.Spec.Bits {
	case 256:
		signer, err = c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P256())
	case 384:
		signer, err = c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P384())
	case 521:
		signer, err = c.GenerateECDSAKeyPairWithAttributes(public, private, elliptic.P521())
	default:
		signer, err = c.GenerateRSAKeyPairWithAttributes(public, private, r.Spec.Bits)
	}
	if err != nil {
		return nil, err
	}
	return signer.Public(), nil
}
