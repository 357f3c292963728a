package payload

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/fxamacker/cbor/v2"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// coseContext is the context of the structure that a COSE_Sign1 signature is for (RFC 9052).
const coseContext = "Signature1"

// The labels of the COSE headers that are integers.
const (
	coseAlgorithm   = int64(1)
	coseCritical    = int64(2)
	coseContentType = int64(3)
)

// coseAlgorithms are the signature algorithms by their numbers in COSE (RFC 9053, RFC 8230).
var coseAlgorithms = map[int64]string{
	-37: "RSASSA-PSS-SHA-256", -38: "RSASSA-PSS-SHA-384", -39: "RSASSA-PSS-SHA-512",
	-7: "ECDSA-SHA-256", -35: "ECDSA-SHA-384", -36: "ECDSA-SHA-512",
}

// sigStructure is what a COSE_Sign1 signature is for.
type sigStructure struct {
	_         struct{} `cbor:",toarray"`
	Context   string
	Protected []byte
	External  []byte
	Payload   []byte
}

// cosePayload is the payload, in the order that notation-go encodes.
type cosePayload struct {
	TargetArtifact struct {
		MediaType   string            `json:"mediaType"`
		Digest      string            `json:"digest"`
		Size        int64             `json:"size"`
		Annotations map[string]string `json:"annotations,omitempty"`
	} `json:"targetArtifact"`
}

// coseLimits are the limits of the CBOR of both the structure and the header; either needs far less.
var coseLimits = bound.Limits{Bytes: Limit, Depth: bound.Depth, Elements: 100}

var (
	coseEncoding = sync.OnceValue(func() cbor.EncMode {
		return mode(cbor.EncOptions{Sort: cbor.SortCoreDeterministic, IndefLength: cbor.IndefLengthForbidden,
			Time: cbor.TimeUnix, TimeTag: cbor.EncTagRequired}.EncMode())
	})
	coseDecoding = sync.OnceValue(func() cbor.DecMode {
		return mode(cbor.DecOptions{DupMapKey: cbor.DupMapKeyEnforcedAPF, IndefLength: cbor.IndefLengthForbidden,
			IntDec: cbor.IntDecConvertSignedOrFail, TimeTag: cbor.DecTagRequired, MaxNestedLevels: bound.Depth}.DecMode())
	})
)

// mode returns a mode whose options are constant.
func mode[M any](m M, err error) M {
	if err != nil {
		panic(err)
	}
	return m
}

// readCOSE reads the Sig_structure of a Notary Project signature in COSE, in the deterministic encoding.
func readCOSE(data []byte) (*Artifact, error) {
	if len(data) == 0 || data[0]>>5 != 4 || !bytes.Contains(data[:min(len(data), 24)], []byte(coseContext)) {
		return nil, errOther
	}
	if err := bound.CBOR(data, coseLimits); err != nil {
		return nil, err
	}
	var s sigStructure
	if err := coseDecoding().Unmarshal(data, &s); err != nil {
		return nil, err
	}
	if s.Context != coseContext {
		return nil, fmt.Errorf("context: %.20q instead of %q", s.Context, coseContext)
	}
	if len(s.External) > 0 {
		return nil, fmt.Errorf("external_aad: %d bytes instead of none", len(s.External))
	}
	header, err := readCOSEHeader(s.Protected)
	if err != nil {
		return nil, fmt.Errorf("protected header: %w", err)
	}
	var p cosePayload
	if err := readJSON(s.Payload, &p, json.Marshal); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	target := p.TargetArtifact
	d := descriptor{target.MediaType, target.Digest, target.Size, target.Annotations}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("payload: targetArtifact.%w", err)
	}
	s.External = []byte{} // the decoder takes null for it
	if err := checkCBOR(data, s); err != nil {
		return nil, fmt.Errorf("structure: %w", err)
	}
	return notationArtifact("COSE", header, d), nil
}

// readCOSEHeader reads the map of protected headers.
func readCOSEHeader(protected []byte) (h notationHeader, err error) {
	if err := bound.CBOR(protected, coseLimits); err != nil {
		return h, err
	}
	var headers map[any]cbor.RawMessage
	if err := coseDecoding().Unmarshal(protected, &headers); err != nil {
		return h, err
	}
	var algorithm int64
	known := []struct{ label, into any }{
		{coseAlgorithm, &algorithm}, {coseCritical, &h.critical}, {coseContentType, &h.contentType},
		{headerScheme, &h.scheme}, {headerSigningTime, &h.signingTime}, {headerExpiry, &h.expiry},
	}
	labels := map[any]bool{}
	for _, k := range known {
		labels[k.label] = true
		raw, exists := headers[k.label]
		if !exists && k.label != headerExpiry {
			return h, fmt.Errorf("label %v is missing", k.label)
		}
		if !exists {
			continue
		}
		if err := readCBOR(raw, k.into); err != nil {
			return h, fmt.Errorf("%v: %w", k.label, err)
		}
	}
	var unknown []string
	for label := range headers {
		if !labels[label] {
			unknown = append(unknown, fmt.Sprintf("%.60s", fmt.Sprintf("%#v", label)))
		}
	}
	if len(unknown) > 0 {
		return h, fmt.Errorf("unknown label %s", slices.Min(unknown))
	}
	if h.algorithm = coseAlgorithms[algorithm]; h.algorithm == "" {
		return h, fmt.Errorf("%d: unknown algorithm %d", coseAlgorithm, algorithm)
	}
	if err := checkCBOR(protected, headers); err != nil { // such as the order of the labels
		return h, err
	}
	return h, h.check(fmt.Sprint(coseCritical), fmt.Sprint(coseContentType))
}

// readCBOR decodes the deterministic encoding of a value that is not null.
func readCBOR(data []byte, into any) error {
	if err := coseDecoding().Unmarshal(data, into); err != nil {
		return err
	}
	if bytes.Equal(data, []byte{0xf6}) { // null, which the decoder takes for zero
		return errors.New("null instead of a value")
	}
	return checkCBOR(data, into)
}

// checkCBOR fails unless data is the deterministic encoding of a value.
func checkCBOR(data []byte, value any) error {
	canonical, err := coseEncoding().Marshal(value)
	if err != nil {
		return err
	}
	for i := range max(len(data), len(canonical)) {
		if i >= len(data) || i >= len(canonical) || data[i] != canonical[i] {
			return fmt.Errorf("byte %d is not in the deterministic encoding", i)
		}
	}
	return nil
}
