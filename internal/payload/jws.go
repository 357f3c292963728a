package payload

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"time"
)

// base64Bytes are the bytes of base64 in both its alphabets, with padding and line breaks.
const base64Bytes = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/=\r\n"

// jwsAlgorithms are the signature algorithms by their names in JWS (RFC 7518).
var jwsAlgorithms = map[string]string{
	"PS256": "RSASSA-PSS-SHA-256", "PS384": "RSASSA-PSS-SHA-384", "PS512": "RSASSA-PSS-SHA-512",
	"ES256": "ECDSA-SHA-256", "ES384": "ECDSA-SHA-384", "ES512": "ECDSA-SHA-512",
}

// jwsHeader is the protected header, in the order that notation-core-go encodes: names sorted.
type jwsHeader struct {
	Algorithm   string   `json:"alg"`
	Critical    []string `json:"crit"`
	ContentType string   `json:"cty"`
	Expiry      string   `json:"io.cncf.notary.expiry,omitempty"`
	Scheme      string   `json:"io.cncf.notary.signingScheme"`
	SigningTime string   `json:"io.cncf.notary.signingTime"`
}

// jwsPayload is the payload, in the order that notation-core-go encodes: names sorted.
type jwsPayload struct {
	TargetArtifact struct {
		Annotations map[string]string `json:"annotations,omitempty"`
		Digest      string            `json:"digest"`
		MediaType   string            `json:"mediaType"`
		Size        int64             `json:"size"`
	} `json:"targetArtifact"`
}

// readJWS reads the JWS signing input (RFC 7515) of a Notary Project signature: header and payload in base64url, with a
// dot between them.
func readJWS(data []byte) (*Artifact, error) {
	first, second, found := bytes.Cut(data, []byte("."))
	if !found || len(first) == 0 || len(bytes.Trim(first, base64Bytes)) > 0 {
		return nil, errOther
	}
	protected, err := decodeSegment(first)
	if err != nil {
		return nil, fmt.Errorf("protected header: %w", err)
	}
	header, err := readJWSHeader(protected)
	if err != nil {
		return nil, fmt.Errorf("protected header: %w", err)
	}
	content, err := decodeSegment(second)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	var p jwsPayload
	if err := readJSON(content, &p, json.Marshal); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	target := p.TargetArtifact
	d := descriptor{target.MediaType, target.Digest, target.Size, target.Annotations}
	if err := d.check(); err != nil {
		return nil, fmt.Errorf("payload: targetArtifact.%w", err)
	}
	return notationArtifact("JWS", header, d), nil
}

func readJWSHeader(protected []byte) (h notationHeader, err error) {
	var j jwsHeader
	if err := readJSON(protected, &j, json.Marshal); err != nil {
		return h, err
	}
	h = notationHeader{algorithm: jwsAlgorithms[j.Algorithm], critical: j.Critical, contentType: j.ContentType,
		scheme: j.Scheme}
	if h.algorithm == "" {
		return h, fmt.Errorf("alg: unknown algorithm %.20q", j.Algorithm)
	}
	if h.signingTime, err = parseTime(j.SigningTime); err != nil {
		return h, fmt.Errorf("%s: %w", headerSigningTime, err)
	}
	if j.Expiry != "" {
		expiry, err := parseTime(j.Expiry)
		if err != nil {
			return h, fmt.Errorf("%s: %w", headerExpiry, err)
		}
		h.expiry = &expiry
	}
	return h, h.check("crit", "cty")
}

// parseTime parses a time as Go encodes it (RFC 3339), in any time zone.
func parseTime(text string) (time.Time, error) {
	var t time.Time
	if err := t.UnmarshalText([]byte(text)); err != nil {
		return t, fmt.Errorf("%.50q is not a time", text)
	}
	if canonical, err := t.MarshalText(); err != nil || string(canonical) != text {
		return t, fmt.Errorf("%.50q instead of %q", text, canonical)
	}
	return t, nil
}

// decodeSegment decodes base64url without padding. It refuses every encoding but the one that an encoder writes.
func decodeSegment(segment []byte) ([]byte, error) {
	data, err := base64.RawURLEncoding.Strict().DecodeString(string(segment))
	if err != nil {
		return nil, fmt.Errorf("not base64url without padding: %w", err)
	}
	if i := strings.IndexAny(string(segment), "\r\n"); i >= 0 { // which the decoder skips
		return nil, fmt.Errorf("not base64url without padding: a line break at byte %d", i)
	}
	return data, nil
}
