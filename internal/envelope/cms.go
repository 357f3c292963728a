package envelope

import (
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"

	"github.com/smallstep/pkcs7"

	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// The parts of CMS EnvelopedData (RFC 5652 section 6.1) that say for whom it is. pkcs7 reads them too and shows them to nobody.
type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content enveloped `asn1:"explicit,tag:0"`
}

type enveloped struct {
	Version    int
	Recipients []cmsRecipient `asn1:"set"`
	Content    struct {
		Type      asn1.ObjectIdentifier
		Algorithm pkix.AlgorithmIdentifier
		Encrypted asn1.RawValue `asn1:"tag:0,optional"`
	}
}

type cmsRecipient struct {
	Version int
	Name    struct {
		Issuer asn1.RawValue
		Serial *big.Int
	}
	Algorithm pkix.AlgorithmIdentifier
	Encrypted []byte
}

// Only AES-GCM is opened, which is what ocicrypt makes. CBC has no authentication: it would tell a stranger who publishes images, by
// how they fail, what a module has decrypted.
var contentCiphers = []struct {
	oid  asn1.ObjectIdentifier
	size int // of the key, in bytes
}{
	{pkcs7.OIDEncryptionAlgorithmAES128GCM, 16},
	{pkcs7.OIDEncryptionAlgorithmAES256GCM, 32},
}

func parseCMS(p packet) (*enveloped, error) {
	var info contentInfo
	if rest, err := asn1.Unmarshal(p.data, &info); err != nil || len(rest) > 0 || !info.Type.Equal(pkcs7.OIDEnvelopedData) {
		return nil, damaged(p.scheme, errors.New("it is no CMS EnvelopedData in DER for certificates"))
	}
	return &info.Content, nil
}

func cmsLocks(p packet) ([]lock, error) {
	e, err := parseCMS(p)
	if err != nil {
		return nil, err
	}
	var locks []lock
	for i, r := range e.Recipients {
		l := lock{Holder: Holder{Scheme: p.scheme, Algorithm: cmsAlgorithm(r)}, index: i, rsaSize: len(r.Encrypted), encrypted: r.Encrypted}
		if r.Name.Serial != nil {
			l.serial = r.Name.Serial.Text(16)
		}
		l.Name = issuerName(r.Name.Issuer.FullBytes) + " serial " + l.serial
		locks = append(locks, l)
	}
	if len(locks) == 0 {
		return nil, damaged(p.scheme, errors.New("it has no recipients"))
	}
	return locks, nil
}

func cmsAlgorithm(r cmsRecipient) string {
	switch {
	case r.Algorithm.Algorithm.Equal(pkcs7.OIDEncryptionAlgorithmRSAESOAEP):
		return "RSA-OAEP"
	case r.Algorithm.Algorithm.Equal(pkcs7.OIDEncryptionAlgorithmRSA):
		return "RSA-PKCS1-v1_5"
	}
	return r.Algorithm.Algorithm.String()
}

func issuerName(der []byte) string {
	var name pkix.RDNSequence
	if _, err := asn1.Unmarshal(der, &name); err != nil {
		return "an unreadable issuer"
	}
	return name.String()
}

// openCMS opens EnvelopedData by the lock that is the key's.
func openCMS(p packet, l lock, k keystore.Key) ([]byte, error) {
	e, err := parseCMS(p)
	if err != nil {
		return nil, err
	}
	size := 0
	for _, c := range contentCiphers {
		if e.Content.Algorithm.Algorithm.Equal(c.oid) {
			size = c.size
		}
	}
	if size == 0 {
		return nil, errors.New("its content is not encrypted with AES-GCM")
	}
	parsed, err := pkcs7.Parse(p.data)
	if err != nil {
		return nil, damaged(p.scheme, err)
	}
	// All that the library reads of the recipient's certificate is what names it in the packet.
	r := e.Recipients[l.index]
	name := &x509.Certificate{RawIssuer: r.Name.Issuer.FullBytes, SerialNumber: r.Name.Serial}
	module := &sessionKeyDecrypter{Key: k, size: size}
	options, err := parsed.Decrypt(name, module)
	if module.failed != nil {
		return nil, module.failed
	}
	return options, err
}

// sessionKeyDecrypter decrypts content keys, whose length is known: with PKCS #1 v1.5 a wrong one is then as good as any other, and how a
// packet fails says nothing of its padding.
type sessionKeyDecrypter struct {
	keystore.Key
	size   int
	failed error
}

func (d *sessionKeyDecrypter) Decrypt(rand io.Reader, encrypted []byte, opts crypto.DecrypterOpts) (plain []byte, err error) {
	if _, ok := opts.(*rsa.PKCS1v15DecryptOptions); ok { //nolint:staticcheck // deprecated as dangerous, and what ocicrypt's pkcs7 uses
		opts = &rsa.PKCS1v15DecryptOptions{SessionKeyLen: d.size} //nolint:staticcheck // as above
	}
	plain, d.failed = d.Key.Decrypt(rand, encrypted, opts)
	return plain, d.failed
}
