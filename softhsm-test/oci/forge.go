package oci

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"strings"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	_ "github.com/notaryproject/notation-core-go/signature/cose" // so that it can be made
	_ "github.com/notaryproject/notation-core-go/signature/jws"
	notationregistry "github.com/notaryproject/notation-go/registry"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Forger makes signatures of Notation's kind with a key and certificates of its own, as anyone can.
type Forger struct {
	Certificate *x509.Certificate
	chain       []*x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewForger makes a key and a self-signed certificate. With an address, the certificate is one of a CA of its own, and
// says that the revocation list and the OCSP responder are there.
func NewForger(name, address string) (*Forger, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := func(name string) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name, Organization: []string{"Example"},
				Country: []string{"CH"}, Province: []string{"Zurich"}},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), BasicConstraintsValid: true,
			KeyUsage: x509.KeyUsageDigitalSignature,
		}
	}
	leaf := template(name)
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}
	f := &Forger{key: key}
	issuer := leaf
	if address != "" {
		leaf.CRLDistributionPoints, leaf.OCSPServer = []string{address + "/crl"}, []string{address + "/ocsp"}
		ca := template(name + "'s CA")
		ca.IsCA, ca.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
		if issuer, err = f.certify(ca, ca); err != nil {
			return nil, err
		}
		f.chain = []*x509.Certificate{issuer}
	}
	if f.Certificate, err = f.certify(leaf, issuer); err != nil {
		return nil, err
	}
	f.chain = append([]*x509.Certificate{f.Certificate}, f.chain...)
	return f, nil
}

// certify makes a certificate of the forger's one key.
func (f *Forger) certify(template, issuer *x509.Certificate) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, f.key.Public(), f.key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// PEM returns the certificate that is to be trusted.
func (f *Forger) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.chain[len(f.chain)-1].Raw})
}

// Sign makes an envelope for an image. The attributes are critical, such as the verification plugin's name.
func (f *Forger) Sign(mediaType string, image ocispec.Descriptor, attributes map[string]string) ([]byte, error) {
	signer, err := signature.NewLocalSigner(f.chain, f.key)
	if err != nil {
		return nil, err
	}
	payload, err := json.Marshal(map[string]any{
		"targetArtifact": ocispec.Descriptor{MediaType: image.MediaType, Digest: image.Digest, Size: image.Size}})
	if err != nil {
		return nil, err
	}
	request := &signature.SignRequest{
		Payload: signature.Payload{ContentType: "application/vnd.cncf.notary.payload.v1+json", Content: payload},
		Signer:  signer, SigningTime: time.Now(), SigningScheme: signature.SigningSchemeX509,
	}
	for name, value := range attributes {
		request.ExtendedSignedAttributes = append(request.ExtendedSignedAttributes,
			signature.Attribute{Key: name, Value: value, Critical: true})
	}
	envelope, err := signature.NewEnvelope(mediaType)
	if err != nil {
		return nil, err
	}
	return envelope.Sign(request)
}

// SignatureManifest returns the manifest that hangs an envelope on an image.
func SignatureManifest(envelope, image ocispec.Descriptor, created time.Time) ([]byte, error) {
	return json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: ocispec.Descriptor{MediaType: notationregistry.ArtifactTypeNotation,
			Digest: ocispec.DescriptorEmptyJSON.Digest, Size: ocispec.DescriptorEmptyJSON.Size},
		Layers: []ocispec.Descriptor{envelope}, Subject: &image,
		Annotations: map[string]string{ocispec.AnnotationCreated: created.UTC().Format(time.RFC3339)},
	})
}

// PushSignature hangs a signature on the image that a reference names in a registry.
func PushSignature(ctx context.Context, reference, mediaType string,
	sign func(ocispec.Descriptor) ([]byte, error)) (digest.Digest, error) {
	repository, err := Open(reference)
	if err != nil {
		return "", err
	}
	image, err := repository.Resolve(ctx, repository.Reference.Reference)
	if err != nil {
		return "", err
	}
	envelope, err := sign(image)
	if err != nil {
		return "", err
	}
	if err := PushAll(ctx, repository, map[string][]byte{mediaType: envelope,
		notationregistry.ArtifactTypeNotation: ocispec.DescriptorEmptyJSON.Data}); err != nil {
		return "", err
	}
	data, err := SignatureManifest(Descriptor(mediaType, envelope), image, time.Now())
	if err != nil {
		return "", err
	}
	d := Descriptor(ocispec.MediaTypeImageManifest, data)
	return d.Digest, repository.Push(ctx, d, bytes.NewReader(data))
}

// Climbing returns names that lead to a program, or may, when they are joined to the path of a folder.
func Climbing(program string) []string {
	up := strings.Repeat("../", 30) + program[1:]
	return []string{"a/" + up, up, program, "a/../" + up, "./" + up, "a/" + up + "\x00",
		strings.ReplaceAll("a/"+up, "/", `\`), "..", "."}
}
