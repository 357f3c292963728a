package certs

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

// SignText signs a text with the signature scheme of certificates. Callers begin each kind of text with a line of its
// own. Certificates, requests and revocation lists begin with the byte 0x30, so the signature of a text is never valid
// for one of them.
func SignText(signer crypto.Signer, text []byte) ([]byte, error) {
	spec, err := key.SpecOf(signer.Public())
	if err != nil {
		return nil, err
	}
	signature, err := crypto.SignMessage(signer, rand.Reader, text, spec.Hash)
	if err != nil && spec.IsRSA() { // the module may restrict the key to RSASSA-PSS
		opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: spec.Hash}
		if pss, pssErr := crypto.SignMessage(signer, rand.Reader, text, opts); pssErr == nil {
			signature, err = pss, nil
		}
	}
	return signature, err
}

// CheckText verifies a signature that SignText made, with the certificate of the signer.
func CheckText(cert *x509.Certificate, text, signature []byte) error {
	spec, err := key.SpecOf(cert.PublicKey)
	if err != nil {
		return err
	}
	algorithms := rsaAlgorithms(spec.Hash)
	if !spec.IsRSA() {
		algorithms = []x509.SignatureAlgorithm{ecdsaAlgorithm(spec.Hash)}
	}
	for _, a := range algorithms {
		if err = cert.CheckSignature(a, text, signature); err == nil {
			return nil
		}
	}
	return failure.New(failure.Invalid, "the signature does not verify with the certificate of %q: %w", cert.Subject, err).
		WithHint("restore the file that was signed")
}

func ecdsaAlgorithm(hash crypto.Hash) x509.SignatureAlgorithm {
	switch hash {
	case crypto.SHA256:
		return x509.ECDSAWithSHA256
	case crypto.SHA384:
		return x509.ECDSAWithSHA384
	}
	return x509.ECDSAWithSHA512
}
