package payload

import (
	"errors"
	"fmt"
	"mime"
	"slices"
	"strings"
	"time"
)

// What both encodings of a Notary Project signature share; see the signature specification of the Notary Project.
const (
	payloadType   = "application/vnd.cncf.notary.payload.v1+json"
	signingScheme = "notary.x509"

	headerScheme      = "io.cncf.notary.signingScheme"
	headerSigningTime = "io.cncf.notary.signingTime"
	headerExpiry      = "io.cncf.notary.expiry"
)

// Limits of what an artifact says of itself, in bytes.
const (
	maxAnnotations     = 256
	maxAnnotationName  = 1024
	maxAnnotationValue = 16 << 10
	maxMediaType       = 255
)

// lastSecond is the last second of the year 9999, as seconds since 1970. No notation for times is fit for later ones.
const lastSecond = 253402300799

// digestLengths are the lengths of digests in hexadecimal, by the algorithm.
var digestLengths = map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}

// isDigest reports whether text is a digest: an algorithm, a colon, and hexadecimal digits in lower case. A regular
// expression for it takes a tenth of a millisecond to compile, in each start of the plugin.
func isDigest(text string) bool {
	algorithm, digits, _ := strings.Cut(text, ":")
	length, ok := digestLengths[algorithm]
	return ok && len(digits) == length && strings.Trim(digits, "0123456789abcdef") == ""
}

// notationHeader is what a protected header says.
type notationHeader struct {
	algorithm   string // as Artifact names it
	critical    []string
	contentType string
	scheme      string
	signingTime time.Time
	expiry      *time.Time // nil means never
}

// check returns an error that names the header, by label, that is refused.
func (h notationHeader) check(critLabel, contentTypeLabel string) error {
	critical := []string{headerScheme}
	if h.expiry != nil {
		critical = append(critical, headerExpiry)
	}
	switch {
	case h.contentType != payloadType:
		return fmt.Errorf("%s: %.60q instead of %q", contentTypeLabel, h.contentType, payloadType)
	case h.scheme != signingScheme: // a signing authority vouches for the signing time; clients of a plugin are none
		return fmt.Errorf("%s: %.60q instead of %q", headerScheme, h.scheme, signingScheme)
	case !slices.Equal(h.critical, critical):
		return fmt.Errorf("%s: %.200q instead of %q", critLabel, h.critical, critical)
	}
	if err := checkTime(h.signingTime); err != nil {
		return fmt.Errorf("%s: %w", headerSigningTime, err)
	}
	if h.expiry == nil {
		return nil
	}
	if err := checkTime(*h.expiry); err != nil {
		return fmt.Errorf("%s: %w", headerExpiry, err)
	}
	if !h.expiry.After(h.signingTime) {
		return fmt.Errorf("%s: not after the signing time", headerExpiry)
	}
	return nil
}

func checkTime(t time.Time) error {
	if seconds := t.Unix(); seconds < 0 || seconds > lastSecond || t.Nanosecond() != 0 {
		return errors.New("not a whole second from the year 1970 to 9999")
	}
	return nil
}

// descriptor is the target artifact of a payload.
type descriptor struct {
	mediaType, digest string
	size              int64
	annotations       map[string]string
}

// check returns an error that names the field that is refused.
func (d descriptor) check() error {
	if !isMediaType(d.mediaType) {
		return fmt.Errorf("mediaType: %.60q is not a media type", d.mediaType)
	}
	if !isDigest(d.digest) {
		return fmt.Errorf("digest: %.150q is not a SHA-256, SHA-384 or SHA-512 digest in lower case", d.digest)
	}
	if d.size < 0 || d.size > maxInteger {
		return fmt.Errorf("size: %d is not from 0 to %d", d.size, maxInteger)
	}
	if len(d.annotations) > maxAnnotations {
		return fmt.Errorf("annotations: %d are more than %d", len(d.annotations), maxAnnotations)
	}
	for name, value := range d.annotations {
		if name == "" || len(name) > maxAnnotationName || len(value) > maxAnnotationValue {
			return at(join("annotations", name), "a name of %d and a value of %d bytes are not within 1 to %d and %d",
				len(name), len(value), maxAnnotationName, maxAnnotationValue)
		}
	}
	return nil
}

func isMediaType(text string) bool {
	if len(text) > maxMediaType || !strings.Contains(text, "/") {
		return false
	}
	_, _, err := mime.ParseMediaType(text)
	return err == nil
}

// notationArtifact returns what was read.
func notationArtifact(encoding string, h notationHeader, d descriptor) *Artifact {
	a := &Artifact{Format: Notation, Encoding: encoding, MediaType: d.mediaType, Digest: d.digest, Size: d.size,
		Annotations: d.annotations, SigningTime: h.signingTime.UTC(), Algorithm: h.algorithm}
	if h.expiry != nil {
		a.Expiry = h.expiry.UTC()
	}
	return a
}
