package certs

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
)

var (
	oidExtKeyUsage = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidCodeSigning = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 3}
)

// SelfSign makes a self-signed certificate for a key that Notation accepts, as LeafTemplate has it. It returns DER.
func SelfSign(signer crypto.Signer, subject pkix.Name, days int) ([]byte, error) {
	template, err := LeafTemplate(Terms{Days: days}, nil)
	if err != nil {
		return nil, err
	}
	template.Subject = subject
	cert, err := Sign(signer, template, nil, signer.Public())
	if err != nil {
		return nil, err
	}
	return cert.Raw, nil
}

// Sign makes a certificate for a public key from a template; without an issuer it is self-signed. It gets a random
// serial of 20 octets, of which 158 bits are random, and the identifiers of both keys.
func Sign(signer crypto.Signer, template, issuer *x509.Certificate, public crypto.PublicKey) (*x509.Certificate,
	error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 158))
	if err != nil {
		return nil, err
	}
	made := *template
	made.SerialNumber = serial.SetBit(serial, 158, 1) // positive, never zero, and always of one length
	if made.SubjectKeyId, err = keyIdentifier(public); err != nil {
		return nil, err
	}
	if issuer == nil {
		issuer = &made
	}
	der, err := sign(signer, func(a x509.SignatureAlgorithm) ([]byte, error) {
		made.SignatureAlgorithm = a
		return x509.CreateCertificate(rand.Reader, &made, issuer, public, signer)
	})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// SignCRL makes a certificate revocation list (RFC 5280, section 5) in the name of issuer, whose key signer is.
func SignCRL(signer crypto.Signer, list *x509.RevocationList, issuer *x509.Certificate) (*x509.RevocationList, error) {
	made := *list
	der, err := sign(signer, func(a x509.SignatureAlgorithm) ([]byte, error) {
		made.SignatureAlgorithm = a
		return x509.CreateRevocationList(rand.Reader, &made, issuer, signer)
	})
	if err != nil {
		return nil, err
	}
	signed, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	return signed, unsigned(signed.CheckSignatureFrom(issuer))
}

// Request makes a certificate request (PKCS #10, RFC 2986) that asks for what Notation's rules need. It returns DER.
func Request(signer crypto.Signer, subject pkix.Name) ([]byte, error) {
	usage, err := asn1.Marshal(asn1.BitString{Bytes: []byte{0x80}, BitLength: 1}) // digitalSignature
	if err != nil {
		return nil, err
	}
	extended, err := asn1.Marshal([]asn1.ObjectIdentifier{oidCodeSigning})
	if err != nil {
		return nil, err
	}
	template := &x509.CertificateRequest{Subject: subject, ExtraExtensions: []pkix.Extension{
		{Id: oidKeyUsage, Critical: true, Value: usage},
		{Id: oidExtKeyUsage, Value: extended},
	}}
	return sign(signer, func(a x509.SignatureAlgorithm) ([]byte, error) {
		template.SignatureAlgorithm = a
		return x509.CreateCertificateRequest(rand.Reader, template, signer)
	})
}

// rsaAlgorithms lists the signature algorithms of RSA keys with a hash, in the order they are tried.
func rsaAlgorithms(hash crypto.Hash) []x509.SignatureAlgorithm {
	switch hash {
	case crypto.SHA256:
		return []x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.SHA256WithRSAPSS}
	case crypto.SHA384:
		return []x509.SignatureAlgorithm{x509.SHA384WithRSA, x509.SHA384WithRSAPSS}
	}
	return []x509.SignatureAlgorithm{x509.SHA512WithRSA, x509.SHA512WithRSAPSS}
}

// sign makes what is signed with PKCS #1 v1.5 where the key is RSA, since every CA takes that, or with RSASSA-PSS when
// the key is restricted to it.
func sign(signer crypto.Signer, with func(x509.SignatureAlgorithm) ([]byte, error)) ([]byte, error) {
	if _, isRSA := signer.Public().(*rsa.PublicKey); !isRSA {
		der, err := with(x509.UnknownSignatureAlgorithm) // the curve decides
		return der, unsigned(err)
	}
	spec, err := key.SpecOf(signer.Public())
	if err != nil {
		return nil, err
	}
	algorithms := rsaAlgorithms(spec.Hash)
	der, err := with(algorithms[0])
	if err == nil {
		return der, nil
	}
	if der, pssErr := with(algorithms[1]); pssErr == nil {
		return der, nil
	}
	return nil, unsigned(err)
}

// unsigned puts crypto/x509's refusal of a signature into our words; a module's failure has them already.
func unsigned(err error) error {
	var known *failure.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return failure.New(failure.Internal, "the certificate was not signed: %w", err).
		WithHint("run it again; if it stays so, the module makes wrong signatures with this key")
}
