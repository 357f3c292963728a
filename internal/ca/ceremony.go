package ca

import (
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Transcript is the record of a ceremony, for its witnesses to sign and keep. Times are UTC.
type Transcript struct {
	File         string              `json:"file"`
	SHA256       string              `json:"sha256"` // of the file
	Started      time.Time           `json:"started"`
	Ended        *time.Time          `json:"ended"` // null when the ceremony failed
	Keys         []KeyRecord         `json:"keys"`
	Certificates []CertificateRecord `json:"certificates"`
	Lists        []ListRecord        `json:"revocationLists"`
}

// KeyRecord is a key that was generated or used.
type KeyRecord struct {
	Name        string    `json:"name"`
	Made        bool      `json:"made"` // in this ceremony
	Time        time.Time `json:"time"`
	URI         string    `json:"uri"`
	Spec        string    `json:"spec"`
	Module      string    `json:"module"`
	Token       string    `json:"token"`       // with its serial number, manufacturer and model
	Fingerprint string    `json:"fingerprint"` // SHA-256 of the SubjectPublicKeyInfo, in hex
	PublicKey   string    `json:"publicKey"`   // PEM
}

// CertificateRecord is a certificate that was issued.
type CertificateRecord struct {
	File      string    `json:"file"`
	Time      time.Time `json:"time"`
	Subject   string    `json:"subject"`
	Issuer    string    `json:"issuer"`
	Serial    string    `json:"serial"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	SHA256    string    `json:"sha256"`
	PublicKey string    `json:"publicKeyFingerprint"`
}

// ListRecord is a CRL that was signed.
type ListRecord struct {
	File       string    `json:"file"`
	Time       time.Time `json:"time"`
	Number     string    `json:"number"`
	ThisUpdate time.Time `json:"thisUpdate"`
	NextUpdate time.Time `json:"nextUpdate"`
	Revoked    int       `json:"revoked"`
	SHA256     string    `json:"sha256"`
}

const transcriptFile = "transcript.json"

// ceremony is a plan while it is performed.
type ceremony struct {
	*Plan
	folder, out string
	report      func(string)
	keys        map[string]string // references of the keys generated here, by name
	given       map[string]map[string]string
	serials     map[string]string // of the leaves issued here, by name
	record      Transcript
}

// Perform generates the keys of the plan, makes its CAs and certificates, and writes certificates, CRLs and the
// transcript into the folder out. Before the first step it rehearses the plan, logs in to every token, and verifies
// that every label is available. report is called with each step.
func (p *Plan) Perform(ctx context.Context, folder, out string, report func(string)) error {
	if _, err := p.Rehearse(folder); err != nil {
		return err
	}
	unlock, err := state.Lock(ctx, out)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(filepath.Join(out, transcriptFile)); !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.Conflict, "the folder %s has the transcript of another ceremony", out).
			WithHint("name another folder with --out")
	}
	c := &ceremony{
		Plan: p, folder: folder, out: out, report: report, keys: map[string]string{}, given: map[string]map[string]string{},
		serials: map[string]string{},
		record: Transcript{
			File: filepath.Base(p.path), SHA256: p.digest, Started: now(),
			Keys: []KeyRecord{}, Certificates: []CertificateRecord{}, Lists: []ListRecord{},
		},
	}
	for _, k := range p.Keys {
		if err := c.checkAvailable(ctx, k); err != nil {
			return p.at("key", k.Name, err)
		}
	}
	if err := p.checkExisting(ctx, folder); err != nil {
		return err
	}
	return c.perform(ctx)
}

// checkExisting verifies that every key the plan uses but does not generate can be opened, and the keys of its issuers.
func (p *Plan) checkExisting(ctx context.Context, folder string) error {
	made := map[string]bool{} // keys and CAs that the ceremony makes
	for _, k := range p.Keys {
		made["key "+k.Name] = true
	}
	checkKey := func(reference string, check func(crypto.PublicKey) error) error {
		if made["key "+reference] {
			return nil
		}
		s, err := p.keystore.Resolve(reference, nil, p.origin())
		if err != nil {
			return err
		}
		return s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error { return check(k.Public()) })
	}
	anyKey := func(crypto.PublicKey) error { return nil }
	checkIssuer := func(name string) error {
		if made["ca "+name] {
			return nil
		}
		a, err := Open(p.keystore, folder, name)
		if err != nil {
			return err
		}
		return a.withKey(ctx, nil, func(crypto.Signer) error { return nil })
	}
	if p.Root != nil {
		if err := checkKey(p.Root.Key, anyKey); err != nil {
			return p.at("root", p.Root.Name, err)
		}
		made["ca "+p.Root.Name] = true
	}
	for _, c := range p.Intermediates {
		if err := cmp.Or(checkKey(c.Key, anyKey), checkIssuer(c.Parent)); err != nil {
			return p.at("intermediate", c.Name, err)
		}
		made["ca "+c.Name] = true
	}
	for _, l := range p.Leaves {
		available := func(public crypto.PublicKey) error {
			if made["ca "+l.CA] {
				return nil
			}
			return checkLeafSubject(p.keystore, folder, l, public)
		}
		if err := cmp.Or(checkKey(l.Key, available), checkIssuer(l.CA)); err != nil {
			return p.at("leaf", l.Name, err)
		}
	}
	for _, r := range p.CRLs {
		if err := checkIssuer(r.CA); err != nil {
			return p.at("crl", r.CA, err)
		}
	}
	return nil
}

// checkLeafSubject fails when a leaf has the subject of another key's certificate.
func checkLeafSubject(ks *keystore.Keystore, folder string, l LeafPlan, public crypto.PublicKey) error {
	a, err := Open(ks, folder, l.CA)
	if err != nil {
		return err
	}
	template, err := certs.LeafTemplate(l.Terms, a.Certificate())
	if err != nil {
		return err
	}
	ledger, err := a.read()
	if err != nil {
		return err
	}
	return a.checkSubject(ledger, template, public, AllowSubjectOf(l.AllowSubjectOf))
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

// checkAvailable verifies that a key can be generated: the token can be opened, the PIN is right, and no key has the
// label.
func (c *ceremony) checkAvailable(ctx context.Context, k KeyPlan) error {
	s, err := c.keystore.Resolve("", k.settings(), c.origin())
	if err != nil {
		return err
	}
	store, err := s.Open(ctx)
	if err != nil {
		return err
	}
	defer store.Close()
	existing, err := store.Keys(ctx)
	if err != nil {
		return err
	}
	for _, other := range existing {
		info, err := other.Info(ctx)
		if err != nil {
			return err
		}
		if info.Label == k.Label {
			return failure.New(failure.Conflict, "token %q already has a key with the label %q", k.Token, k.Label).
				WithHint("choose another label, or remove the key from keys and refer to " + info.URI)
		}
	}
	return nil
}

func (c *ceremony) perform(ctx context.Context) error {
	for _, k := range c.Keys {
		if err := c.makeKey(ctx, k); err != nil {
			return c.at("key", k.Name, err)
		}
	}
	var authorities []AuthorityPlan
	if c.Root != nil {
		authorities = append(authorities, *c.Root)
	}
	for _, plan := range append(authorities, c.Intermediates...) {
		if err := c.makeAuthority(ctx, plan); err != nil {
			return c.at("CA", plan.Name, err)
		}
	}
	for _, plan := range c.Leaves {
		if err := c.issue(ctx, plan); err != nil {
			return c.at("leaf", plan.Name, err)
		}
	}
	for _, plan := range c.CRLs {
		if err := c.sign(ctx, plan); err != nil {
			return c.at("crl", plan.CA, err)
		}
	}
	ended := now()
	c.record.Ended = &ended
	return c.save()
}

// save writes the transcript so far, so that a ceremony that fails leaves a record of its steps.
func (c *ceremony) save() error {
	data, err := json.MarshalIndent(c.record, "", "  ")
	if err != nil {
		return err
	}
	return state.Write(filepath.Join(c.out, transcriptFile), append(data, '\n'), 0o644)
}

func (c *ceremony) makeKey(ctx context.Context, k KeyPlan) error {
	spec, err := key.ParseSpec(k.Spec)
	if err != nil {
		return err
	}
	s, err := c.keystore.Resolve("", k.settings(), c.origin())
	if err != nil {
		return err
	}
	info, err := s.Generate(ctx, key.Request{Spec: spec, Usage: key.Sign, Label: k.Label})
	if err != nil {
		return err
	}
	c.keys[k.Name], c.given[k.Name] = info.URI, k.settings()
	c.report("generated the key " + info.URI)
	return c.recordKey(ctx, k.Name, true, info.URI, s, info.Public)
}

func (c *ceremony) recordKey(ctx context.Context, name string, made bool, uri string, s *keystore.Reference,
	public crypto.PublicKey) error {
	spec, err := key.SpecOf(public)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return err
	}
	fingerprint, err := certs.KeyFingerprint(public)
	if err != nil {
		return err
	}
	token, err := tokenOf(ctx, uri, s)
	if err != nil {
		return err
	}
	c.record.Keys = append(c.record.Keys, KeyRecord{
		Name: name, Made: made, Time: now(), URI: uri, Spec: string(spec.Name), Module: s.ModulePath, Token: token,
		Fingerprint: fingerprint,
		PublicKey:   string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
	})
	return c.save()
}

// tokenOf returns the full URI of the token that a key is on, or the URI with its label when several have that label.
func tokenOf(ctx context.Context, uri string, s *keystore.Reference) (string, error) {
	named, err := config.ParseURI(uri)
	if err != nil {
		return "", err
	}
	tokens, err := s.Tokens(ctx)
	if err != nil {
		return "", err
	}
	found := config.URI{Token: named.Token}.String()
	for _, t := range tokens {
		if t.Label == named.Token && (s.Key.Serial == "" || s.Key.Serial == t.Serial) {
			found = t.URI
		}
	}
	return found, nil
}

// key returns the reference and the settings of a key of the plan, and records a key that existed before the ceremony.
func (c *ceremony) key(ctx context.Context, reference string) (string, map[string]string, error) {
	if uri, made := c.keys[reference]; made {
		return uri, c.given[reference], nil
	}
	s, err := c.keystore.Resolve(reference, nil, c.origin())
	if err != nil {
		return "", nil, err
	}
	return reference, nil, s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error {
		info, err := k.Info(ctx)
		if err != nil {
			return err
		}
		return c.recordKey(ctx, reference, false, info.URI, s, k.Public())
	})
}

func (c *ceremony) makeAuthority(ctx context.Context, plan AuthorityPlan) error {
	reference, given, err := c.key(ctx, plan.Key)
	if err != nil {
		return err
	}
	a, err := Init(ctx, c.keystore, c.folder, plan.Name, reference, given, c.origin(), plan.Parent, plan.Terms)
	if err != nil {
		return err
	}
	return c.certificate(plan.Name, a.Certificate(), a.Chain())
}

func (c *ceremony) issue(ctx context.Context, plan LeafPlan) error {
	reference, given, err := c.key(ctx, plan.Key)
	if err != nil {
		return err
	}
	a, err := Open(c.keystore, c.folder, plan.CA)
	if err != nil {
		return err
	}
	s, err := c.keystore.Resolve(reference, given, c.origin())
	if err != nil {
		return err
	}
	allowed := plan.AllowSubjectOf
	if serial, made := c.serials[allowed]; made {
		allowed = serial
	}
	result, err := a.IssueKey(ctx, s, plan.Terms, AllowSubjectOf(allowed))
	if result == nil {
		return err
	}
	c.serials[plan.Name] = certs.Serial(result.Leaf)
	return errors.Join(c.certificate(plan.Name, result.Leaf, result.Chain), err)
}

func (c *ceremony) certificate(name string, cert *x509.Certificate, chain []byte) error {
	file := name + ".pem"
	if err := state.Write(filepath.Join(c.out, file), chain, 0o644); err != nil {
		return err
	}
	fingerprint, err := certs.KeyFingerprint(cert.PublicKey)
	if err != nil {
		return err
	}
	c.record.Certificates = append(c.record.Certificates, CertificateRecord{
		File: file, Time: now(), Subject: cert.Subject.String(), Issuer: cert.Issuer.String(), Serial: certs.Serial(cert),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, SHA256: certs.Fingerprint(cert), PublicKey: fingerprint,
	})
	c.report(fmt.Sprintf("issued the certificate of %q: %s", cert.Subject, file))
	return c.save()
}

func (c *ceremony) sign(ctx context.Context, plan CRLPlan) error {
	a, err := Open(c.keystore, c.folder, plan.CA)
	if err != nil {
		return err
	}
	list, _, err := a.CRL(ctx, nil, plan.NextUpdate, "")
	if err != nil {
		return err
	}
	file := plan.CA + ".crl"
	if err := state.Write(filepath.Join(c.out, file), list.Raw, 0o644); err != nil {
		return err
	}
	sum := sha256.Sum256(list.Raw)
	c.record.Lists = append(c.record.Lists, ListRecord{
		File: file, Time: now(), Number: list.Number.String(), ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate,
		Revoked: len(list.RevokedCertificateEntries), SHA256: hex.EncodeToString(sum[:]),
	})
	c.report(fmt.Sprintf("signed the CRL of %s: %s", plan.CA, file))
	return c.save()
}
