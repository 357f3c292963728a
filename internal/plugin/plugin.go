// Package plugin is the Notation plugin "hsm": it answers the commands of the Notary Project's plugin contract, version
// 1.0, with signatures of internal/signer.
//
// Notation starts a process for each command. The request is JSON on standard input; the response is JSON on standard
// output, or an error in JSON on standard error.
package plugin

import (
	"context"
	"errors"

	contract "github.com/notaryproject/notation-plugin-framework-go/plugin"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/signer"
)

// Plugin answers the contract's commands.
type Plugin struct {
	Version  string             // of this build: a semantic version
	Keystore *keystore.Keystore // opens the keys that requests name
}

// GetMetadata returns the plugin's name, version and capabilities. It does not read the request.
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

// DescribeKey returns the spec of the request's key.
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

// GenerateSignature signs the request's payload. It fails with Invalid when the key is not of the request's spec, or
// the hash is not the one of that spec.
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
		return nil, failure.New(failure.Invalid, "keys of spec %s do not sign with %q", spec.Name, r.Hash).
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

// errVersion marks the failure that has an error code of its own in the contract.
var errVersion = errors.New("unsupported contract version")

// resolve returns the key that a request names, with the settings of its plugin config. It fails with Unsupported for
// another version of the contract.
func (p Plugin) resolve(version, keyID string, given map[string]string) (*keystore.Reference, error) {
	if version != contract.ContractVersion {
		f := failure.New(failure.Unsupported, "contract version %q is not supported", version).
			WithHint("use a version of notation that supports contract version " + contract.ContractVersion)
		f.Err = errVersion
		return nil, f
	}
	return p.Keystore.Resolve(keyID, given, config.PluginConfig)
}
