// Package plugin is the Notation plugin: the contract of the Notary Project's plugin specification, version 1.0, on one
// side and internal/signer on the other.
package plugin

import (
	"context"

	contract "github.com/notaryproject/notation-plugin-framework-go/plugin"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/signer"
)

// Plugin answers the contract's commands.
type Plugin struct {
	Version  string             // of this build, as semantic versioning has it
	Keystore *keystore.Keystore // reaches the keys of requests
}

// GetMetadata says what the plugin is and can do.
func (p Plugin) GetMetadata(context.Context, *contract.GetMetadataRequest) (*contract.GetMetadataResponse, error) {
	return &contract.GetMetadataResponse{
		Name:                      config.PluginName,
		Description:               "Sign with keys that never leave their PKCS#11 module",
		Version:                   p.Version,
		URL:                       "https://github.com/notation-hsm/notation-hsm",
		SupportedContractVersions: []string{contract.ContractVersion},
		Capabilities:              []contract.Capability{contract.CapabilitySignatureGenerator},
	}, nil
}

// DescribeKey returns the key's spec.
func (p Plugin) DescribeKey(ctx context.Context, r *contract.DescribeKeyRequest) (*contract.DescribeKeyResponse,
	error) {
	settings, err := p.resolve(r.ContractVersion, r.KeyID, r.PluginConfig)
	if err != nil {
		return nil, err
	}
	spec, err := signer.Describe(ctx, settings)
	if err != nil {
		return nil, err
	}
	return &contract.DescribeKeyResponse{KeyID: r.KeyID, KeySpec: spec.Name}, nil
}

// GenerateSignature signs the payload. The key has to be of the spec and hash of the request.
func (p Plugin) GenerateSignature(ctx context.Context,
	r *contract.GenerateSignatureRequest) (*contract.GenerateSignatureResponse, error) {
	settings, err := p.resolve(r.ContractVersion, r.KeyID, r.PluginConfig)
	if err != nil {
		return nil, err
	}
	spec, err := key.ParseSpec(string(r.KeySpec))
	if err != nil {
		return nil, err
	}
	if spec.HashName != r.Hash {
		return nil, failure.New(failure.Invalid, "keys of spec %s do not sign with %q",
			spec.Name, r.Hash).
			WithHint("ask for " + string(spec.HashName))
	}
	signature, err := signer.Sign(ctx, settings, spec, r.Payload)
	if err != nil {
		return nil, err
	}
	response := &contract.GenerateSignatureResponse{KeyID: r.KeyID, Signature: signature.Raw,
		SigningAlgorithm: spec.Algorithm}
	for _, cert := range signature.Chain {
		response.CertificateChain = append(response.CertificateChain, cert.Raw)
	}
	return response, nil
}

func (p Plugin) resolve(version, keyID string, given map[string]string) (*keystore.Reference, error) {
	if version != contract.ContractVersion {
		return nil, failure.New(failure.Unsupported, "contract version %q is not supported", version).
			WithHint("use a version of notation that speaks contract version " + contract.ContractVersion)
	}
	return p.Keystore.Resolve(keyID, given, config.PluginConfig)
}
