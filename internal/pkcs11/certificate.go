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
func (t *Token) Leaf(ctx context.Context) (leaf *x509.Certificate, err error) {
	if unnamed(t.settings.Key) {
		return nil, nil
	}
	if err := t.loginToSearch(ctx); err != nil {
		return nil, err
	}
	err = t.within(ctx, "looking for the certificate", func(context.Context) error {
		leaf, err = t.sole(t.settings.Key)
		return err
	})
	return leaf, err
}

func (t *Token) sole(uri config.URI) (*x509.Certificate, error) {
	found, err := t.certificates(t.selector(pkcs11.CKO_CERTIFICATE, uri), 2)
	if err != nil || len(found) != 1 {
		return nil, err
	}
	return found[0], nil
}

// Issuers returns the certificates on the token whose subject is the issuer of cert.
func (t *Token) Issuers(ctx context.Context, cert *x509.Certificate) (found []*x509.Certificate, err error) {
	if t.isNetHSM() { // they can only be with other keys, which would all be read
		return nil, nil
	}
	err = t.within(ctx, "looking for the issuer", func(context.Context) error {
		found, err = t.certificates([]*pkcs11.Attribute{
			pkcs11.NewAttribute(pkcs11.CKA_CLASS, pkcs11.CKO_CERTIFICATE),
			pkcs11.NewAttribute(pkcs11.CKA_SUBJECT, cert.RawIssuer),
		}, 8)
		return err
	})
	return found, err
}

// certificateLimit bounds the search through all certificates of a token.
const certificateLimit = 1024

// Certificates returns every certificate on the token, for when a certificate is not filed under its key's label or id.
// It reads them all, so it is the last thing to try; but a NetHSM has a key's certificate nowhere else.
func (t *Token) Certificates(ctx context.Context) (found []*x509.Certificate, err error) {
	if err := t.loginToSearch(ctx); err != nil {
		return nil, err
	}
	var which config.URI
	if t.isNetHSM() {
		which = t.settings.Key
	}
	err = t.within(ctx, "reading all certificates", func(context.Context) error {
		found, err = t.certificates(t.selector(pkcs11.CKO_CERTIFICATE, which), certificateLimit)
		return err
	})
	return found, err
}

// certificates returns the X.509 certificates that a template matches; what does not parse is left out.
func (t *Token) certificates(template []*pkcs11.Attribute, limit int) ([]*x509.Certificate, error) {
	objects, err := t.search(template, limit)
	if err != nil {
		return nil, t.failed(err, "can't search %s for certificates", t.name())
	}
	var found []*x509.Certificate
	for _, object := range objects {
		values, err := t.calls.attributes(t.sessions.first, object, pkcs11.CKA_VALUE)
		if err != nil {
			return nil, t.failed(err, "can't read a certificate on %s", t.name())
		}
		cert, err := x509.ParseCertificate(values[0])
		if err != nil {
			slog.Warn("a certificate on the token does not parse", "error", err)
			continue
		}
		found = append(found, cert)
	}
	return found, nil
}

// Import stores certificates on the token: the first, the key's own, under the key's label and id, the issuers under
// their subject and key identifier. What is there already is not stored twice. It returns how many were stored.
func (t *Token) Import(ctx context.Context, of keystore.Key, chain []*x509.Certificate) (stored int, err error) {
	k := of.(*Key) // keys of this store are its own
	if err := t.mayWrite("keep the chain in a file and name it in certificate-chain"); err != nil {
		return 0, err
	}
	there, err := t.Certificates(ctx)
	if err != nil {
		return 0, err
	}
	err = t.writing(ctx, "storing certificates", func(writer sessionHandle) error {
		for i, cert := range chain {
			if holds(there, cert) {
				continue
			}
			label, id := cert.Subject.String(), cert.SubjectKeyId
			if i == 0 {
				label, id = k.label, k.id
			}
			if err := t.calls.createObject(writer, certificateTemplate(cert, label, id)); err != nil {
				return t.failed(err, "can't store the certificate of %q on %s", cert.Subject, t.name())
			}
			stored++
		}
		return nil
	})
	return stored, err
}

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
