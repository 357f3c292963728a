// Package layerkey wraps the keys of encrypted image layers for recipients, and unwraps them with keys in a module.
//
// ocicrypt encrypts each layer under a key of its own. It puts that key, in a small JSON object (here: the options),
// into annotations of the layer's descriptor, encrypted to recipients. An annotation holds one or more packets in
// base64, separated by commas. Each packet holds the options for one or more recipients. Seal makes packets in JWE
// (RFC 7516); Keys.Open also opens the JWE, CMS and PKCS#11 packets that ocicrypt makes with a public key or a
// certificate alone.
package layerkey

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Annotation is the name of the annotation for packets that Seal makes. It is ocicrypt's for the key provider "hsm".
const Annotation = AnnotationPrefix + schemeHSM

// AnnotationPrefix begins the names of all annotations that hold wrapped keys. The scheme follows it.
const AnnotationPrefix = "org.opencontainers.image.enc.keys."

// The schemes of packets that a key in a module can open.
const (
	schemeHSM    = "provider.hsm" // a JWE that names its recipients by thumbprint
	schemeJWE    = "jwe"          // a JWE that does not
	schemePKCS7  = "pkcs7"        // CMS EnvelopedData
	schemePKCS11 = "pkcs11"       // ocicrypt's experimental JSON
)

var schemes = []string{schemeHSM, schemeJWE, schemePKCS7, schemePKCS11}

// Encrypted reports whether the annotations of a layer's descriptor hold wrapped keys, of any scheme.
func Encrypted(annotations map[string]string) bool {
	for name := range annotations {
		if strings.HasPrefix(name, AnnotationPrefix) {
			return true
		}
	}
	return false
}

// A packet holds the options of a layer, encrypted to one or more recipients.
type packet struct {
	scheme string
	data   []byte
}

// A parsedPacket is a packet whose structure was checked.
type parsedPacket struct {
	scheme string
	data   []byte
	keys   []wrappedKey                                                    // one for each recipient
	open   func(context.Context, wrappedKey, keystore.Key) ([]byte, error) // decrypts the options with one of keys
}

// The limits of one layer, far above what an image needs.
const (
	packetLimit      = 1 << 18 // bytes of a packet, in base64
	annotationsLimit = 1 << 20 // bytes of all packets, in base64
	packetsLimit     = 64
	recipientsLimit  = 256 // of all packets
)

// parse checks the structure of a packet and parses it. It fails with Invalid.
func (p packet) parse() (parsed parsedPacket, err error) {
	switch p.scheme {
	case schemePKCS7:
		parsed, err = parseCMS(p.data)
	case schemePKCS11:
		parsed, err = parsePKCS11(p.data)
	default:
		parsed, err = parseJWE(p.scheme, p.data)
	}
	if err == nil && len(parsed.keys) == 0 {
		err = errors.New("it has no recipients")
	}
	if err != nil {
		return parsed, damaged(p.scheme, err)
	}
	parsed.scheme, parsed.data = p.scheme, p.data
	for i := range parsed.keys {
		parsed.keys[i].Scheme, parsed.keys[i].index = p.scheme, i
	}
	return parsed, nil
}

// checkRecipients fails with Invalid for more recipients than a layer may have.
func checkRecipients(count int) error {
	if count > recipientsLimit {
		return failure.New(failure.Invalid, "the layer has %d recipients, more than %d", count, recipientsLimit).
			WithHint("encrypt the image to fewer recipients")
	}
	return nil
}

// packets returns the packets in annotations, in the order of schemes. It fails with Invalid when there is none, and
// with Unsupported when they are of other schemes.
func packets(annotations map[string]string) ([]packet, error) {
	var found []packet
	total := 0
	for _, scheme := range schemes {
		value := annotations[AnnotationPrefix+scheme]
		if value == "" {
			continue
		}
		for text := range strings.SplitSeq(value, ",") {
			total += len(text)
			if len(text) > packetLimit || total > annotationsLimit || len(found) == packetsLimit {
				return nil, failure.New(failure.Invalid, "the annotation %s is too large", AnnotationPrefix+scheme).
					WithHint(hintManifest)
			}
			data, err := base64.StdEncoding.DecodeString(text)
			if err != nil {
				return nil, damaged(scheme, err)
			}
			found = append(found, packet{scheme, data})
		}
	}
	if len(found) > 0 {
		return found, nil
	}
	var others []string
	for name := range annotations {
		if scheme, ok := strings.CutPrefix(name, AnnotationPrefix); ok {
			others = append(others, fmt.Sprintf("%q", scheme))
		}
	}
	if len(others) == 0 {
		return nil, failure.New(failure.Invalid,
			"the layer has no wrapped key: it is not encrypted, or its annotations were removed").WithHint(hintManifest)
	}
	slices.Sort(others)
	return nil, failure.New(failure.Unsupported,
		"the layer is encrypted by %s, which a key in a module cannot open", strings.Join(others, ", ")).
		WithHint("encrypt it to a key in the module: with 'hsm-image encrypt', or --encryption-key jwe:PUBLIC.pem")
}

// hintManifest is what to do about annotations that whoever published the image did not write.
const hintManifest = "get the image's manifest again from where it was published"

// damaged is the failure of an annotation that cannot be parsed.
func damaged(scheme string, err error) error {
	return failure.New(failure.Invalid, "the annotation %s is damaged: %w", AnnotationPrefix+scheme, err).
		WithHint(hintManifest)
}
