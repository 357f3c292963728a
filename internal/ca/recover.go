package ca

import (
	"bufio"
	"cmp"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Recovery is a ledger that was rebuilt from the remaining files of a CA.
type Recovery struct {
	Entries []Entry
	Sources map[string]string // the source of a revocation, by serial
	Lists   []string          // a description of each CRL that was used
	Newest  time.Time         // when the newest of them was signed; zero when there was none
	Number  string            // the number that the next CRL follows
	Kept    string            // path that the old ledger is kept under; empty when there is none

	began record
}

// Recover makes a new ledger from the certificates in issued/, the last CRL, the CRL in the file published unless that
// is empty, and the readable part of the old ledger or of the files of an earlier version. Certificates and CRLs are
// signed by the CA's key. A revocation that is only in the old ledger is not proven, but it is kept: losing one is
// worse. Recover fails when there is no CRL at all, unless none was ever signed (never), and when the ledger is
// complete. agree sees the result before it is written.
func (a *Authority) Recover(ctx context.Context, given map[string]string, published string, never bool,
	agree func(*Recovery) error) error {
	return a.locked(ctx, func() error {
		r, l, err := a.rebuild(published, never)
		if err != nil {
			return err
		}
		if err := agree(r); err != nil {
			return err
		}
		return a.withKey(ctx, given, func(k crypto.Signer) error { return a.replace(k, l, r.Kept) })
	})
}

// rebuild returns the new ledger. It writes nothing.
func (a *Authority) rebuild(published string, never bool) (*Recovery, *ledger, error) {
	var lists []*x509.RevocationList
	r := &Recovery{Sources: map[string]string{}}
	for _, path := range []string{a.crlFile(), published} {
		list, err := readList(path, a.Certificate())
		if path == "" || (path != published && errors.Is(err, fs.ErrNotExist)) {
			continue
		}
		if err != nil {
			return nil, nil, failure.New(failure.Invalid, "cannot use the CRL %s: %w", path, err).
				WithHint("name a CRL of this CA in DER with --crl; move another file out of the CA's folder")
		}
		lists = append(lists, list)
		r.Lists = append(r.Lists, fmt.Sprintf("%s: number %s of %s, with %d revoked", path, list.Number,
			list.ThisUpdate.Format(time.RFC3339), len(list.RevokedCertificateEntries)))
	}
	if err := a.checkNeeded(lists, published); err != nil {
		return nil, nil, err
	}
	if len(lists) == 0 && !never {
		return nil, nil, failure.New(failure.Invalid,
			"the CA %q has no CRL to recover its revocations from", a.Name).
			WithHint("download the published CRL and name it with --crl FILE; if none was ever signed, add --no-crl")
	}
	if err := a.gather(r, lists); err != nil {
		return nil, nil, err
	}
	l := newLedger(a.Certificate())
	if err := l.add(r.records()...); err != nil {
		return nil, nil, failure.New(failure.Internal, "cannot rebuild the ledger of the CA %q: %w", a.Name, err)
	}
	r.Entries = l.entries
	return r, l, nil
}

// checkNeeded fails with Invalid when the ledger is complete, so that there is nothing to rebuild.
func (a *Authority) checkNeeded(lists []*x509.RevocationList, published string) error {
	l, err := a.read()
	if err != nil {
		return nil //nolint:nilerr // Recover mends it
	}
	for _, list := range lists {
		if err := l.covers(nil, list, ""); err != nil {
			return nil //nolint:nilerr // the folder is older than the CRL, which Recover mends as well
		}
	}
	files, err := a.issuedFiles()
	if err != nil {
		return err
	}
	for _, serial := range files {
		if l.entries[l.place[serial]].der == nil { // a lost certificate was restored
			return nil
		}
	}
	hint := "show it: notation-hsm ca show " + a.Name
	if published == "" {
		hint += "; if a newer CRL is published, name it with --crl FILE"
	}
	return failure.New(failure.Invalid, "the record of the CA %q is complete: there is nothing to recover", a.Name).
		WithHint(hint)
}

// replace signs the new ledger and writes it in place of the old one, which is kept under another name.
func (a *Authority) replace(signer crypto.Signer, l *ledger, kept string) error {
	if err := l.sign(signer); err != nil {
		return err
	}
	if kept != "" {
		if err := os.Link(a.path(ledgerFile), kept); err != nil {
			return failure.New(failure.Internal, "cannot keep the old ledger: %w", err).
				WithHint("check the folder's permissions")
		}
	}
	return a.commit(l)
}

// gather collects the certificates and revocations of the CA. The first source of a revocation counts: the date and
// reason of a CRL before those in the old ledger.
func (a *Authority) gather(r *Recovery, lists []*x509.RevocationList) error {
	found := map[string]*Entry{}
	certificate := func(cert *x509.Certificate) {
		if e := newEntry(cert, cert.NotBefore); found[e.Serial] == nil {
			found[e.Serial] = &e
		}
	}
	known := func(serial string, issued time.Time) { // a certificate can be revoked even if it is lost
		if found[serial] == nil {
			found[serial] = &Entry{Serial: serial, Issued: issued}
		}
	}
	revoked := func(serial string, at time.Time, reason Reason, source string) {
		known(serial, at)
		if e := found[serial]; e.Revoked == nil {
			at = at.UTC()
			e.Revoked, e.Reason, r.Sources[serial] = &at, orUnspecified(reason), source
		}
	}
	files, err := a.issuedFiles()
	if err != nil {
		return err
	}
	for _, serial := range files {
		issued, err := a.issuedRecord(serial)
		if err != nil {
			return err
		}
		cert, err := x509.ParseCertificate(issued.Certificate)
		if err != nil {
			return err
		}
		certificate(cert)
	}
	old, behind, kept, err := a.salvage()
	if err != nil {
		return err
	}
	for _, e := range old.entries {
		if cert, err := e.Certificate(); err == nil && cert.CheckSignatureFrom(a.Certificate()) == nil {
			certificate(cert)
		}
	}
	for _, r := range behind {
		if r.Event == certified && bound.DER(r.Certificate, certificateLimits) == nil {
			if cert, err := x509.ParseCertificate(r.Certificate); err == nil && cert.CheckSignatureFrom(a.Certificate()) == nil {
				certificate(cert)
			}
		}
	}
	number := greater(numberFloor(), old.list)
	slices.SortFunc(lists, func(x, y *x509.RevocationList) int { return x.Number.Cmp(y.Number) })
	for _, list := range lists {
		for _, e := range list.RevokedCertificateEntries {
			revoked(hex.EncodeToString(e.SerialNumber.Bytes()), e.RevocationTime, reasonOf(e.ReasonCode),
				"CRL "+list.Number.String())
		}
		number, r.Newest = greater(number, list.Number), list.ThisUpdate
	}
	for _, e := range old.entries {
		known(e.Serial, e.Issued)
		if e.Revoked != nil {
			revoked(e.Serial, *e.Revoked, e.Reason, "the old ledger")
		}
	}
	for _, r := range behind {
		if r.Event == invalidated && found[r.Serial] != nil { // else the ledger may be another CA's
			revoked(r.Serial, r.Time, r.Reason, "the old ledger, behind a damaged record")
		}
	}
	index, _ := a.index() // the entries before a mistake
	for _, e := range index {
		if !isSerial(e.Serial) {
			continue
		}
		known(e.Serial, e.Issued)
		if e.Revoked != nil {
			revoked(e.Serial, *e.Revoked, e.Reason, indexFile)
		}
	}
	r.Kept, r.Number = kept, number.String()
	r.began = record{Event: recovered, List: r.Number, Time: now()}
	for _, e := range found {
		r.Entries = append(r.Entries, *e)
	}
	return nil
}

// salvage returns the readable part of the old ledger and the path to keep it under. behind are the records after a
// wrong one: each may be unchanged, and a revocation among them must be kept.
func (a *Authority) salvage() (l *ledger, behind []record, kept string, err error) {
	unreadable := func(err error) error {
		return failure.New(failure.Internal, "cannot read the old ledger of the CA %q: %w", a.Name, err).
			WithHint("check the folder's permissions")
	}
	file, err := os.Open(a.path(ledgerFile))
	if errors.Is(err, fs.ErrNotExist) {
		return newLedger(a.Certificate()), nil, "", nil
	}
	if err != nil {
		return nil, nil, "", unreadable(err)
	}
	defer file.Close()
	l, _ = parseLedger(file, a.Certificate()) // the state before the mistake is returned
	if _, err := file.Seek(l.size, io.SeekStart); err != nil {
		return nil, nil, "", unreadable(err)
	}
	if behind, err = recordsIn(io.LimitReader(file, ledgerLimit)); err != nil {
		return nil, nil, "", unreadable(err)
	}
	for n := 1; ; n++ {
		kept = a.path(fmt.Sprintf("%s.old-%d", ledgerFile, n))
		if _, err := os.Lstat(kept); errors.Is(err, fs.ErrNotExist) {
			return l, behind, kept, nil
		}
	}
}

// recordsIn returns the records in a text, and skips other lines.
func recordsIn(from io.Reader) (records []record, err error) {
	lines := bufio.NewReaderSize(from, lineLimit)
	for {
		line, err := lines.ReadSlice('\n')
		var r signedRecord
		if json.Unmarshal(line, &r) == nil {
			records = append(records, r.Record)
		}
		switch {
		case errors.Is(err, io.EOF):
			return records, nil
		case err != nil && !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

func (r *Recovery) records() []record {
	slices.SortFunc(r.Entries, func(x, y Entry) int {
		return cmp.Or(x.Issued.Compare(y.Issued), cmp.Compare(x.Serial, y.Serial))
	})
	records := []record{r.began}
	for _, e := range r.Entries {
		issued := record{Event: certified, Certificate: e.der, Time: e.Issued}
		if e.der == nil {
			issued.Serial = e.Serial
		}
		records = append(records, issued)
	}
	for _, e := range r.Entries {
		if e.Revoked != nil {
			records = append(records, record{Event: invalidated, Serial: e.Serial, Reason: e.Reason, Time: *e.Revoked})
		}
	}
	return records
}

func reasonOf(code int) Reason {
	for reason, c := range reasonCodes {
		if c == code {
			return reason
		}
	}
	return "unspecified"
}

func greater(a, b *big.Int) *big.Int {
	if a.Cmp(b) < 0 {
		return b
	}
	return a
}

// Lost returns the serial numbers whose certificates were not found.
func (r *Recovery) Lost() (serials []string) {
	for _, e := range r.Entries {
		if _, err := e.Certificate(); err != nil {
			serials = append(serials, e.Serial)
		}
	}
	return serials
}
