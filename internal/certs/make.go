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

// SelfSign returns a self-signed leaf certificate that Notation accepts, in DER.
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

// Sign returns a certificate for a public key, made from a template. Without an issuer it is self-signed. The serial
// number has 20 octets, of which 158 bits are random. The certificate has the identifiers of both keys.
func Sign(signer crypto.Signer, template, issuer *x509.Certificate, public crypto.PublicKey) (*x509.Certificate,
	error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 158))
	if err != nil {
		return nil, err
	}
	unsigned := *template
	unsigned.SerialNumber = serial.SetBit(serial, 158, 1) // positive, and always of the same length
	if unsigned.SubjectKeyId, err = keyIdentifier(public); err != nil {
		return nil, err
	}
	if issuer == nil {
		issuer = &unsigned
	}
	der, err := sign(signer, func(a x509.SignatureAlgorithm) ([]byte, error) {
		unsigned.SignatureAlgorithm = a
		return x509.CreateCertificate(rand.Reader, &unsigned, issuer, public, signer)
	})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// SignCRL returns a certificate revocation list (RFC 5280, section 5) of issuer, whose key signer is.
func SignCRL(signer crypto.Signer, list *x509.RevocationList, issuer *x509.Certificate) (*x509.RevocationList, error) {
	unsigned := *list
	der, err := sign(signer, func(a x509.SignatureAlgorithm) ([]byte, error) {
		unsigned.SignatureAlgorithm = a
		return x509.CreateRevocationList(rand.Reader, &unsigned, issuer, signer)
	})
	if err != nil {
		return nil, err
	}
	signed, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	return signed, notSigned(signed.CheckSignatureFrom(issuer))
}

// Request returns a certificate request (PKCS #10, RFC 2986) for a leaf certificate that Notation accepts, in DER.
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

// rsaAlgorithms returns the signature algorithms of RSA keys with a hash, in the order in which they are tried.
func rsaAlgorithms(hash crypto.Hash) []x509.SignatureAlgorithm {
	switch hash {
	case crypto.SHA256:
		return []x509.SignatureAlgorithm{x509.SHA256WithRSA, x509.SHA256WithRSAPSS}
	case crypto.SHA384:
		return []x509.SignatureAlgorithm{x509.SHA384WithRSA, x509.SHA384WithRSAPSS}
	}
	return []x509.SignatureAlgorithm{x509.SHA512WithRSA, x509.SHA512WithRSAPSS}
}

// sign returns what create signs. With an RSA key it tries PKCS #1 v1.5 first, which every CA accepts, and then
// RSASSA-PSS, since the module may restrict the key to it.
func sign(signer crypto.Signer, create func(x509.SignatureAlgorithm) ([]byte, error)) ([]byte, error) {
	if _, isRSA := signer.Public().(*rsa.PublicKey); !isRSA {
		der, err := create(x509.UnknownSignatureAlgorithm) // crypto/x509 chooses it by the curve
		return der, notSigned(err)
	}
	spec, err := key.SpecOf(signer.Public())
	if err != nil {
		return nil, err
	}
	algorithms := rsaAlgorithms(spec.Hash)
	der, err := create(algorithms[0])
	if err == nil {
		return der, nil
	}
	if der, pssErr := create(algorithms[1]); pssErr == nil {
		return der, nil
	}
	return nil, notSigned(err)
}

// notSigned returns the failure for an error of crypto/x509, such as a signature that does not verify. The failure of a
// module is returned as it is.
func notSigned(err error) error {
	var known *failure.Error
	if err == nil || errors.As(err, &known) {
		return err
	}
	return failure.New(failure.Internal, "cannot sign the certificate: %w", err).
		WithHint("run it again; if it fails again, the module makes wrong signatures with this key")
}
