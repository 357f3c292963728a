// Package custody is the work around signing: making and showing keys, getting certificates for them, and telling
// Notation about them.
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
)

// Key is a private key as people and programs are shown it. A nil attribute is one the module does not tell.
type Key struct {
	URI              string       `json:"uri"`
	Label            string       `json:"label"`
	ID               string       `json:"id"`   // CKA_ID in hex
	Spec             string       `json:"spec"` // "" when the public half can't be read
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
	Usable           bool         `json:"usable"`           // Notation can sign with it
	Reason           string       `json:"reason,omitempty"` // why not
}

// Certificate is the leaf of a key.
type Certificate struct {
	Subject  string    `json:"subject"`
	Issuer   string    `json:"issuer"`
	Serial   string    `json:"serial"` // hex
	NotAfter time.Time `json:"notAfter"`
	// certificates from the leaf to the root, or 0 when Notation does not accept them
	Length int `json:"chainLength"`
}

// Tokens lists the tokens of a module.
func Tokens(ctx context.Context, s *keystore.Reference) ([]key.Token, error) {
	return s.Tokens(ctx)
}

// Generate makes a key inside the module, for a usage, and returns its URI and the other usage ("" as a rule) if the
// module lets it do that as well. With a wrapping key, by reference, the key can be backed up under that key.
func Generate(ctx context.Context, s *keystore.Reference, spec, usage, label, id, wrapping string) (uri string,
	also key.Usage, err error) {
	parsed, err := key.ParseSpec(spec)
	if err != nil {
		return "", "", err
	}
	use, err := key.ParseUsage(usage)
	if err != nil {
		return "", "", err
	}
	if label == "" {
		return "", "", failure.New(failure.Invalid, "the key has no label").WithHint("name the key, as in --label release")
	}
	raw, err := hex.DecodeString(id)
	if err != nil {
		return "", "", failure.New(failure.Invalid, "the id %q is not hex", id).
			WithHint("write an even number of hex digits, as in --id 01a2")
	}
	r := key.Request{Spec: parsed, Usage: use, Label: label, ID: raw}
	var info key.Info
	if wrapping != "" {
		info, err = generateWrappable(ctx, s, r, wrapping)
	} else {
		info, err = s.Generate(ctx, r)
	}
	if err != nil {
		return "", "", err
	}
	switch {
	case info.Decrypt != nil && *info.Decrypt && use == key.Sign:
		also = key.Decrypt
	case info.Sign != nil && *info.Sign && use == key.Decrypt:
		also = key.Sign
	}
	return info.URI, also, nil
}

// Keys lists the private keys that the settings match: all on the token, or the one the key reference names.
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
		keys = append(keys, show(info, known))
	}
	return keys, nil
}

// Show returns one key; a reference that matches none or several fails as signing would.
func Show(ctx context.Context, s *keystore.Reference) (*Key, error) {
	store, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	k, err := store.Key(ctx, nil)
	if err != nil {
		return nil, err
	}
	known, err := certificates(ctx, store, s)
	if err != nil {
		return nil, err
	}
	info, err := k.Info(ctx)
	if err != nil {
		return nil, err
	}
	shown := show(info, known)
	return &shown, nil
}

// certificates returns those of the certificate-chain file and those on the token.
func certificates(ctx context.Context, store keystore.Store, s *keystore.Reference) ([]*x509.Certificate, error) {
	var known []*x509.Certificate
	if s.CertificateChain != "" {
		file, err := certs.ReadFile(s.CertificateChain)
		if err != nil {
			return nil, err
		}
		known = file
	}
	there, err := store.Certificates(ctx)
	return append(known, there...), err
}

func show(info key.Info, known []*x509.Certificate) Key {
	k := Key{
		URI: info.URI, Label: info.Label, ID: hex.EncodeToString(info.ID),
		Sign: info.Sign, Decrypt: info.Decrypt, Unwrap: info.Unwrap, Derive: info.Derive,
		Sensitive: info.Sensitive, AlwaysSensitive: info.AlwaysSensitive, Extractable: info.Extractable,
		NeverExtractable: info.NeverExtractable, Local: info.Local, AlwaysAuth: info.AlwaysAuth,
	}
	if err := k.judge(info, known); err != nil {
		k.Reason = failure.From(err).Error()
	} else {
		k.Usable = true
	}
	return k
}

// judge fills in the spec and the certificate, and returns why Notation can't sign with the key.
func (k *Key) judge(info key.Info, known []*x509.Certificate) error {
	if info.Public == nil {
		return failure.New(failure.Invalid, "its public half can't be read")
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
	case info.Sign != nil && !*info.Sign:
		return failure.New(failure.Denied, "it may not sign")
	case leaf == nil:
		return failure.New(failure.Invalid, "it has no certificate")
	}
	return chainErr
}
