package signer

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
)

// signatureCost is what changing the form of a signature may allocate.
var signatureCost = boundtest.Budget{Bytes: 16 << 10, BytesPerByte: 32}

// FuzzRawECDSA verifies that no bytes from a module crash, and that what is accepted is of fixed length and means the
// same numbers.
func FuzzRawECDSA(f *testing.F) {
	seed := func(r, s *big.Int) {
		der, err := asn1.Marshal(struct{ R, S *big.Int }{r, s})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(der, 32)
		f.Add(der, 66)
	}
	big256 := new(big.Int).Sub(new(big.Int).Lsh(big.NewInt(1), 256), big.NewInt(1))
	seed(big.NewInt(1), big256)
	seed(big256, big.NewInt(1))
	seed(big.NewInt(-1), big.NewInt(0))
	f.Add([]byte{0x30, 0x80}, 32)
	f.Fuzz(func(t *testing.T, der []byte, size int) {
		size = 32 + (size&0xff)%35
		var raw []byte
		var err error
		signatureCost.Check(t, len(der), func() { raw, err = rawECDSA(der, size) })
		if err != nil {
			return
		}
		if len(raw) != 2*size {
			t.Fatalf("%d bytes, not %d", len(raw), 2*size)
		}
		again, err := asn1.Marshal(struct{ R, S *big.Int }{new(big.Int).SetBytes(raw[:size]),
			new(big.Int).SetBytes(raw[size:])})
		if err != nil || !bytes.Equal(again, der) {
			t.Errorf("%x came back as %x (%v)", der, again, err)
		}
	})
}
