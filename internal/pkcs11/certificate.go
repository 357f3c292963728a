package pkcs11

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/asn1"
	"log/slog"

	"github.com/miekg/pkcs11"

	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Leaf returns the certificate that has exactly the label and id of the key reference, or nil when there is none or
// more than one. It may still be the certificate of another key: labels and ids are free text.
func (t *Token) Leaf(ctx context.Context) (*x509.Certificate, error) {
	if unnamed(t.settings.Key) {
		return nil, nil
	}
	if err := t.loginToSearch(ctx); err != nil {
		return nil, err
	}
	return inSession(ctx, t, "looking for the certificate", func(_ context.Context, s *session) (
		*x509.Certificate, error) {
		return s.sole(t.settings.Key)
	})
}

// sole returns the only certificate that a reference names, or nil.
func (s *session) sole(uri config.URI) (*x509.Certificate, error) {
	found, err := s.certificates(s.selector(pkcs11.CKO_CERTIFICATE, uri), 2)
	if err != nil || len(found) != 1 {
		return nil, err
	}
	return found[0], nil
}

// Issuers returns the certificates on the token whose subject is the issuer of cert.
func (t *Token) Issuers(ctx context.Context, cert *x509.Certificate) ([]*x509.Certificate, error) {
	if t.isNetHSM() { // they can only be with other keys, which would all be read
		return nil, nil
	}
	return inSession(ctx, t, "looking for the issuer", func(_ context.Context, s *session) ([]*x509.Certificate, error) {
		return s.certificates([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE),
			pkcs11.NewAttribute(pkcs11.CKA_SUBJECT, cert.RawIssuer),
		}, 8)
	})
}

// Certificates returns every certificate on the token, for when a certificate is not filed under its key's label or id.
// It reads them all, so it is the last thing to try; but a NetHSM has a key's certificate nowhere else.
func (t *Token) Certificates(ctx context.Context) ([]*x509.Certificate, error) {
	if err := t.loginToSearch(ctx); err != nil {
		return nil, err
	}
	var which config.URI
	if t.isNetHSM() {
		which = t.settings.Key
	}
	return inSessionSteps(ctx, t, "listing certificates", func(ctx context.Context, s *session) ([]*x509.Certificate,
		error) {
		var found []*x509.Certificate
		err := s.each(ctx, "certificates", t.selector(pkcs11.CKO_CERTIFICATE, which), []uint{pkcs11.CKA_VALUE},
			func(_ objectHandle, values [][]byte) { found = appendCertificate(found, values[0]) })
		return found, err
	})
}

// certificates returns the X.509 certificates that a template matches; what does not parse is left out.
func (s *session) certificates(template []*pkcs11.Attribute, limit int) ([]*x509.Certificate, error) {
	objects, err := s.search(template, limit)
	if err != nil {
		return nil, s.failed(err, "cannot search %s for certificates", s.name())
	}
	var found []*x509.Certificate
	for _, object := range objects {
		values, err := s.calls.attributes(s.handle, object, pkcs11.CKA_VALUE)
		if err != nil {
			return nil, s.failed(err, "cannot read a certificate on %s", s.name())
		}
		found = appendCertificate(found, values[0])
	}
	return found, nil
}

// appendCertificate appends a DER certificate, unless it does not parse.
func appendCertificate(to []*x509.Certificate, der []byte) []*x509.Certificate {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		slog.Warn("cannot parse a certificate on the token", "error", err)
		return to
	}
	return append(to, cert)
}

// Import stores certificates on the token: the first, the key's own, under the key's label and id, the issuers under
// their subject and key identifier. What is there already is not stored twice. It returns how many were stored.
func (t *Token) Import(ctx context.Context, of keystore.Key, chain []*x509.Certificate) (int, error) {
	k := of.(*Key) // keys of this store are its own
	if err := t.checkWritable("keep the chain in a file and name it in certificate-chain"); err != nil {
		return 0, err
	}
	existing, err := t.Certificates(ctx)
	if err != nil {
		return 0, err
	}
	return writing(ctx, t, "storing certificates", func(s *session) (stored int, err error) {
		for i, cert := range chain {
			if holds(existing, cert) {
				continue
			}
			label, id := cert.Subject.String(), cert.SubjectKeyId
			if i == 0 {
				at := k.place.Load()
				label, id = at.label, at.id
			}
			if err := t.calls.createObject(s.handle, certificateTemplate(cert, label, id)); err != nil {
				return stored, t.failed(err, "cannot store the certificate of %q on %s", cert.Subject, t.name())
			}
			stored++
		}
		return stored, nil
	})
}

// holds reports whether a certificate is among others.
func holds(certs []*x509.Certificate, cert *x509.Certificate) bool {
	for _, c := range certs {
		if bytes.Equal(c.Raw, cert.Raw) {
			return true
		}
	}
	return false
}

func certificateTemplate(cert *x509.Certificate, label string, id []byte) []*pkcs11.Attribute {
	serial, _ := asn1.Marshal(cert.SerialNumber) // an integer always marshals
	return []*pkcs11.Attribute{
		pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE),
		pkcs11.NewAttribute(pkcs11.CKA_CERTIFICATE_TYPE, pkcs11.CKC_X_509),
		pkcs11.NewAttribute(pkcs11.CKA_TOKEN, true),
		pkcs11.NewAttribute(pkcs11.CKA_PRIVATE, false),
		pkcs11.NewAttribute(pkcs11.CKA_LABEL, label),
		pkcs11.NewAttribute(pkcs11.CKA_ID, id),
		pkcs11.NewAttribute(pkcs11.CKA_SUBJECT, cert.RawSubject),
		pkcs11.NewAttribute(pkcs11.CKA_ISSUER, cert.RawIssuer),
		pkcs11.NewAttribute(pkcs11.CKA_SERIAL_NUMBER, serial),
		pkcs11.NewAttribute(pkcs11.CKA_VALUE, cert.Raw),
	}
}
