package notaryv1

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/secure-systems-lab/go-securesystemslib/cjson"

	"github.com/notation-hsm/notation-hsm/internal/bound"
)

// Key is a public key of a role.
type Key struct {
	ID        string // hex, as the metadata names it; for a certificate, it depends on the certificate
	PublicID  string // hex, of the bare public key: as 'notary key list' and files below ~/.docker/trust/private name it
	Algorithm string // Notary's: ecdsa, rsa, ecdsa-x509, rsa-x509 or ed25519
	PEM       string // the certificates, the key's own first, or the public key
	// Subject is the common name of the certificate. It is unchecked: quote it before it is shown. Expires is when the
	// certificate expires. Both are zero for a bare key.
	Subject string
	Expires time.Time
	Expired bool
	// Unusable says why no signature of the key counts: it is of an unknown type, weak or malformed. Such a key has an
	// ID and nothing else.
	Unusable error

	public crypto.PublicKey
	spki   []byte // DER, the same for every certificate of a key
	cert   *x509.Certificate
}

// The key types and signature methods of Notary v1.
const (
	typeECDSA     = "ecdsa"
	typeRSA       = "rsa"
	typeECDSAX509 = "ecdsa-x509"
	typeRSAX509   = "rsa-x509"
	typeEd25519   = "ed25519"

	methodECDSA = "ecdsa"
	methodPSS   = "rsapss"
	methodPKCS1 = "rsapkcs1v15"
	methodEdDSA = "eddsa"
)

// derLimits are the limits of a certificate or public key.
var derLimits = bound.Limits{Bytes: 64 << 10, Depth: bound.Depth, Elements: 4096}

// metadataKey is a key in a metadata file: PKIX in DER, PEM certificates, or the 32 bytes of an Ed25519 key.
type metadataKey struct {
	Type  string `json:"keytype"`
	Value struct {
		Public []byte `json:"public"`
	} `json:"keyval"`
}

// keyID returns Notary's ID of a key: SHA-256 of its canonical JSON, in which the private key is null.
func keyID(keyType string, public []byte) (string, error) {
	data, err := cjson.EncodeCanonical(map[string]any{"keytype": keyType,
		"keyval": map[string]any{"private": nil, "public": public}})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:]), nil
}

// read parses a key, which the metadata has under an ID.
func (m metadataKey) read(id string) Key {
	k, err := m.parse(id)
	if err != nil {
		return Key{ID: id, Unusable: err}
	}
	return k
}

func (m metadataKey) parse(id string) (Key, error) {
	actual, err := keyID(m.Type, m.Value.Public)
	if err != nil {
		return Key{}, err
	}
	if actual != id {
		return Key{}, fmt.Errorf("its ID is %s", actual)
	}
	k := Key{ID: id, PublicID: id, Algorithm: m.Type}
	switch m.Type {
	case typeECDSAX509, typeRSAX509:
		err = k.readCertificates(m.Value.Public)
	case typeECDSA, typeRSA:
		if err = bound.DER(m.Value.Public, derLimits); err == nil {
			k.public, err = x509.ParsePKIXPublicKey(m.Value.Public)
		}
	case typeEd25519:
		if len(m.Value.Public) != ed25519.PublicKeySize {
			return Key{}, fmt.Errorf("an Ed25519 key of %d bytes", len(m.Value.Public))
		}
		k.public = ed25519.PublicKey(m.Value.Public)
	default:
		return Key{}, fmt.Errorf("the unknown type %.30q", m.Type)
	}
	if err == nil {
		err = k.finish()
	}
	return k, err
}

// readCertificates reads PEM certificates, of which the key's own is the first.
func (k *Key) readCertificates(data []byte) error {
	for len(bytes.TrimSpace(data)) > 0 {
		block, rest := pem.Decode(data)
		if block == nil || block.Type != "CERTIFICATE" {
			return errors.New("it is not certificates in PEM")
		}
		data = rest
		if k.cert != nil {
			continue // an intermediate CA's; a pin names the key's own
		}
		if err := bound.DER(block.Bytes, derLimits); err != nil {
			return err
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return err
		}
		k.cert, k.public, k.Subject, k.Expires = cert, cert.PublicKey, cert.Subject.CommonName, cert.NotAfter
		k.Expired = !time.Now().Before(cert.NotAfter)
		k.PEM = string(pem.EncodeToMemory(block))
	}
	if k.cert == nil {
		return errors.New("it has no certificate")
	}
	return nil
}

// finish checks that the public key is of the type that the metadata says, and strong enough, and sets what is derived
// from it.
func (k *Key) finish() (err error) {
	bare, suffix := strings.CutSuffix(k.Algorithm, "-x509")
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		if bare != typeECDSA {
			return errors.New("it is an ECDSA key")
		}
	case *rsa.PublicKey:
		if bare != typeRSA {
			return errors.New("it is an RSA key")
		}
		if bits := public.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("an RSA key of %d bits", bits)
		}
	case ed25519.PublicKey:
		if bare != typeEd25519 {
			return errors.New("it is an Ed25519 key")
		}
	default:
		return fmt.Errorf("it is a %T", k.public)
	}
	if k.spki, err = x509.MarshalPKIXPublicKey(k.public); err != nil {
		return err
	}
	if suffix {
		k.PublicID, err = keyID(bare, k.spki)
		return err
	}
	k.PEM = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.spki}))
	return nil
}

// verifies reports whether a signature over a message is the key's. Notary hashes with SHA-256 whatever the key, and an
// ECDSA signature is r and s, each as long as the curve's order.
func (k *Key) verifies(s signature, message []byte) bool {
	sum := sha256.Sum256(message)
	switch public := k.public.(type) {
	case *ecdsa.PublicKey:
		half := (public.Params().BitSize + 7) / 8
		return s.Method == methodECDSA && len(s.Signature) == 2*half && ecdsa.Verify(public, sum[:],
			new(big.Int).SetBytes(s.Signature[:half]), new(big.Int).SetBytes(s.Signature[half:]))
	case *rsa.PublicKey:
		switch s.Method {
		case methodPSS:
			options := &rsa.PSSOptions{SaltLength: sha256.Size}
			return rsa.VerifyPSS(public, crypto.SHA256, sum[:], s.Signature, options) == nil
		case methodPKCS1:
			return rsa.VerifyPKCS1v15(public, crypto.SHA256, sum[:], s.Signature) == nil
		}
	case ed25519.PublicKey:
		return s.Method == methodEdDSA && ed25519.Verify(public, message, s.Signature)
	}
	return false
}

// isFor reports whether the key is a root key of the repository: a certificate whose common name is the GUN, or a
// prefix of it and "*". Without it, the trust data of another repository with the same root key would verify.
func (k *Key) isFor(gun string) bool {
	if k.cert == nil || k.cert.IsCA {
		return false
	}
	if prefix, ok := strings.CutSuffix(k.Subject, "*"); ok {
		return strings.HasPrefix(gun, prefix)
	}
	return k.Subject == gun
}
