package trust

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Certificate identifies a signer: a certificate for the trust store, and the subject that limits it.
type Certificate struct {
	trusted *x509.Certificate
	kind    Kind
	subject string // "" is any subject
}

// FromFile reads the certificate of a signer from a PEM file: a self-signed one; one issued by a CA, with its issuers
// in the same file; or a CA's, for every signer with a certificate of this CA whose subject has the attributes of
// subject.
func FromFile(path, subject string) (*Certificate, error) {
	file, err := certs.ReadFile(path)
	if err != nil {
		return nil, err
	}
	switch leaves := certs.Leaves(file); {
	case len(leaves) > 1:
		return nil, failure.New(failure.Invalid, "%s has the certificates of %d signers", path, len(leaves)).
			WithHint("name a file with one certificate and its issuers")
	case len(leaves) == 0:
		return fromCAs(path, file, subject)
	case subject != "":
		return nil, failure.New(failure.Invalid,
			"a --subject limits a CA, but %s holds the certificate of one signer, %q", path, leaves[0].Subject).
			WithHint("remove --subject; or name the CA's certificate, to trust several signers under it")
	default:
		return fromLeaf(leaves[0], file,
			"add the certificates of its issuers, up to the self-signed root, to the PEM file")
	}
}

// FromKey reads the certificate of a signer beside a key, from the token or the certificate-chain setting.
func FromKey(ctx context.Context, s *keystore.Reference) (*Certificate, error) {
	var known []*x509.Certificate
	if s.CertificateChain != "" {
		file, err := certs.ReadFile(s.CertificateChain)
		if err != nil {
			return nil, err
		}
		known = file
	}
	store, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	public, err := store.Public(ctx)
	if err != nil {
		return nil, err
	}
	stored, err := store.Certificates(ctx)
	if err != nil {
		return nil, err
	}
	known = append(known, stored...)
	leaf := certs.LeafOf(public, known, time.Now())
	if leaf == nil {
		return nil, failure.New(failure.NotFound, "the key %s has no certificate", s.Key).
			WithHint("make one with 'notation-hsm cert self-sign' or 'cert csr', and store it with 'cert import'")
	}
	if leaf.IsCA {
		return nil, failure.New(failure.Invalid, "the key %s belongs to a CA", s.Key).
			WithHint("name the CA with --ca or --cert")
	}
	return fromLeaf(leaf, known,
		"store the certificates of its issuers, up to the self-signed root, with 'notation-hsm cert import'")
}

// FromChain returns the certificate of a signer from the chain that it signs with, leaf first.
func FromChain(chain []*x509.Certificate) (*Certificate, error) {
	return fromLeaf(chain[0], chain[1:], "add the certificates of its issuers, up to the self-signed root")
}

// fromLeaf trusts one signing certificate: itself if it is self-signed, else its subject under the root. The
// intermediates and the certificate may change then, as long as the root and the subject stay the same.
func fromLeaf(leaf *x509.Certificate, known []*x509.Certificate, missing string) (*Certificate, error) {
	chain, err := certs.Chain(leaf, known, nil, time.Now())
	if err != nil {
		return nil, failure.New(failure.Invalid, "%w", err).WithHint(missing)
	}
	if err := certs.Check(chain, time.Now()); err != nil {
		return nil, err
	}
	c := &Certificate{trusted: chain[len(chain)-1], kind: CA, subject: leaf.Subject.String()}
	_, err = readIdentity(c.subject)
	if len(chain) == 1 {
		c.kind = SelfSigned
		if err != nil { // the certificate alone identifies the signer
			c.subject = ""
		}
		return c, nil
	}
	if lacks := certs.LacksIdentity(leaf.Subject); len(lacks) > 0 {
		return nil, failure.New(failure.Invalid,
			"Notation cannot distinguish %q from others under its CA: the subject has no %s", leaf.Subject,
			strings.Join(lacks, ", ")).
			WithHint("issue the certificate again with C, ST and O in its subject, as in " +
				"\"CN=release,O=Example,C=CH,ST=Zurich\"")
	}
	return c, err
}

// fromCAs trusts one CA of a file: the lowest of the chain, which issued none of the others.
func fromCAs(path string, list []*x509.Certificate, subject string) (*Certificate, error) {
	var last []*x509.Certificate
	for _, cert := range list {
		issuedOther := false
		for _, other := range list {
			issuedOther = issuedOther || (!other.Equal(cert) && other.CheckSignatureFrom(cert) == nil)
		}
		if !issuedOther {
			last = append(last, cert)
		}
	}
	if len(last) != 1 {
		return nil, failure.New(failure.Invalid,
			"%d CA certificates in %s are not one chain", len(list), path).
			WithHint("name a file with one CA and its issuers")
	}
	return FromCA(last[0], subject)
}

// FromCA trusts every signer with a certificate of a CA whose subject has the attributes of subject; any if it is
// empty.
func FromCA(cert *x509.Certificate, subject string) (*Certificate, error) {
	switch {
	case time.Now().After(cert.NotAfter):
		return nil, failure.New(failure.Invalid, "the certificate of the CA %q expired on %s",
			cert.Subject, cert.NotAfter.UTC().Format("2006-01-02")).
			WithHint("renew the certificate")
	case cert.KeyUsage&x509.KeyUsageCertSign == 0:
		return nil, failure.New(failure.Invalid, "the CA %q must not issue certificates", cert.Subject).
			WithHint("use a CA with key usage keyCertSign")
	}
	_, err := readIdentity(subject)
	return &Certificate{trusted: cert, kind: CA, subject: subject}, err
}

// kindOf returns the kind of a certificate. Notation accepts no other kinds in a trust store.
func kindOf(cert *x509.Certificate) (Kind, error) {
	switch {
	case cert.IsCA:
		return CA, nil
	case bytes.Equal(cert.RawSubject, cert.RawIssuer) &&
		cert.CheckSignature(cert.SignatureAlgorithm, cert.RawTBSCertificate, cert.Signature) == nil:
		return SelfSigned, nil
	}
	return "", failure.New(failure.Invalid, "the certificate of %q is neither a CA's nor self-signed", cert.Subject).
		WithHint("remove the signer and add it again with its complete chain")
}

func fingerprint(cert *x509.Certificate) string {
	return fmt.Sprintf("sha256:%x", sha256.Sum256(cert.Raw))
}
