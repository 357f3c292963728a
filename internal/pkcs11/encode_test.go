package pkcs11

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
)

// TestEncodePSS signs with raw RSA what encodePSS made; crypto/rsa has to accept it. Odd key lengths leave other bits
// free at the top.
func TestEncodePSS(t *testing.T) {
	for _, c := range []struct {
		bits int
		hash crypto.Hash
	}{{2048, crypto.SHA256}, {2049, crypto.SHA256}, {2047, crypto.SHA384}, {3072, crypto.SHA384}, {4096, crypto.SHA512}} {
		k, err := rsa.GenerateKey(rand.Reader, c.bits)
		if err != nil {
			t.Fatal(err)
		}
		h := c.hash.New()
		h.Write([]byte("message"))
		digest := h.Sum(nil)
		encoded, err := encodePSS(digest, c.hash, k.N.BitLen())
		if err != nil {
			t.Fatal(err)
		}
		if len(encoded) != k.Size() {
			t.Errorf("%d bits: %d bytes, not %d", c.bits, len(encoded), k.Size())
		}
		signature := new(big.Int).Exp(new(big.Int).SetBytes(encoded), k.D, k.N).FillBytes(make([]byte, k.Size()))
		if err := rsa.VerifyPSS(&k.PublicKey, c.hash, digest, signature,
			&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash}); err != nil {
			t.Errorf("%d bits, %v: %v", c.bits, c.hash, err)
		}
	}
	if _, err := encodePSS(make([]byte, 64), crypto.SHA512, 1024); err == nil {
		t.Error("a key too short for its hash was used")
	}
}

func TestDigestInfo(t *testing.T) {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	digest := sha512.Sum384([]byte("message"))
	signature, err := rsa.SignPKCS1v15(nil, k, 0, digestInfo(digest[:], crypto.SHA384)) // raw, as CKM_RSA_PKCS does
	if err != nil {
		t.Fatal(err)
	}
	if err := rsa.VerifyPKCS1v15(&k.PublicKey, crypto.SHA384, digest[:], signature); err != nil {
		t.Error(err)
	}
}

// TestECDSAForms takes a signature in each form a module returns one: r||s, DER, and halves with zeros before them.
func TestECDSAForms(t *testing.T) {
	digest := sha256.Sum256([]byte("message"))
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		k, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		size := (curve.Params().BitSize + 7) / 8
		for range 50 { // some have short numbers
			der, err := ecdsa.SignASN1(rand.Reader, k, digest[:])
			if err != nil {
				t.Fatal(err)
			}
			var p struct{ R, S *big.Int }
			if _, err := asn1.Unmarshal(der, &p); err != nil {
				t.Fatal(err)
			}
			form := func(size int) []byte {
				return append(p.R.FillBytes(make([]byte, size)), p.S.FillBytes(make([]byte, size))...)
			}
			for name, signature := range map[string][]byte{"raw": form(size), "DER": der, "padded": form(size + 2)} {
				got, err := ecdsaToDER(signature, size)
				if err != nil || !ecdsa.VerifyASN1(&k.PublicKey, digest[:], got) {
					t.Errorf("%s, %s: %v", curve.Params().Name, name, err)
				}
			}
		}
	}
	for _, bad := range [][]byte{nil, {1}, make([]byte, 63)} {
		if _, err := ecdsaToDER(bad, 32); err == nil {
			t.Errorf("%d bytes were taken for a signature", len(bad))
		}
	}
}

// signatureCost is what changing the form of a signature may allocate.
var signatureCost = boundtest.Budget{Bytes: 16 << 10, BytesPerByte: 32}

// FuzzSignatureForm holds that whatever a module returns for a signature becomes DER or an error.
func FuzzSignatureForm(f *testing.F) {
	f.Add(make([]byte, 64), 32)
	f.Add([]byte{0x30, 6, 2, 1, 1, 2, 1, 1}, 32)
	f.Add([]byte{0x30, 0x84, 0xff, 0xff, 0xff, 0xff}, 66)
	f.Fuzz(func(t *testing.T, signature []byte, size int) {
		var der []byte
		var err error
		signatureCost.Check(t, len(signature), func() { der, err = ecdsaToDER(signature, 32+(size&0xff)%35) })
		if err != nil {
			return
		}
		var p struct{ R, S *big.Int }
		if rest, err := asn1.Unmarshal(der, &p); err != nil || len(rest) > 0 {
			t.Errorf("%x became %x, which is not DER: %v", signature, der, err)
		}
	})
}
