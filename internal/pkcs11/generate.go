package pkcs11

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/ThalesGroup/crypto11"
	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// Generate makes a key pair on the token that the settings name: sensitive, not extractable unless it is to be wrapped
// for backups, good for what the request says and nothing else. It refuses a label that a private key on the token has
// already. The new key's URI and public half are returned.
//
// crypto11 does the work. It initialises and finalises the module itself, so no store of this process may have the
// module open meanwhile, and there is one login.
func (b *Backend) Generate(ctx context.Context, s *config.Settings, r key.Request) (key.Info, error) {
	if s.InitArgs != "" {
		return key.Info{}, failure.New(failure.Unsupported, "no keys are generated in a module with init-args").
			WithHint("make the key with the vendor's tool")
	}
	t, err := b.open(ctx, s)
	if err != nil {
		return key.Info{}, err
	}
	strict, err := t.checkGenerates(ctx)
	_ = t.Close()
	if err != nil {
		return key.Info{}, err
	}
	if len(r.ID) == 0 {
		r.ID = make([]byte, 8)
		if _, err := rand.Read(r.ID); err != nil {
			return key.Info{}, err
		}
	}
	return call(ctx, t.module, s.Timeout, "making the key", func(ctx context.Context) (key.Info, error) {
		unlock, err := t.module.closeToOthers(ctx, s.Timeout)
		if err != nil {
			return key.Info{}, err
		}
		defer unlock()
		return t.generate(ctx, r, strict)
	})
}

// checkGenerates fails if the token takes no new keys, and reports whether a template may say what a key must not do.
func (t *Token) checkGenerates(ctx context.Context) (strict bool, err error) {
	if err := t.checkWritable("make the key with the vendor's tool"); err != nil {
		return false, err
	}
	maker, _ := inSession(ctx, t, "asking for its maker", func(context.Context, *session) (string, error) {
		return t.calls.manufacturer()
	})
	return maker != tpm2, nil
}

// closeToOthers waits until no store has the module open, keeps others from opening it, and returns the function that
// ends that.
func (m *Module) closeToOthers(ctx context.Context, limit time.Duration) (unlock func(), err error) {
	wait, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	m.inFlight.Add(-1) // this call is not in the module while it waits, so the last store that closes finalises that
	defer m.inFlight.Add(1)
	inUse := failure.New(failure.Conflict, "other operations of this process use the PKCS#11 module %s", m.path).
		WithHint("generate keys while the module is not in use")
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		select {
		case m.starting <- struct{}{}:
		case <-wait.Done():
			return nil, inUse
		}
		if m.unused() && !m.running {
			return func() { <-m.starting }, nil
		}
		<-m.starting
		select {
		case <-time.After(jitter(pause)):
		case <-wait.Done():
			return nil, inUse
		}
	}
}

// generate reads the PIN and has crypto11 generate the key.
func (t *Token) generate(ctx context.Context, r key.Request, strict bool) (key.Info, error) {
	m := t.module
	secret, err := t.readPIN(ctx, t.info)
	if err != nil {
		return key.Info{}, err
	}
	defer secret.Clear()
	end, err := t.turn(ctx, pkcs11.CKU_USER, t.settings.Timeout)
	if err != nil {
		return key.Info{}, err
	}
	unlock := m.lock(ctx, t.settings.Timeout)
	loggedIn := sync.OnceFunc(func() { unlock(); end() })
	defer loggedIn()
	limit := 10 * t.settings.Timeout // a smart card takes minutes to find the primes of an RSA key
	return step(ctx, m, limit, "making the key", func() (info key.Info, err error) {
		info = key.Info{Label: r.Label, ID: r.ID, URI: config.URI{Token: t.info.label, ID: r.ID, Object: r.Label}.String()}
		slot := int(t.slot)
		// crypto11 takes the PIN as a string, which nobody can clear: it is in memory until the garbage collector reuses it.
		c, err := crypto11.Configure(&crypto11.Config{
			Path: m.path, SlotNumber: &slot, Pin: string(secret.Bytes()), MaxSessions: 2, LoginNotSupported: !t.wantsLogin(),
		})
		secret.Clear()
		if err != nil {
			failed := t.failed(err, "cannot log in to %s", t.name())
			if t.mayHaveRefused(err) {
				m.backend.refuse(t.loginIdentity(pkcs11.CKU_USER), failed)
			}
			return info, failed
		}
		loggedIn()
		defer c.Close()
		if err := t.checkUnused(c, r); err != nil {
			return info, err
		}
		if info.Public, err = generate(c, r, strict); is(err, pkcs11.CKR_TEMPLATE_INCONSISTENT) ||
			is(err, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID) || is(err, pkcs11.CKR_ATTRIBUTE_TYPE_INVALID) {
			info.Public, err = generate(c, r, false)
		}
		switch {
		case is(err, pkcs11.CKR_MECHANISM_INVALID), is(err, pkcs11.CKR_ATTRIBUTE_VALUE_INVALID),
			is(err, pkcs11.CKR_KEY_SIZE_RANGE), is(err, pkcs11.CKR_CURVE_NOT_SUPPORTED):
			f := failure.From(t.failed(err, "%s makes no %s keys", t.name(), r.Spec.Name))
			f.Kind, f.Hint = failure.Unsupported, "try another --spec; what the token can make is shown by: pkcs11-tool -M"
			return info, f
		case err != nil:
			return info, t.failed(err, "%s did not make the key, or made it and cannot show it (see 'notation-hsm key list')",
				t.name())
		}
		if r.Usage == key.Decrypt {
			info.Sign = allows(c, r, pkcs11.CKA_SIGN)
		} else {
			info.Decrypt = allows(c, r, pkcs11.CKA_DECRYPT)
		}
		return info, nil
	})
}

// mayHaveRefused reports whether an error of crypto11's start may say that the token refused the PIN. As in loginNow,
// every return value counts but for those that say otherwise.
func (t *Token) mayHaveRefused(err error) bool {
	var ckr pkcs11.Error
	return errors.As(err, &ckr) && ckr != pkcs11.CKR_SESSION_COUNT && !t.lossOf(err)
}

// tpm2 is the manufacturer of tpm2-pkcs11. It fails on a template that forbids what a TPM's key can do anyway, and the
// TPM then holds the refused key until it has no room for a login. So it must not be tried.
const tpm2 = "tpm2-software.github.io"

// allows reports whether the new key can also do what it was not made for, since the module refused a template that
// forbids it. It returns nil when the module does not say.
func allows(c *crypto11.Context, r key.Request, usage uint) *bool {
	k, err := c.FindKeyPair(r.ID, []byte(r.Label))
	if err != nil || k == nil {
		return nil
	}
	attribute, err := c.GetAttribute(k, usage)
	if err != nil || attribute == nil || len(attribute.Value) != 1 {
		return nil
	}
	set := attribute.Value[0] != 0
	return &set
}

// checkUnused fails when a private key has the label or the id already: two keys of one name could not be told apart.
func (t *Token) checkUnused(c *crypto11.Context, r key.Request) error {
	for _, taken := range []struct {
		attribute uint
		value     []byte
		what      string
		shown     string
	}{{pkcs11.CKA_LABEL, []byte(r.Label), "label", fmt.Sprintf("%q", r.Label)},
		{pkcs11.CKA_ID, r.ID, "id", fmt.Sprintf("%x", r.ID)}} {
		same := crypto11.NewAttributeSet()
		_ = same.Set(taken.attribute, taken.value) // bytes are always taken
		keys, err := c.FindPrivateKeysWithAttributes(same)
		if err != nil {
			return t.failed(err, "cannot search %s", t.name())
		}
		if len(keys) > 0 {
			return failure.New(failure.Conflict, "%s has a key with this %s already: %s", t.name(), taken.what, taken.shown).
				WithHint("choose another " + taken.what +
					", or use the key that is there: see 'notation-hsm key list'")
		}
	}
	return nil
}

// usages are the attributes of a key pair for each use that it can be made for.
func usages(usage key.Usage, isRSA bool) (public, private, others []uint) {
	switch {
	case usage != key.Decrypt:
		return []uint{pkcs11.CKA_VERIFY}, []uint{pkcs11.CKA_SIGN},
			[]uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP, pkcs11.CKA_DERIVE}
	case isRSA:
		return []uint{pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP}, []uint{pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP},
			[]uint{pkcs11.CKA_SIGN, pkcs11.CKA_DERIVE}
	}
	return nil, []uint{pkcs11.CKA_DERIVE}, []uint{pkcs11.CKA_SIGN, pkcs11.CKA_DECRYPT, pkcs11.CKA_UNWRAP}
}

// generate makes the key. A strict template forbids what the key is not made for; otherwise the module decides.
func generate(c *crypto11.Context, r key.Request, strict bool) (crypto.PublicKey, error) {
	public, err := crypto11.NewAttributeSetWithIDAndLabel(r.ID, []byte(r.Label))
	if err != nil {
		return nil, err
	}
	private := public.Copy()
	set := func(template crypto11.AttributeSet, value bool, attributes ...uint) {
		for _, attribute := range attributes {
			_ = template.Set(attribute, value) // booleans are always taken
		}
	}
	uses, privateUses, others := usages(r.Usage, r.Spec.IsRSA())
	set(public, true, append(uses, pkcs11.CKA_TOKEN)...)
	set(private, true, append(privateUses, pkcs11.CKA_TOKEN, pkcs11.CKA_PRIVATE, pkcs11.CKA_SENSITIVE)...)
	set(private, r.Wrappable, pkcs11.CKA_EXTRACTABLE)
	if r.Wrappable {
		set(private, true, pkcs11.CKA_WRAP_WITH_TRUSTED)
	}
	if strict {
		for _, other := range []uint{pkcs11.CKA_VERIFY, pkcs11.CKA_ENCRYPT, pkcs11.CKA_WRAP} {
			set(public, slices.Contains(uses, other), other)
		}
		set(private, false, others...)
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
