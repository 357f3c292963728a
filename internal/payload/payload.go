// Package payload reads what is about to be signed from the bytes themselves, so that a key signs nothing that its
// owner cannot name: which artifact, by which digest, with which annotations.
//
// Bytes are accepted only if exactly one format reads them, and encoding what was read again gives the same bytes. So
// there is one way to write each artifact: no duplicate names, no names in another case, no unknown fields, no other
// critical headers, and nothing that follows.
package payload

import (
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Format is a kind of document that a key can be allowed to sign.
type Format string

// The formats.
const (
	Notation Format = "notation"  // a Notary Project signature of an artifact, in JWS or COSE
	DSSE     Format = "dsse"      // an in-toto statement in a Dead Simple Signing Envelope
	Cosign   Format = "cosign"    // a simple signing document, as cosign signs it
	X509     Format = "x509"      // a certificate, a certificate revocation list or a certificate request
	TUF      Format = "tuf"       // metadata of The Update Framework
	LayerKey Format = "layer-key" // the wrapped key of an encrypted image layer, which is decrypted, not signed
)

// Formats lists all formats.
var Formats = []Format{Notation, DSSE, Cosign, X509, TUF, LayerKey}

// Limit is the length of the longest bytes that are read.
const Limit = 1 << 20

// Artifact is what a signature is for, as the bytes to be signed name it. Values that a format does not have are zero.
type Artifact struct {
	Format      Format            `json:"format"`
	Encoding    string            `json:"encoding,omitempty"`   // of a format with several: "JWS" or "COSE"
	MediaType   string            `json:"media_type,omitempty"` // of the artifact; of dsse, the payload type
	Digest      string            `json:"digest,omitempty"`     // as ALGORITHM:HEX
	Size        int64             `json:"size,omitempty"`       // of the artifact, in bytes
	Name        string            `json:"name,omitempty"`       // a reference, role or subject, as its signer claims it
	Annotations map[string]string `json:"annotations,omitempty"`
	SigningTime time.Time         `json:"signing_time,omitzero"`
	Expiry      time.Time         `json:"expiry,omitzero"` // zero means never
	// Algorithm is the signature algorithm that the bytes prescribe, such as "RSASSA-PSS-SHA-256", "ECDSA-SHA-384" or
	// "RSASSA-PKCS1-v1_5-SHA-256"; "" if they prescribe none.
	Algorithm string `json:"algorithm,omitempty"`
}

// names returns the names of all formats.
func names() []string {
	all := make([]string, 0, len(Formats))
	for _, f := range Formats {
		all = append(all, string(f))
	}
	return all
}

// ParseFormats parses a list of formats that are separated by commas.
func ParseFormats(text string) (formats []Format, err error) {
	for name := range strings.SplitSeq(text, ",") {
		f := Format(strings.TrimSpace(name))
		if !slices.Contains(Formats, f) {
			return nil, failure.New(failure.Invalid, "unknown format %q", name).
				WithHint("name some of these, separated by commas: " + strings.Join(names(), ", "))
		}
		formats = append(formats, f)
	}
	return formats, nil
}
