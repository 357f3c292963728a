// Package custody is what a user does with keys around signing.
//
// It generates, lists, rotates, backs up, restores and deletes keys in a module, gets certificates for them, and
// maintains Notation's list of signing keys. Doctor examines the whole way from a module's library to an image that
// verifies. The package prints nothing: it returns values, notifies of progress, and asks through callbacks before it
// changes anything that cannot be undone.
package custody

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Key describes a private key, for users and for programs as JSON. An attribute is nil if the module does not show it.
type Key struct {
	URI              string       `json:"uri"`
	Label            string       `json:"label"`
	ID               string       `json:"id"`   // CKA_ID in hex
	Spec             string       `json:"spec"` // "" if the public half cannot be read
	Sign             *bool        `json:"sign"`
	Decrypt          *bool        `json:"decrypt"`
	Unwrap           *bool        `json:"unwrap"`
	Derive           *bool        `json:"derive"`
	Sensitive        *bool        `json:"sensitive"`
	AlwaysSensitive  *bool        `json:"alwaysSensitive"`
	Extractable      *bool        `json:"extractable"`
	NeverExtractable *bool        `json:"neverExtractable"`
	Local            *bool        `json:"madeOnToken"`
	AlwaysAuth       *bool        `json:"alwaysAuthenticate"`
	Certificate      *Certificate `json:"certificate,omitempty"`
	Usable           bool         `json:"usable"`           // whether Notation can sign with it
	Reason           string       `json:"reason,omitempty"` // why Notation cannot

	Formats []payload.Format `json:"formats,omitempty"` // what the broker accepts through which the key is used
}

// Certificate describes the leaf of a key.
type Certificate struct {
	Subject  string    `json:"subject"`
	Issuer   string    `json:"issuer"`
	Serial   string    `json:"serial"` // hex
	NotAfter time.Time `json:"notAfter"`
	Length   int       `json:"chainLength"` // number of certificates up to the root; 0 if Notation refuses the chain
}

// KeyRequest describes a key to generate, as given on the command line.
type KeyRequest struct {
	Spec, Usage, Label string
	ID                 string // CKA_ID in hex; "" for a random one
	BackupKey          string // label or URI of the wrapping key that may take the key out; "" for none
}

// Generate generates a key inside the module and returns its URI. extra is the other usage if the module allows it as
// well, in spite of the request, and else "".
func Generate(ctx context.Context, s *keystore.Reference, request KeyRequest) (uri string, extra key.Usage, err error) {
	spec, err := key.ParseSpec(request.Spec)
	if err != nil {
		return "", "", err
	}
	usage, err := key.ParseUsage(request.Usage)
	if err != nil {
		return "", "", err
	}
	if request.Label == "" {
		return "", "", failure.New(failure.Invalid, "cannot generate a key without a label").
			WithHint("give it a label, as in: --label release")
	}
	id, err := hex.DecodeString(request.ID)
	if err != nil {
		return "", "", failure.New(failure.Invalid, "the id %q is not in hex", request.ID).
			WithHint("write an even number of hex digits, as in: --id 01a2")
	}
	r := key.Request{Spec: spec, Usage: usage, Label: request.Label, ID: id}
	var info key.Info
	if request.BackupKey != "" {
		info, err = generateWrappable(ctx, s, r, request.BackupKey)
	} else {
		info, err = s.Generate(ctx, r)
	}
	if err != nil {
		return "", "", err
	}
	switch {
	case isTrue(info.Decrypt) && usage == key.Sign:
		extra = key.Decrypt
	case isTrue(info.Sign) && usage == key.Decrypt:
		extra = key.Sign
	}
	return info.URI, extra, nil
}

// isTrue reports whether the module shows an attribute as true.
func isTrue(attribute *bool) bool { return attribute != nil && *attribute }

// isFalse reports whether the module shows an attribute as false.
func isFalse(attribute *bool) bool { return attribute != nil && !*attribute }

// Keys describes the private keys that the settings match: all keys of the token if they name none.
func Keys(ctx context.Context, s *keystore.Reference) ([]Key, error) {
	store, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	found, err := store.Keys(ctx)
	if err != nil {
		return nil, err
	}
	known, err := certificates(ctx, store, s)
	if err != nil {
		return nil, err
	}
	keys := make([]Key, 0, len(found))
	for _, k := range found {
		info, err := k.Info(ctx)
		if err != nil {
			return nil, err
		}
		keys = append(keys, describeKey(info, known, formatsOf(k)))
	}
	return keys, nil
}

// Show describes one key. It fails if the settings match no key, or several.
func Show(ctx context.Context, s *keystore.Reference) (shown Key, err error) {
	err = s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
		known, err := certificates(ctx, store, s)
		if err != nil {
			return err
		}
		info, err := k.Info(ctx)
		if err != nil {
			return err
		}
		shown = describeKey(info, known, formatsOf(k))
		return nil
	})
	return shown, err
}

// describeKey describes a key with the certificate that it has among known. formats are what its broker accepts; nil
// for a key without one.
func describeKey(info key.Info, known []*x509.Certificate, formats []payload.Format) Key {
	k := Key{
		URI: info.URI, Label: info.Label, ID: hex.EncodeToString(info.ID),
		Sign: info.Sign, Decrypt: info.Decrypt, Unwrap: info.Unwrap, Derive: info.Derive,
		Sensitive: info.Sensitive, AlwaysSensitive: info.AlwaysSensitive, Extractable: info.Extractable,
		NeverExtractable: info.NeverExtractable, Local: info.Local, AlwaysAuth: info.AlwaysAuth, Formats: formats,
	}
	err := k.describeCertificate(info, known)
	if err == nil {
		err = checkAccepted(formats)
	}
	if err != nil {
		k.Reason = failure.From(err).Error()
	} else {
		k.Usable = true
	}
	return k
}

// describeCertificate sets the spec and the certificate, and returns why Notation cannot sign with the key.
func (k *Key) describeCertificate(info key.Info, known []*x509.Certificate) error {
	if info.Public == nil {
		return failure.New(failure.Invalid, "its public half cannot be read")
	}
	spec, err := key.SpecOf(info.Public)
	if err != nil {
		return err
	}
	k.Spec = string(spec.Name)
	chain, chainErr := certs.ChainOf(info.Public, known, nil, time.Now())
	leaf := certs.LeafOf(info.Public, known, time.Now())
	if chain != nil {
		leaf = chain[0]
	}
	if leaf != nil {
		k.Certificate = &Certificate{
			Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(), Serial: hex.EncodeToString(leaf.SerialNumber.Bytes()),
			NotAfter: leaf.NotAfter.UTC(), Length: len(chain),
		}
	}
	switch {
	case isFalse(info.Sign):
		return failure.New(failure.Denied, "CKA_SIGN is false")
	case leaf == nil:
		return failure.New(failure.NotFound, "it has no certificate")
	}
	return chainErr
}
