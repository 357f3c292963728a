package migrate

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/notaryproject/notation-core-go/signature"
	"github.com/notaryproject/notation-core-go/signature/cose"
	"github.com/notaryproject/notation-core-go/signature/jws"
	"github.com/notaryproject/notation-go"
	notationregistry "github.com/notaryproject/notation-go/registry"
	notationsigner "github.com/notaryproject/notation-go/signer"
	contract "github.com/notaryproject/notation-plugin-framework-go/plugin"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/registry"
	"github.com/notation-hsm/notation-hsm/internal/signer"
)

// Limits of the signatures that an image has already, which anyone who can push to the repository controls.
const (
	maxSignatures = 50 // of one image that are read; as many as verifiers read
	maxManifest   = 64 << 10
	maxEnvelope   = 64 << 10
)

// Notation signs images as 'notation sign' does with the plugin.
type Notation struct {
	reference *keystore.Reference
	chain     []*x509.Certificate
	signer    notation.Signer
}

// NewNotation returns the signer of a key with a certificate. version is that of this program.
func NewNotation(ctx context.Context, reference *keystore.Reference, version string) (*Notation, error) {
	chain, err := signer.Chain(ctx, reference)
	if err != nil {
		return nil, err
	}
	n := &Notation{reference: reference, chain: chain}
	n.signer, err = notationsigner.NewPluginSigner(module{reference, version}, reference.Key.String(), nil)
	return n, err
}

// module answers notation-go as the plugin does, for one key.
type module struct {
	reference *keystore.Reference
	version   string
}

// GetMetadata returns what the plugin's does.
func (m module) GetMetadata(context.Context, *contract.GetMetadataRequest) (*contract.GetMetadataResponse, error) {
	return &contract.GetMetadataResponse{Name: config.PluginName, Version: m.version,
		SupportedContractVersions: []string{contract.ContractVersion},
		Capabilities:              []contract.Capability{contract.CapabilitySignatureGenerator}}, nil
}

// DescribeKey returns the spec of the key.
func (m module) DescribeKey(ctx context.Context, r *contract.DescribeKeyRequest) (*contract.DescribeKeyResponse,
	error) {
	spec, err := signer.Describe(ctx, m.reference)
	return &contract.DescribeKeyResponse{KeyID: r.KeyID, KeySpec: spec.Name}, err
}

// GenerateSignature signs a payload.
func (m module) GenerateSignature(ctx context.Context, r *contract.GenerateSignatureRequest) (
	*contract.GenerateSignatureResponse, error) {
	spec, err := key.ParseSpec(string(r.KeySpec))
	if err != nil {
		return nil, err
	}
	made, err := signer.Sign(ctx, m.reference, spec, r.Payload)
	if err != nil {
		return nil, err
	}
	response := &contract.GenerateSignatureResponse{KeyID: r.KeyID, Signature: made.Raw, SigningAlgorithm: spec.Algorithm}
	for _, cert := range made.Chain {
		response.CertificateChain = append(response.CertificateChain, cert.Raw)
	}
	return response, nil
}

// GenerateEnvelope is not called: GetMetadata does not list it.
func (m module) GenerateEnvelope(context.Context, *contract.GenerateEnvelopeRequest) (
	*contract.GenerateEnvelopeResponse, error) {
	return nil, errors.New("envelopes are made by notation")
}

// sign signs an image, unless it has a valid signature with the same certificates. It reports whether it has signed.
func (n *Notation) sign(ctx context.Context, repository *remote.Repository, image digest.Digest) (bool, error) {
	repository.SkipReferrersGC = true // a registry may refuse to delete the old list of referrers
	descriptor, err := repository.Resolve(ctx, image.String())
	if err == nil {
		var signed bool
		if signed, err = n.signed(ctx, repository, descriptor); signed {
			return false, nil
		}
	}
	if err != nil {
		return false, failure.New(registry.Kind(err), "cannot read the signatures of image %s: %w", image, err).
			WithHint("run this again, which goes on")
	}
	_, err = notation.Sign(ctx, n.signer, notationregistry.NewRepository(repository), notation.SignOptions{
		SignerSignOptions: notation.SignerSignOptions{SignatureMediaType: jws.MediaTypeEnvelope},
		ArtifactReference: image.String(),
	})
	if err != nil {
		return false, failure.New(failure.From(err).Kind, "cannot sign image %s with the key %s: %w", image,
			n.reference.Key, err).WithHint("run this again, which goes on")
	}
	return true, nil
}

// errEnough ends a listing.
var errEnough = errors.New("enough")

// signed reports whether an image has a valid signature with the same certificates.
func (n *Notation) signed(ctx context.Context, repository *remote.Repository, image ocispec.Descriptor) (bool, error) {
	var found []ocispec.Descriptor
	err := registry.Referrers(ctx, repository, image, notationregistry.ArtifactTypeNotation,
		func(page []ocispec.Descriptor) error {
			if found = append(found, page...); len(found) >= maxSignatures {
				return errEnough
			}
			return nil
		})
	if err != nil && !errors.Is(err, errEnough) {
		return false, err
	}
	for _, manifest := range found[:min(len(found), maxSignatures)] {
		if err := n.check(ctx, repository, manifest, image); err == nil {
			return true, nil
		} else if registry.Exhausted(err) || ctx.Err() != nil {
			return false, err
		}
	}
	return false, nil
}

// check fails unless a signature of an image is valid, and its certificates are the signer's own. These are compared
// before anything is verified, so that no foreign key is used.
func (n *Notation) check(ctx context.Context, repository *remote.Repository, manifest, image ocispec.Descriptor) error {
	data, err := registry.Fetch(ctx, repository.Manifests(), manifest, maxManifest)
	if err == nil {
		err = bound.JSON(data, bound.Limits{Bytes: maxManifest, Depth: bound.Depth, Elements: 2000})
	}
	if err != nil {
		return err
	}
	var m ocispec.Manifest
	if err := json.Unmarshal(data, &m); err != nil || len(m.Layers) != 1 {
		return errors.Join(err, errors.New("the manifest is not that of a signature"))
	}
	envelope, err := registry.Fetch(ctx, repository.Blobs(), m.Layers[0], maxEnvelope)
	if err != nil {
		return err
	}
	limits := bound.Limits{Bytes: maxEnvelope, Depth: bound.Depth, Elements: 2000}
	switch m.Layers[0].MediaType {
	case jws.MediaTypeEnvelope:
		err = bound.JSON(envelope, limits)
	case cose.MediaTypeEnvelope:
		err = bound.CBOR(envelope, limits)
	default:
		err = fmt.Errorf("an envelope of type %.100q", m.Layers[0].MediaType)
	}
	if err != nil {
		return err
	}
	return n.checkEnvelope(m.Layers[0].MediaType, envelope, image)
}

func (n *Notation) checkEnvelope(mediaType string, data []byte, image ocispec.Descriptor) error {
	envelope, err := signature.ParseEnvelope(mediaType, data)
	if err != nil {
		return err
	}
	content, err := envelope.Content()
	if err != nil {
		return err
	}
	chain := content.SignerInfo.CertificateChain
	if len(chain) != len(n.chain) {
		return errors.New("another signer's")
	}
	for i, cert := range chain {
		if !cert.Equal(n.chain[i]) {
			return errors.New("another signer's")
		}
	}
	if content, err = envelope.Verify(); err != nil {
		return err
	}
	var payload struct {
		Target ocispec.Descriptor `json:"targetArtifact"`
	}
	if err := json.Unmarshal(content.Payload.Content, &payload); err != nil {
		return err
	}
	expiry := content.SignerInfo.SignedAttributes.Expiry
	if payload.Target.Digest != image.Digest || !expiry.IsZero() && time.Now().After(expiry) {
		return errors.New("of another image, or expired")
	}
	return nil
}
