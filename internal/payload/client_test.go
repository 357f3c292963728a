package payload_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// mediaTypes are the media types of envelopes by the names of their encodings.
var mediaTypes = map[string]string{"JWS": jws.MediaTypeEnvelope, "COSE": cose.MediaTypeEnvelope}

// keySpecs are the keys that Notary Project signatures can be made with, by the algorithm of their signatures.
var keySpecs = map[string]signature.KeySpec{
	"RSASSA-PSS-SHA-256": {Type: signature.KeyTypeRSA, Size: 2048},
	"RSASSA-PSS-SHA-384": {Type: signature.KeyTypeRSA, Size: 3072},
	"RSASSA-PSS-SHA-512": {Type: signature.KeyTypeRSA, Size: 4096},
	"ECDSA-SHA-256":      {Type: signature.KeyTypeEC, Size: 256},
	"ECDSA-SHA-384":      {Type: signature.KeyTypeEC, Size: 384},
	"ECDSA-SHA-512":      {Type: signature.KeyTypeEC, Size: 521},
}

// content is the payload of a signature, as notation-go has it.
type content struct {
	TargetArtifact ocispec.Descriptor `json:"targetArtifact"`
}

// request is what a client asks notation-core-go to sign.
type request struct {
	encoding, algorithm string
	target              ocispec.Descriptor
	signingTime, expiry time.Time
	scheme              signature.SigningScheme
	attributes          []signature.Attribute
}

// newRequest returns a request that is accepted.
func newRequest(encoding, algorithm string) request {
	return request{encoding: encoding, algorithm: algorithm, target: ocispec.Descriptor{
		MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString("image"), Size: 528},
		signingTime: time.Date(2026, 11, 26, 21, 36, 6, 0, time.UTC), scheme: signature.SigningSchemeX509}
}

// capture is a remote signer that keeps the bytes that it is to sign.
type capture struct {
	spec signature.KeySpec
	data []byte
}

var errCaptured = errors.New("captured")

func (c *capture) KeySpec() (signature.KeySpec, error) { return c.spec, nil }

func (c *capture) Sign(data []byte) ([]byte, []*x509.Certificate, error) {
	c.data = data
	return nil, nil, errCaptured
}

// bytes returns the bytes to be signed, as notation-core-go sends them to a plugin for what notation-go asks it to
// sign.
func (r request) bytes(t testing.TB) []byte {
	t.Helper()
	text, err := json.Marshal(content{r.target})
	if err != nil {
		t.Fatal(err)
	}
	envelope, err := signature.NewEnvelope(mediaTypes[r.encoding])
	if err != nil {
		t.Fatal(err)
	}
	signer := &capture{spec: keySpecs[r.algorithm]}
	_, err = envelope.Sign(&signature.SignRequest{
		Payload: signature.Payload{ContentType: "application/vnd.cncf.notary.payload.v1+json", Content: text},
		Signer:  signer, SigningTime: r.signingTime, Expiry: r.expiry, SigningScheme: r.scheme,
		ExtendedSignedAttributes: r.attributes, SigningAgent: "notation-go/1.3.2"})
	if signer.data == nil {
		t.Fatal(err)
	}
	return signer.data
}

// pair is a private key and a self-signed certificate for signing.
type pair struct {
	key  crypto.Signer
	cert *x509.Certificate
}

var (
	pairsLock sync.Mutex
	pairs     = map[string]pair{} // by algorithm
)

// keyFor returns a key for signatures with an algorithm.
func keyFor(t testing.TB, algorithm string) pair {
	t.Helper()
	pairsLock.Lock()
	defer pairsLock.Unlock()
	if p, exists := pairs[algorithm]; exists {
		return p
	}
	var key crypto.Signer
	var err error
	switch spec := keySpecs[algorithm]; {
	case spec.Type == signature.KeyTypeRSA:
		key, err = rsa.GenerateKey(rand.Reader, spec.Size)
	case spec.Size == 256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case spec.Size == 384:
		key, err = ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	default:
		key, err = ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	}
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().AddDate(1, 0, 0), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning},
		Subject: pkix.Name{CommonName: "release", Organization: []string{"Example"}, Country: []string{"CH"},
			Province: []string{"Zurich"}}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pairs[algorithm] = pair{key, cert}
	return pairs[algorithm]
}

// sign signs with the algorithm of the key, in the encoding that both envelopes have.
func (p pair) sign(t testing.TB, data []byte) []byte {
	t.Helper()
	spec, err := signature.ExtractKeySpec(p.cert)
	if err != nil {
		t.Fatal(err)
	}
	hash := spec.SignatureAlgorithm().Hash()
	h := hash.New()
	h.Write(data)
	if key, ok := p.key.(*ecdsa.PrivateKey); ok {
		r, s, err := ecdsa.Sign(rand.Reader, key, h.Sum(nil))
		if err != nil {
			t.Fatal(err)
		}
		size := (key.Curve.Params().BitSize + 7) / 8
		signed := make([]byte, 2*size)
		r.FillBytes(signed[:size])
		s.FillBytes(signed[size:])
		return signed
	}
	signed, err := p.key.Sign(rand.Reader, h.Sum(nil),
		&rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	return signed
}
