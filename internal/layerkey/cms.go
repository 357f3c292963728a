package layerkey

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io"
	"math/big"
	"sync"

	"github.com/smallstep/pkcs7"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// The parts of CMS EnvelopedData (RFC 5652 section 6.1) that say for whom it is. pkcs7 reads them too and shows them to
// nobody.
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

// Only AES-GCM is opened, which is what ocicrypt makes. CBC has no authentication: it would tell a stranger who
// publishes images, by how they fail, what a module has decrypted.
var contentCiphers = []struct {
	oid  asn1.ObjectIdentifier
	size int // of the key, in bytes
}{
	{pkcs7.OIDEncryptionAlgorithmAES128GCM, 16},
	{pkcs7.OIDEncryptionAlgorithmAES256GCM, 32},
}

// cmsBounds allow for more recipients than a layer may have; in DER, since BER gives the same message many forms.
var cmsBounds = bound.Limits{Bytes: packetLimit, Depth: bound.Depth, Elements: 64 * recipientsLimit}

func parseCMS(data []byte) (wrapping, error) {
	if err := bound.DER(data, cmsBounds); err != nil {
		return wrapping{}, err
	}
	var info contentInfo
	if rest, err := asn1.Unmarshal(data, &info); err != nil || len(rest) > 0 || !info.Type.Equal(pkcs7.OIDEnvelopedData) {
		return wrapping{}, errors.New("it is no CMS EnvelopedData in DER for certificates")
	}
	var locks []lock
	for _, r := range info.Content.Recipients {
		l := lock{Holder: Holder{Algorithm: cmsAlgorithm(r)}, rsaSize: len(r.Encrypted), encrypted: r.Encrypted}
		l.Name = issuerName(r.Name.Issuer.FullBytes) + " serial " + serialText(r.Name.Serial)
		locks = append(locks, l)
	}
	parsed := sync.OnceValues(func() (*pkcs7.PKCS7, error) { return pkcs7.Parse(data) })
	open := func(ctx context.Context, l lock, k keystore.Key) ([]byte, error) {
		return openCMS(ctx, &info.Content, parsed, l, k)
	}
	return wrapping{locks: locks, open: open}, nil
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

// Names of certificates are shown. Those of real ones are shorter than this.
const (
	issuerLimit      = 1024 // bytes
	issuerPartsLimit = 32
	serialLimit      = 32 // bytes; RFC 5280 section 4.1.2.2 allows 20
)

func issuerName(der []byte) string {
	var name pkix.RDNSequence
	if len(der) > issuerLimit || bound.DER(der,
		bound.Limits{Bytes: issuerLimit, Depth: bound.Depth, Elements: 4 * issuerPartsLimit}) != nil {
		return "an unreadable issuer"
	}
	if _, err := asn1.Unmarshal(der, &name); err != nil {
		return "an unreadable issuer"
	}
	return name.String()
}

func serialText(serial *big.Int) string {
	if serial == nil || serial.BitLen() > 8*serialLimit {
		return "unreadable"
	}
	return serial.Text(16)
}

// openCMS opens EnvelopedData by the lock that is the key's.
func openCMS(ctx context.Context, e *enveloped, parse func() (*pkcs7.PKCS7, error), l lock, k keystore.Key) ([]byte, error) {
	size := 0
	for _, c := range contentCiphers {
		if e.Content.Algorithm.Algorithm.Equal(c.oid) {
			size = c.size
		}
	}
	if size == 0 {
		return nil, errors.New("its content is not encrypted with AES-GCM")
	}
	parsed, err := parse()
	if err != nil {
		return nil, err
	}
	// All that the library reads of the recipient's certificate is what names it in the packet.
	r := e.Recipients[l.index]
	name := &x509.Certificate{RawIssuer: r.Name.Issuer.FullBytes, SerialNumber: r.Name.Serial}
	module := &sessionKeyDecrypter{ctx: ctx, key: k, size: size}
	options, err := parsed.Decrypt(name, module)
	if module.failed != nil {
		return nil, module.failed
	}
	return options, err
}

// sessionKeyDecrypter decrypts content keys, whose length is known: with PKCS #1 v1.5 a wrong one is then as good as
// any other, and how a packet fails says nothing of its padding.
type sessionKeyDecrypter struct {
	ctx    context.Context // pkcs7 takes a crypto.Decrypter, which has none
	key    keystore.Key
	size   int
	failed error
}

// Public returns the public half.
func (d *sessionKeyDecrypter) Public() crypto.PublicKey { return d.key.Public() }

// Decrypt decrypts a content key.
func (d *sessionKeyDecrypter) Decrypt(_ io.Reader, encrypted []byte, opts crypto.DecrypterOpts) (plain []byte,
	err error) {
	if _, ok := opts.(*rsa.PKCS1v15DecryptOptions); ok { //nolint:staticcheck // deprecated as dangerous, and what ocicrypt's pkcs7 uses
		opts = &rsa.PKCS1v15DecryptOptions{SessionKeyLen: d.size} //nolint:staticcheck // as above
	}
	plain, d.failed = d.key.Decrypt(d.ctx, encrypted, opts)
	return plain, d.failed
}
