package trust

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"math/big"
	"slices"

	"github.com/fxamacker/cbor/v2"
)

// Key types of COSE (RFC 9053 section 7).
const (
	coseOKP = 1
	coseEC2 = 2
	coseRSA = 3
)

// coseKey is a COSE key. What its members mean depends on the type.
type coseKey struct {
	Type  int64           `cbor:"1,keyasint"`
	First cbor.RawMessage `cbor:"-1,keyasint"` // the curve, or the modulus
	X     []byte          `cbor:"-2,keyasint"` // or the exponent
	Y     []byte          `cbor:"-3,keyasint"`
}

// sameCOSE returns a text that is the same for one public key, whichever way its COSE key is encoded, and in which kind
// of credential it is. It returns the bytes themselves for what is no key that can sign approvals.
func sameCOSE(public []byte) string {
	// the options by which package approval reads them
	mode, err := cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
		TagsMd: cbor.TagsForbidden}.DecMode()
	var key coseKey
	if err == nil {
		err = mode.Unmarshal(public, &key)
	}
	if err != nil {
		return string(public)
	}
	if key.Type == coseRSA {
		var modulus []byte
		exponent := new(big.Int).SetBytes(key.X)
		if mode.Unmarshal(key.First, &modulus) != nil || !exponent.IsInt64() {
			return string(public)
		}
		return sameKey(&rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(exponent.Int64())}, public)
	}
	if key.Type == coseOKP { // Ed25519, the only curve that signs approvals; the curve may be left out
		return sameKey(ed25519.PublicKey(key.X), public)
	}
	curve := map[int]elliptic.Curve{32: elliptic.P256(), 48: elliptic.P384(), 66: elliptic.P521()}[len(key.X)]
	if key.Type != coseEC2 || curve == nil {
		return string(public)
	}
	point, err := ecdsa.ParseUncompressedPublicKey(curve, slices.Concat([]byte{4}, key.X, key.Y))
	if err != nil {
		return string(public)
	}
	return sameKey(point, public)
}
