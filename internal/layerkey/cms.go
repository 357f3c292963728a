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

// The parts of CMS EnvelopedData (RFC 5652 section 6.1) that name its recipients, and that pkcs7 does not export.
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

// contentCiphers are the ciphers of content that is decrypted: AES-GCM, which is what ocicrypt makes. AES-CBC has no
// authentication: how decryption fails would show whoever publishes a crafted image what the module decrypted.
var contentCiphers = []struct {
	oid  asn1.ObjectIdentifier
	size int // of the key, in bytes
}{
	{pkcs7.OIDEncryptionAlgorithmAES128GCM, 16},
	{pkcs7.OIDEncryptionAlgorithmAES256GCM, 32},
}

// cmsBounds are those of a packet with more recipients than a layer may have. It is in DER: BER has many encodings of
// the same message.
var cmsBounds = bound.Limits{Bytes: packetLimit, Depth: bound.Depth, Elements: 64 * recipientsLimit}

func parseCMS(data []byte) (parsedPacket, error) {
	if err := bound.DER(data, cmsBounds); err != nil {
		return parsedPacket{}, err
	}
	var info contentInfo
	if rest, err := asn1.Unmarshal(data, &info); err != nil || len(rest) > 0 || !info.Type.Equal(pkcs7.OIDEnvelopedData) {
		return parsedPacket{}, errors.New("it is no CMS EnvelopedData in DER for certificates")
	}
	var keys []wrappedKey
	for _, r := range info.Content.Recipients {
		keys = append(keys, wrappedKey{
			RecipientInfo: RecipientInfo{
				Algorithm: cmsAlgorithm(r),
				Name:      issuerName(r.Name.Issuer.FullBytes) + " serial " + serialText(r.Name.Serial),
			},
			rsaSize: len(r.Encrypted), encrypted: r.Encrypted,
		})
	}
	parsed := sync.OnceValues(func() (*pkcs7.PKCS7, error) { return pkcs7.Parse(data) })
	open := func(ctx context.Context, wrapped wrappedKey, k keystore.Key) ([]byte, error) {
		return openCMS(ctx, &info.Content, parsed, wrapped, k)
	}
	return parsedPacket{keys: keys, open: open}, nil
}

// cmsAlgorithm returns the algorithm that encrypts a recipient's key, by its name in JOSE or else by its object
// identifier.
func cmsAlgorithm(r cmsRecipient) string {
	switch {
	case r.Algorithm.Algorithm.Equal(pkcs7.OIDEncryptionAlgorithmRSAESOAEP):
		return "RSA-OAEP"
	case r.Algorithm.Algorithm.Equal(pkcs7.OIDEncryptionAlgorithmRSA):
		return "RSA-PKCS1-v1_5"
	}
	return r.Algorithm.Algorithm.String()
}

// The limits of names of certificates, which are shown. Real ones are shorter.
const (
	issuerLimit      = 1024 // bytes
	issuerPartsLimit = 32
	serialLimit      = 32 // bytes; RFC 5280 section 4.1.2.2 allows 20
)

// issuerName returns an issuer's name (RFC 2253), from DER.
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

// serialText returns a serial number in hex.
func serialText(serial *big.Int) string {
	if serial == nil || serial.BitLen() > 8*serialLimit {
		return "unreadable"
	}
	return serial.Text(16)
}

// openCMS decrypts EnvelopedData by one of its wrapped keys. It fails, before the private key is used, for content that
// is not encrypted with one of contentCiphers.
func openCMS(ctx context.Context, e *enveloped, parse func() (*pkcs7.PKCS7, error), wrapped wrappedKey,
	k keystore.Key) ([]byte, error) {
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
	// Of the recipient's certificate, the library reads the issuer and the serial number alone.
	r := e.Recipients[wrapped.index]
	name := &x509.Certificate{RawIssuer: r.Name.Issuer.FullBytes, SerialNumber: r.Name.Serial}
	module := &sessionKeyDecrypter{ctx: ctx, key: k, size: size}
	options, err := parsed.Decrypt(name, module)
	if module.failed != nil {
		return nil, module.failed
	}
	return options, err
}

// sessionKeyDecrypter decrypts content keys of a known length. With PKCS #1 v1.5, a ciphertext with wrong padding
// decrypts to a random key of this length, as for SSL (crypto/rsa.DecryptPKCS1v15SessionKey): the content then fails to
// authenticate, and nothing tells wrong padding from a wrong key (Bleichenbacher's attack).
type sessionKeyDecrypter struct {
	ctx    context.Context // pkcs7 takes a crypto.Decrypter, which has none
	key    keystore.Key
	size   int   // of the content key, in bytes
	failed error // of the module
}

// Public returns the public half.
func (d *sessionKeyDecrypter) Public() crypto.PublicKey { return d.key.Public() }

// Decrypt decrypts a content key and keeps the module's failure.
func (d *sessionKeyDecrypter) Decrypt(_ io.Reader, encrypted []byte, opts crypto.DecrypterOpts) (plain []byte,
	err error) {
	//nolint:staticcheck // PKCS #1 v1.5 is deprecated, and what ocicrypt's pkcs7 uses
	if _, ok := opts.(*rsa.PKCS1v15DecryptOptions); ok {
		opts = &rsa.PKCS1v15DecryptOptions{SessionKeyLen: d.size} //nolint:staticcheck // as above
	}
	plain, d.failed = d.key.Decrypt(d.ctx, encrypted, opts)
	return plain, d.failed
}
