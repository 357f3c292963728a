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
	Lacks []string // what the subject lacks for Notation's trusted identities
	Leaf  *x509.Certificate
}

func issued(chain []*x509.Certificate) *Issued {
	return &Issued{Chain: certs.Encode(chain), Lacks: certs.LacksIdentity(chain[0].Subject), Leaf: chain[0]}
}

// IssueRequest issues a signer's certificate for the request in a PEM file. The key comes from the request and, unless
// the terms have one, the subject; whatever else it asks for does not count. given are settings for the CA's key.
// Nothing is signed before agree has seen what the certificate will be.
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
	if err := a.mayCertify(l, template, request.PublicKey, allow); err != nil {
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

// IssueKey issues a signer's certificate for a key in a module, and stores the chain beside it. When only the storing
// fails, the result is returned with the failure.
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
			if _, err := store.Import(ctx, k, chain); err != nil {
				f := failure.From(err)
				return &failure.Error{
					Kind: f.Kind, CKR: f.CKR, Err: err, What: "the certificate was issued but not stored on the token: " + f.What,
					Hint: "keep the chain that was printed, and name its file in certificate-chain, or store it with: notation-hsm " +
						"cert import",
				}
			}
			return nil
		})
	if chain == nil {
		return nil, err
	}
	return issued(chain), err
}

// certifyKey issues a certificate for a key in a module. The key signs a request first: one that does not sign is found
// out before it has a certificate.
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
	if err := a.mayCertify(l, template, public, allow); err != nil {
		return nil, err
	}
	err = a.withKey(ctx, given, func(k crypto.Signer) error {
		chain, err = a.issue(k, l, template, public)
		return err
	})
	return chain, err
}

// mayCertify fails when the CA may not certify a key, or not with this subject.
func (a *Authority) mayCertify(l *ledger, template *x509.Certificate, public crypto.PublicKey, allow Allow) error {
	if _, err := key.SpecOf(public); err != nil {
		return err
	}
	if err := a.notRevoked(); err != nil {
		return err
	}
	for _, ca := range a.chain {
		if certs.SameKey(ca.PublicKey, public) {
			return failure.New(failure.Invalid, "the key is that of the CA %q itself", ca.Subject).
				WithHint("make another key with 'notation-hsm key generate'")
		}
	}
	if template.IsCA { // whose subject is its operator's, and may be that of a CA before it
		return nil
	}
	return a.checkSubject(l, template, public, allow)
}

// issue signs a certificate and writes it down: it is in the ledger before anyone hears of it.
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

// notRevoked refuses a CA that was revoked, or whose issuers were, as far as their folders are here: nobody would
// accept what it issues.
func (a *Authority) notRevoked() error {
	folder := filepath.Dir(a.dir)
	ca := a
	for range maxDepth {
		if _, err := os.Stat(filepath.Join(folder, ca.Parent, description)); ca.Parent == "" ||
			errors.Is(err, fs.ErrNotExist) {
			return nil // a root, or a CA whose issuer is kept elsewhere
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
					WithHint("have another CA made: notation-hsm ca init --parent " + parent.Name)
			}
		}
		ca = parent
	}
	return nil
}

const maxDepth = 10 // no CA stands further below its root
