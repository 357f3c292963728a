package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"errors"
	"fmt"
	"log/slog"
	"slices"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// A way is one mechanism to make a signature, with what the module wants as its input.
type way struct {
	mechanism uint
	parameter []byte
	input     func() ([]byte, error) // made only when its turn comes
}

// Sign signs a digest in the module. opts select the scheme: *rsa.PSSOptions for RSASSA-PSS (RFC 8017 section 8.1; the
// salt is as long as the digest, whatever opts say), a crypto.Hash for PKCS #1 v1.5 or ECDSA. An ECDSA signature is
// ASN.1 DER, as crypto.Signer has it.
func (k *Key) Sign(ctx context.Context, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	return k.sign(ctx, nil, digest, opts)
}

// SignMessage is Sign for a whole message, which lets it also use mechanisms that hash inside the module.
func (k *Key) SignMessage(ctx context.Context, message []byte, opts crypto.SignerOpts) ([]byte, error) {
	if !opts.HashFunc().Available() {
		return nil, failure.New(failure.Internal, "hash %v is not available", opts.HashFunc())
	}
	h := opts.HashFunc().New()
	h.Write(message)
	return k.sign(ctx, message, h.Sum(nil), opts)
}

func (k *Key) sign(ctx context.Context, message, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ways, err := k.ways(message, digest, opts)
	if err != nil {
		return nil, err
	}
	signature, err := k.signWith(ctx, ways)
	if err != nil {
		return nil, err
	}
	if public, ok := k.public.(*ecdsa.PublicKey); ok {
		return ecdsaToDER(signature, (public.Params().N.BitLen()+7)/8)
	}
	return signature, nil
}

// signWith takes a session and makes one signature in it.
func (k *Key) signWith(ctx context.Context, ways []way) ([]byte, error) {
	return useKey(ctx, k, k.token.signing, "did not sign", func(u use) ([]byte, error) { return k.signInSession(u, ways) })
}

// signInSession makes one signature, trying the mechanisms from the one that worked last. When none does, it returns
// the error of the first: the others are not what the module is usually asked for.
func (k *Key) signInSession(u use, ways []way) ([]byte, error) {
	var first error
	start := int(k.working.Load())
	for i := range ways {
		i = (start + i) % len(ways)
		signature, err := u.sign(ways[i])
		if err == nil {
			k.working.Store(int32(i)) //nolint:gosec // there are three ways
			return signature, nil
		}
		if first == nil {
			first = err
		}
		if !wrongMechanism(err) {
			return nil, err
		}
		slog.Debug("the module refused a mechanism", "mechanism", fmt.Sprintf("0x%X", ways[i].mechanism), "error", err)
	}
	return nil, first
}

// sign makes one signature with one mechanism, in two calls, with a login between them for a key that needs one.
func (u use) sign(w way) ([]byte, error) {
	input, err := w.input()
	if err != nil {
		return nil, err
	}
	if u.login == nil {
		signature, initialised, err := u.calls.signBoth(u.handle, w.mechanism, w.parameter, u.object, input)
		if !initialised && is(err, pkcs11.CKR_OPERATION_ACTIVE) {
			// A signature that failed before has left its operation behind. PKCS#11 2.40 ends one only by finishing it.
			_, _ = u.calls.sign(u.handle, input)
			signature, initialised, err = u.calls.signBoth(u.handle, w.mechanism, w.parameter, u.object, input)
		}
		if initialised && u.wantsLoginForUse(err) {
			return nil, errWantsLogin
		}
		return signature, err
	}
	if err = u.calls.signInit(u.handle, w.mechanism, w.parameter, u.object); err != nil {
		return nil, err
	}
	if err = u.login(); err != nil {
		return nil, err
	}
	return u.calls.sign(u.handle, input)
}

// wrongMechanism reports whether an error says that another mechanism may do. Mechanism lists are not looked at: they
// lie in both directions, and reading one costs two calls.
func wrongMechanism(err error) bool {
	var ckr pkcs11.Error
	return errors.As(err, &ckr) && slices.Contains([]pkcs11.Error{
		pkcs11.CKR_MECHANISM_INVALID, pkcs11.CKR_MECHANISM_PARAM_INVALID, pkcs11.CKR_FUNCTION_NOT_SUPPORTED,
		pkcs11.CKR_KEY_TYPE_INCONSISTENT, pkcs11.CKR_DATA_INVALID, pkcs11.CKR_DATA_LEN_RANGE,
	}, ckr)
}

type hashMechanisms struct{ hash, mgf, pss, pkcs1, ecdsa uint }

var byHash = map[crypto.Hash]hashMechanisms{
	crypto.SHA256: {pkcs11.CKM_SHA256, pkcs11.CKG_MGF1_SHA256, pkcs11.CKM_SHA256_RSA_PKCS_PSS, pkcs11.CKM_SHA256_RSA_PKCS,
		pkcs11.CKM_ECDSA_SHA256},
	crypto.SHA384: {pkcs11.CKM_SHA384, pkcs11.CKG_MGF1_SHA384, pkcs11.CKM_SHA384_RSA_PKCS_PSS, pkcs11.CKM_SHA384_RSA_PKCS,
		pkcs11.CKM_ECDSA_SHA384},
	crypto.SHA512: {pkcs11.CKM_SHA512, pkcs11.CKG_MGF1_SHA512, pkcs11.CKM_SHA512_RSA_PKCS_PSS, pkcs11.CKM_SHA512_RSA_PKCS,
		pkcs11.CKM_ECDSA_SHA512},
}

// ways lists the mechanisms that make the wanted signature, the usual one first, so that it costs no extra call.
func (k *Key) ways(message, digest []byte, opts crypto.SignerOpts) ([]way, error) {
	m, ok := byHash[opts.HashFunc()]
	if !ok || len(digest) != opts.HashFunc().Size() {
		return nil, failure.New(failure.Internal, "cannot sign a digest of %d bytes with %v", len(digest), opts.HashFunc())
	}
	var ways []way
	add := func(mechanism uint, parameter, input []byte) {
		ways = append(ways, way{mechanism, parameter, func() ([]byte, error) { return input, nil }})
	}
	hashing := func(mechanism uint, parameter []byte) {
		if message != nil {
			add(mechanism, parameter, message)
		}
	}
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		add(pkcs11.CKM_ECDSA, nil, digest)
		hashing(m.ecdsa, nil)
	case *rsa.PublicKey:
		if _, pss := opts.(*rsa.PSSOptions); pss {
			parameter := pkcs11.NewPSSParams(m.hash, m.mgf, uint(len(digest)))
			add(pkcs11.CKM_RSA_PKCS_PSS, parameter, digest)
			hashing(m.pss, parameter)
			ways = append(ways, way{pkcs11.CKM_RSA_X_509, nil, func() ([]byte, error) {
				return encodePSS(digest, opts.HashFunc(), public.N.BitLen())
			}})
		} else {
			add(pkcs11.CKM_RSA_PKCS, nil, digestInfo(digest, opts.HashFunc()))
			hashing(m.pkcs1, nil)
		}
	default:
		return nil, failure.New(failure.Invalid, "keys of type %T do not sign", k.public).
			WithHint("use an RSA or elliptic curve key")
	}
	return ways, nil
}
