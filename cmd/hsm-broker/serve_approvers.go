package main

import (
	"crypto/x509"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/broker"
	"github.com/notation-hsm/notation-hsm/internal/brokerfile"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// firstApprovers returns the people whom a broker enrols when its log begins.
func firstApprovers(f *brokerfile.File) (all []broker.FirstApprover, err error) {
	if f.Approvers == "" {
		return nil, nil
	}
	people, err := brokerfile.ReadApprovers(f.Approvers)
	for _, p := range people {
		first := broker.FirstApprover{Name: p.Name, Invitation: p.Invitation}
		if p.Kind != approval.Passkey {
			first.Credential = &approval.Credential{Kind: p.Kind, Public: p.Public}
		}
		all = append(all, first)
	}
	return all, err
}

// attestationRoots returns the CAs of authenticators' manufacturers; nil if the config names none.
func attestationRoots(f *brokerfile.File) (*x509.CertPool, error) {
	path := f.Passkeys.AttestationRoots
	if path == "" {
		return nil, nil
	}
	data, err := bound.ReadFile(path, 4<<20)
	if err != nil {
		return nil, failure.New(failure.FileKind(err), "cannot read the roots of attestations: %w", err).
			WithHint("set passkeys.attestation-roots in the config file")
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, failure.New(failure.Invalid, "the file %s has no certificate in PEM", path).
			WithHint("write the CAs of the authenticators' manufacturers into it")
	}
	return roots, nil
}
