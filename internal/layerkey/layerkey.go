// Package layerkey is the wrapped key of an encrypted image layer: for whom it is closed, and how a key in a module
// opens it.
//
// ocicrypt encrypts each layer under a key of its own and puts that key, as a small JSON text (here: the options), into
// annotations of the layer's descriptor, encrypted to recipients. An annotation holds one or several packets in base64,
// separated by commas; each opens by itself. Ours are JWEs (RFC 7516). Those that ocicrypt makes from a public key or a
// certificate alone are opened as well.
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

// Annotation is where the packets are that Seal makes: ocicrypt's name for those of the key provider "hsm".
const Annotation = AnnotationPrefix + schemeHSM

// AnnotationPrefix starts the names of all annotations that hold wrapped keys. What follows is the scheme.
const AnnotationPrefix = "org.opencontainers.image.enc.keys."

// The schemes of packets that a key in a module can open.
const (
	schemeHSM    = "provider.hsm" // a JWE that names its recipients by thumbprint
	schemeJWE    = "jwe"          // a JWE that does not
	schemePKCS7  = "pkcs7"        // CMS EnvelopedData
	schemePKCS11 = "pkcs11"       // ocicrypt's experimental JSON
)

var schemes = []string{schemeHSM, schemeJWE, schemePKCS7, schemePKCS11}

// Encrypted reports whether the annotations of a layer's descriptor say that it is encrypted, in whatever scheme.
func Encrypted(annotations map[string]string) bool {
	for name := range annotations {
		if strings.HasPrefix(name, AnnotationPrefix) {
			return true
		}
	}
	return false
}

// A packet is one wrapped key: the options, encrypted to one or several recipients.
type packet struct {
	scheme string
	data   []byte
}

// A wrapping is a packet that has been parsed.
type wrapping struct {
	scheme string
	locks  []lock
	open   func(context.Context, lock, keystore.Key) ([]byte, error) // opens it with one of the locks
}

// The limits of one layer. They are far above what an image needs.
const (
	packetLimit      = 1 << 18 // bytes of a packet, in base64
	annotationsLimit = 1 << 20 // bytes of all packets, in base64
	packetsLimit     = 64
	recipientsLimit  = 256 // of all packets
)

// parse checks the structure of a packet before it parses it.
func (p packet) parse() (w wrapping, err error) {
	switch p.scheme {
	case schemePKCS7:
		w, err = parseCMS(p.data)
	case schemePKCS11:
		w, err = parseBlobs(p.data)
	default:
		w, err = parseJWE(p.scheme, p.data)
	}
	if err == nil && len(w.locks) == 0 {
		err = errors.New("it has no recipients")
	}
	if err != nil {
		return w, damaged(p.scheme, err)
	}
	w.scheme = p.scheme
	for i := range w.locks {
		w.locks[i].Scheme, w.locks[i].index = p.scheme, i
	}
	return w, nil
}

// checkRecipients fails when a layer with this number of recipients has too many.
func checkRecipients(count int) error {
	if count > recipientsLimit {
		return failure.New(failure.Invalid, "the layer has %d recipients, more than %d", count, recipientsLimit).
			WithHint("have the image encrypted for fewer recipients")
	}
	return nil
}

// packets reads annotations, in the order of schemes: our own first.
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
				return nil, failure.New(failure.Invalid, "the annotation %s is too large to be a wrapped key",
					AnnotationPrefix+scheme)
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
			"the layer has no wrapped key: it is not encrypted, or its annotations were removed")
	}
	slices.Sort(others)
	return nil, failure.New(failure.Unsupported,
		"the layer is encrypted by %s, which a key in a module does not open", strings.Join(others, ", ")).
		WithHint("encrypt it to a key in the module: with 'hsm-image encrypt', or --encryption-key jwe:PUBLIC.pem")
}

func damaged(scheme string, err error) error {
	return failure.New(failure.Invalid, "the annotation %s is damaged: %w", AnnotationPrefix+scheme, err).
		WithHint("get the image's manifest again from where it was published")
}
