package signer

import (
	"math/big"

	"golang.org/x/crypto/cryptobyte"
	der "golang.org/x/crypto/cryptobyte/asn1"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// rawECDSA converts an ECDSA signature from ASN.1 DER (RFC 3279 section 2.2.3) to r||s, both in big-endian and size
// bytes long: the form that JWS (RFC 7518 section 3.4) and COSE (RFC 9053 section 2.1) prescribe. It fails with
// Internal unless it is DER and both numbers are positive and have no more than size bytes.
func rawECDSA(signature []byte, size int) ([]byte, error) {
	var r, s big.Int
	input, pair := cryptobyte.String(signature), cryptobyte.String{}
	if !input.ReadASN1(&pair, der.SEQUENCE) || !input.Empty() || !pair.ReadASN1Integer(&r) || !pair.ReadASN1Integer(&s) ||
		!pair.Empty() || r.Sign() <= 0 || s.Sign() <= 0 || r.BitLen() > 8*size || s.BitLen() > 8*size {
		return nil, failure.New(failure.Internal, "the module made a malformed ECDSA signature of %d bytes", len(signature)).
			WithHint("sign again; if it fails again, report the wrong signatures to the vendor of the module")
	}
	raw := make([]byte, 2*size)
	r.FillBytes(raw[:size])
	s.FillBytes(raw[size:])
	return raw, nil
}
