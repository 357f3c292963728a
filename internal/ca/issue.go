package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Issued is a signer's new certificate.
type Issued struct {
	Chain []byte   // PEM: leaf, intermediates, root
	Lacks []string // attributes that Notation's trusted identities need and the subject does not have
	Leaf  *x509.Certificate
}

func issued(chain []*x509.Certificate) *Issued {
	return &Issued{Chain: certs.Encode(chain), Lacks: certs.LacksIdentity(chain[0].Subject), Leaf: chain[0]}
}

// IssueRequest issues a signer's certificate for the certificate request (PKCS #10) in a PEM file. It takes the public
// key from the request and, unless the terms have one, the subject; everything else in the request is ignored. given
// are settings of the CA's key. agree sees the certificate before it is signed, and its error ends the issuance.
func (a *Authority) IssueRequest(ctx context.Context, path string, given map[string]string, terms Terms, allow Allow,
	agree func(Part) error) (*Issued, error) {
	request, err := readRequest(path)
	if err != nil {
		return nil, err
	}
	template, err := certs.LeafTemplate(terms, a.Certificate())
	if err != nil {
		return nil, err
	}
	if terms.Subject == "" {
		if err := requestedSubject(request, path); err != nil {
			return nil, err
		}
		template.Subject, template.RawSubject = request.Subject, request.RawSubject
	}
	l, err := a.read()
	if err != nil {
		return nil, err
	}
	if err := a.checkCertifiable(l, template, request.PublicKey, allow); err != nil {
		return nil, err
	}
	shown, err := a.proposal(l, request, template)
	if err != nil {
		return nil, err
	}
	if err := agree(shown); err != nil {
		return nil, err
	}
	var chain []*x509.Certificate
	err = a.change(ctx, func(l *ledger) error {
		chain, err = a.certify(ctx, l, given, template, request.PublicKey, allow)
		return err
	})
	if err != nil {
		return nil, err
	}
	return issued(chain), nil
}

// IssueKey issues a signer's certificate for a key in a module, and stores the chain beside the key. When only storing
// the chain fails, it returns the certificate and the failure.
func (a *Authority) IssueKey(ctx context.Context, s *keystore.Reference, terms Terms, allow Allow) (result *Issued,
	err error) {
	if terms.Subject == "" {
		return nil, failure.New(failure.Invalid, "a certificate needs a --subject").
			WithHint(`as in: --subject "CN=release,O=Example,C=CH,ST=Zurich"`)
	}
	template, err := certs.LeafTemplate(terms, a.Certificate())
	if err != nil {
		return nil, err
	}
	chain, err := a.certifyKey(ctx, s, template, allow,
		func(store keystore.Store, k keystore.Key, chain []*x509.Certificate) error {
			_, err := store.Import(ctx, k, chain)
			if err == nil {
				return nil
			}
			f := *failure.From(err)
			f.What, f.Err = "the certificate was issued but not stored on the token: "+f.What, err
			f.Hint = "keep the chain that was printed, and name its file in certificate-chain, or store it with: " +
				"notation-hsm cert import"
			return &f
		})
	if chain == nil {
		return nil, err
	}
	return issued(chain), err
}

// certifyKey issues a certificate for a key in a module and calls then, if set, while the key is open. The key signs a
// request first, so a key that cannot sign gets no certificate.
func (a *Authority) certifyKey(ctx context.Context, s *keystore.Reference, template *x509.Certificate, allow Allow,
	then func(keystore.Store, keystore.Key, []*x509.Certificate) error) (chain []*x509.Certificate, err error) {
	err = a.change(ctx, func(l *ledger) error {
		return s.WithKey(ctx, func(store keystore.Store, k keystore.Key) error {
			if _, err := certs.Request(keystore.Signer(ctx, k), template.Subject); err != nil {
				return err
			}
			if chain, err = a.certify(ctx, l, nil, template, k.Public(), allow); err != nil || then == nil {
				return err
			}
			return then(store, k, chain)
		})
	})
	return chain, err
}

// certify issues a certificate and returns it with its chain. The CA is locked.
func (a *Authority) certify(ctx context.Context, l *ledger, given map[string]string, template *x509.Certificate,
	public crypto.PublicKey, allow Allow) (chain []*x509.Certificate, err error) {
	if err := a.checkCertifiable(l, template, public, allow); err != nil {
		return nil, err
	}
	err = a.withKey(ctx, given, func(k crypto.Signer) error {
		chain, err = a.issue(k, l, template, public)
		return err
	})
	return chain, err
}

// checkCertifiable fails when the CA must not certify a key, or not with this subject.
func (a *Authority) checkCertifiable(l *ledger, template *x509.Certificate, public crypto.PublicKey,
	allow Allow,
) error {
	if _, err := key.SpecOf(public); err != nil {
		return err
	}
	if err := a.notRevoked(); err != nil {
		return err
	}
	for _, ca := range a.chain {
		if certs.SameKey(ca.PublicKey, public) {
			return failure.New(failure.Invalid, "the key belongs to the CA %q itself", ca.Subject).
				WithHint("generate another key with 'notation-hsm key generate'")
		}
	}
	if template.IsCA { // a CA may have the subject of the CA that it replaces
		return nil
	}
	return a.checkSubject(l, template, public, allow)
}

// issue signs a certificate and records it in the ledger before it returns it.
func (a *Authority) issue(signer crypto.Signer, l *ledger, template *x509.Certificate,
	public crypto.PublicKey) ([]*x509.Certificate, error) {
	made, err := certs.Sign(signer, template, a.Certificate(), public)
	if err != nil {
		return nil, err
	}
	chain := append([]*x509.Certificate{made}, a.chain...)
	if !made.IsCA {
		if err := certs.Check(chain, time.Now()); err != nil {
			return nil, err
		}
	}
	if err := a.record(signer, l, record{Event: certified, Certificate: made.Raw, Time: now()}); err != nil {
		return nil, err
	}
	return chain, nil
}

// notRevoked fails with Denied when the CA or one of its issuers was revoked, as far as the issuers' folders are here:
// verifiers would refuse what it issues.
func (a *Authority) notRevoked() error {
	folder := filepath.Dir(a.dir)
	ca := a
	for range maxDepth {
		if _, err := os.Stat(filepath.Join(folder, ca.Parent, description)); ca.Parent == "" ||
			errors.Is(err, fs.ErrNotExist) {
			return nil // a root, or a CA whose issuer has its folder elsewhere
		}
		parent, err := Open(a.keystore, folder, ca.Parent)
		if err != nil {
			return err
		}
		entries, err := parent.Entries()
		if err != nil {
			return err
		}
		for _, e := range entries {
			if e.Serial == certs.Serial(ca.Certificate()) && e.Revoked != nil {
				return failure.New(failure.Denied,
					"the CA %q was revoked by %q on %s (%s)", ca.Name, parent.Name, e.Revoked.Format("2006-01-02"), e.Reason).
					WithHint("make another CA: notation-hsm ca init --parent " + parent.Name)
			}
		}
		ca = parent
	}
	return nil
}

const maxDepth = 10 // CAs from a CA to its root
