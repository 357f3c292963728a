package signer

import (
	"bytes"
	"encoding/asn1"
	"math/big"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// rawECDSA turns an ASN.1 DER ECDSA signature (RFC 3279 section 2.2.3) into r||s with both numbers size bytes long, the form
// that JWS (RFC 7518 section 3.4) and COSE (RFC 9053 section 2.1) prescribe.
func rawECDSA(der []byte, size int) ([]byte, error) {
	var p struct{ R, S *big.Int }
	_, err := asn1.Unmarshal(der, &p)
	if err != nil || p.R.Sign() <= 0 || p.S.Sign() <= 0 || p.R.BitLen() > 8*size || p.S.BitLen() > 8*size {
		return nil, failure.New(failure.Internal, "", "an ECDSA signature of %d bytes is malformed", len(der))
	}
	// encoding/asn1 passes over what else is in the sequence.
	if again, err := asn1.Marshal(p); err != nil || !bytes.Equal(again, der) {
		return nil, failure.New(failure.Internal, "", "an ECDSA signature of %d bytes has more than its two numbers", len(der))
	}
	raw := make([]byte, 2*size)
	p.R.FillBytes(raw[:size])
	p.S.FillBytes(raw[size:])
	return raw, nil
}
