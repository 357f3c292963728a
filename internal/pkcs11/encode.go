package pkcs11

import (
	"crypto"
	"crypto/rand"
	"crypto/subtle"
	"encoding/asn1"
	"encoding/binary"
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// encodePSS is EMSA-PSS-ENCODE of RFC 8017 section 9.1.1, with MGF1 on the same hash and a salt as long as the digest,
// for modules that offer raw RSA alone. The result is as long as the modulus.
func encodePSS(digest []byte, hash crypto.Hash, modulusBits int) ([]byte, error) {
	size := hash.Size()
	bits := modulusBits - 1
	length := (bits + 7) / 8
	if length < 2*size+2 {
		return nil, failure.New(failure.Invalid, "a %d-bit RSA key is too short for %v", modulusBits,
			hash).
			WithHint("use a longer key")
	}
	salt := make([]byte, size)
	if _, err := rand.Read(salt); err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(make([]byte, 8))
	h.Write(digest)
	h.Write(salt)
	trailer := h.Sum(nil)

	encoded := make([]byte, length)
	block := encoded[:length-size-1]
	block[len(block)-size-1] = 1
	copy(block[len(block)-size:], salt)
	for counter, at := uint32(0), 0; at < len(block); counter++ {
		h.Reset()
		h.Write(trailer)
		h.Write(binary.BigEndian.AppendUint32(nil, counter))
		at += subtle.XORBytes(block[at:], block[at:], h.Sum(nil))
	}
	block[0] &= 0xff >> (8*length - bits)
	copy(encoded[len(block):], trailer)
	encoded[length-1] = 0xbc
	if pad := (modulusBits+7)/8 - length; pad > 0 {
		encoded = append(make([]byte, pad), encoded...)
	}
	return encoded, nil
}

var hashOIDs = map[crypto.Hash]asn1.ObjectIdentifier{
	crypto.SHA256: {2, 16, 840, 1, 101, 3, 4, 2, 1},
	crypto.SHA384: {2, 16, 840, 1, 101, 3, 4, 2, 2},
	crypto.SHA512: {2, 16, 840, 1, 101, 3, 4, 2, 3},
}

// digestInfo is the DER DigestInfo of RFC 8017 section 9.2, which CKM_RSA_PKCS signs.
func digestInfo(digest []byte, hash crypto.Hash) []byte {
	type algorithm struct {
		OID        asn1.ObjectIdentifier
		Parameters asn1.RawValue
	}
	info, _ := asn1.Marshal(struct { // fixed types always marshal
		Algorithm algorithm
		Digest    []byte
	}{algorithm{hashOIDs[hash], asn1.NullRawValue}, digest})
	return info
}

// ecdsaToDER turns what a module returns for CKM_ECDSA into the ASN.1 DER of crypto.Signer. The standard's form is
// r||s, each size bytes long; some modules return DER, and some r and s of another equal length.
func ecdsaToDER(signature []byte, size int) ([]byte, error) {
	if len(signature) != 2*size {
		var r, s big.Int
		input, inner := cryptobyte.String(signature), cryptobyte.String{}
		if input.ReadASN1(&inner, der.SEQUENCE) && input.Empty() && inner.ReadASN1Integer(&r) && inner.ReadASN1Integer(&s) &&
			inner.Empty() {
			return signature, nil
		}
	}
	half := len(signature) / 2
	if half == 0 || len(signature)%2 != 0 {
		return nil, failure.New(failure.Internal,
			"the module returned an ECDSA signature of %d bytes, which is neither r||s nor DER", len(signature)).
			WithHint(generalHint)
	}
	var out cryptobyte.Builder
	out.AddASN1(der.SEQUENCE, func(pair *cryptobyte.Builder) {
		pair.AddASN1BigInt(new(big.Int).SetBytes(signature[:half]))
		pair.AddASN1BigInt(new(big.Int).SetBytes(signature[half:]))
	})
	return out.Bytes()
}

// octetString is DER's OCTET STRING.
func octetString(content []byte) []byte {
	encoded, _ := asn1.Marshal(content) // bytes are always taken
	return encoded
}
