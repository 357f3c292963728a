package pkcs11

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"math/big"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const ckaPublicKeyInfo = 0x129 // CKA_PUBLIC_KEY_INFO of PKCS#11 2.40: a DER SubjectPublicKeyInfo

// publicAttributes are those that hold the public half, on a public key object and, with many modules, on the private
// key.
var publicAttributes = []uint{
	pkcs11.CKA_KEY_TYPE, pkcs11.CKA_ID, pkcs11.CKA_LABEL, pkcs11.CKA_MODULUS, pkcs11.CKA_PUBLIC_EXPONENT,
	pkcs11.CKA_EC_PARAMS, pkcs11.CKA_EC_POINT, ckaPublicKeyInfo,
}

// Public returns the public half of the key that the settings name, without logging in where the token shows it to
// anyone: from the public key object or certificate of the same label and id, else from the private key itself.
func (t *Token) Public(ctx context.Context) (crypto.PublicKey, error) {
	if err := t.loginToSearch(ctx); err != nil {
		return nil, err
	}
	public, err := inSession(ctx, t, "looking for the public key", func(_ context.Context, s *session) (
		crypto.PublicKey, error) {
		uri := t.settings.Key
		if unnamed(uri) {
			return nil, nil // only the private key can tell which one is meant
		}
		objects, err := s.search(t.selector(pkcs11.CKO_PUBLIC_KEY, uri), 2)
		if err == nil && len(objects) == 1 {
			var public crypto.PublicKey
			if public, err = s.readPublic(objects[0]); err == nil {
				return public, nil
			}
		}
		if errors.Is(err, errLength) || t.lossOf(err) {
			return nil, t.failed(err, "cannot read the public key of %s", keyName(uri))
		}
		return nil, nil
	})
	if err != nil || public != nil {
		return public, err
	}
	k, err := t.Key(ctx, nil)
	if err != nil {
		return nil, err
	}
	return k.Public(), nil
}

// readPublic reads the public half from the attributes of one object.
func (s *session) readPublic(object objectHandle) (crypto.PublicKey, error) {
	values, err := s.calls.attributes(s.handle, object, publicAttributes...)
	if err != nil {
		return nil, err
	}
	return publicOf(values)
}

// publicOf puts a public key together from publicAttributes' values.
func publicOf(values [][]byte) (crypto.PublicKey, error) {
	modulus, exponent, params, point, info := values[3], values[4], values[5], values[6], values[7]
	if len(modulus) > 0 && len(exponent) > 0 {
		e := new(big.Int).SetBytes(exponent)
		if !e.IsInt64() || e.Int64() > 1<<31-1 {
			return nil, errors.New("its public exponent is too large")
		}
		return &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(e.Int64())}, nil
	}
	if len(info) > 0 {
		if public, err := x509.ParsePKIXPublicKey(info); err == nil {
			return public, nil
		}
	}
	if len(params) > 0 && len(point) > 0 {
		curve, err := curveOf(params)
		if err != nil {
			return nil, err
		}
		// The standard wraps the point in an OCTET STRING. Some modules leave that out and some get it wrong, but the point
		// is always at the end.
		if size := 1 + 2*((curve.Params().BitSize+7)/8); len(point) > size {
			point = point[len(point)-size:]
		}
		return ecdsa.ParseUncompressedPublicKey(curve, point)
	}
	return nil, errNoPublic
}

var errNoPublic = errors.New("the module shows no public half of it")

var curves = []struct {
	curve elliptic.Curve
	oid   asn1.ObjectIdentifier
	names []string // PKCS#11 3.0 allows a curve's name instead of its OID
}{
	{elliptic.P256(), asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}, []string{"secp256r1", "prime256v1", "P-256"}},
	{elliptic.P384(), asn1.ObjectIdentifier{1, 3, 132, 0, 34}, []string{"secp384r1", "P-384"}},
	{elliptic.P521(), asn1.ObjectIdentifier{1, 3, 132, 0, 35}, []string{"secp521r1", "P-521"}},
}

// curveOf reads CKA_EC_PARAMS, a DER ECParameters.
func curveOf(params []byte) (elliptic.Curve, error) {
	var oid asn1.ObjectIdentifier
	var name string
	_, notOID := asn1.Unmarshal(params, &oid)
	_, notName := asn1.Unmarshal(params, &name)
	for _, c := range curves {
		if notOID == nil && c.oid.Equal(oid) {
			return c.curve, nil
		}
		for _, n := range c.names {
			if notName == nil && n == name {
				return c.curve, nil
			}
		}
	}
	return nil, errors.New("it is not on one of the curves P-256, P-384 and P-521")
}

// publicHalf finds the public half of a private key wherever the module keeps it: on the private key, in the public key
// object of the same id (or label, when it has no id), or in a certificate of that id. It also returns the key's own id
// and label.
func (s *session) publicHalf(private objectHandle) (public crypto.PublicKey, id []byte, label string, err error) {
	values, err := s.calls.attributes(s.handle, private, publicAttributes...)
	if err != nil {
		return nil, nil, "", s.failed(err, "cannot read key %s on %s", keyName(s.settings.Key), s.name())
	}
	id, label = values[1], string(values[2])
	public, problem := publicOf(values)
	if problem == nil {
		return public, id, label, nil
	}
	same := sameAs(id, label)
	if len(id) > 0 || label != "" {
		objects, err := s.search(s.selector(pkcs11.CKO_PUBLIC_KEY, same), 2)
		if err == nil && len(objects) == 1 {
			if public, problem = s.readPublic(objects[0]); problem == nil {
				return public, id, label, nil
			}
		}
		leaf, leafErr := s.sole(same)
		if leafErr == nil && leaf != nil {
			return leaf.PublicKey, id, label, nil
		}
		for _, err := range []error{err, problem, leafErr} {
			if s.lossOf(err) { // which says nothing about the key
				return nil, id, label, s.failed(err, "cannot read key %s on %s", keyName(s.settings.Key), s.name())
			}
		}
	}
	if !errors.Is(problem, errNoPublic) {
		return nil, id, label, failure.New(failure.Invalid,
			"key %s on %s cannot be used: %w", keyName(s.settings.Key), s.name(), problem).
			WithHint("use a key of one of the specs RSA-2048, RSA-3072, RSA-4096, EC-256, EC-384 and EC-521")
	}
	return nil, id, label, failure.New(failure.Invalid,
		"cannot tell what key %s on %s is: %w", keyName(s.settings.Key), s.name(), problem).
		WithHint("put the key's certificate or public key on the token with the same CKA_ID, or set " +
			"certificate-chain to a file with the certificate")
}
