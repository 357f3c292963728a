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

// Recovery is a ledger that was put together again from what is left of a CA.
type Recovery struct {
	Entries []Entry
	Sources map[string]string // where a revocation is known from, by serial
	Lists   []string          // the revocation lists that were taken in, each in words
	Newest  time.Time         // when the newest of them was signed; zero when there was none
	Number  string            // that the next lists count from
	Kept    string            // where what there is of the old ledger is kept; empty when there is nothing

	began record
}

// Recover makes a new ledger from the certificates in issued/, the last list, the list in the file published unless
// that is empty, and what can be read of the old ledger; or of the files of an earlier version. Certificates and lists
// prove themselves, since the CA's key signed them. Of a revocation that is only in the old ledger there is no proof,
// but it is taken in: to lose one is worse. It fails when there is no list at all, unless none was ever signed (never),
// and when nothing is wrong. Nothing is written before agree has seen it.
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

// rebuild makes the new ledger, and writes nothing.
func (a *Authority) rebuild(published string, never bool) (*Recovery, *ledger, error) {
	var lists []*x509.RevocationList
	r := &Recovery{Sources: map[string]string{}}
	for _, path := range []string{a.crlFile(), published} {
		list, err := readList(path, a.Certificate())
		if path == "" || (path != published && errors.Is(err, fs.ErrNotExist)) {
			continue
		}
		if err != nil {
			return nil, nil, failure.New(failure.Invalid, "can't use the revocation list %s: %w", path, err).
				WithHint("name a list that this CA has signed, in DER, with --crl; one that is no such list and stands in the CA's folder " +
					"has to be moved away")
		}
		lists = append(lists, list)
		r.Lists = append(r.Lists, fmt.Sprintf("%s: number %s of %s, with %d revoked", path, list.Number,
			list.ThisUpdate.Format(time.RFC3339), len(list.RevokedCertificateEntries)))
	}
	if err := a.needed(lists, published); err != nil {
		return nil, nil, err
	}
	if len(lists) == 0 && !never {
		return nil, nil, failure.New(failure.Invalid,
			"there is no revocation list of the CA %q to know from what it has revoked", a.Name).
			WithHint("fetch the list from where it is published, and name it with --crl FILE; if none was ever signed, " +
				"add --no-crl")
	}
	if err := a.gather(r, lists); err != nil {
		return nil, nil, err
	}
	l := newLedger(a.Certificate())
	if err := l.add(r.records()...); err != nil {
		return nil, nil, failure.New(failure.Internal, "the ledger of the CA %q can't be rebuilt: %w", a.Name, err)
	}
	r.Entries = l.entries
	return r, l, nil
}

// needed fails when the CA has all that the lists say, so that nothing has to be rebuilt.
func (a *Authority) needed(lists []*x509.RevocationList, published string) error {
	l, err := a.read()
	if err != nil {
		return nil //nolint:nilerr // that is what is mended here
	}
	for _, list := range lists {
		if err := l.covers(nil, list, ""); err != nil {
			return nil //nolint:nilerr // the folder is older than the list, which is mended, too
		}
	}
	files, err := a.issuedFiles()
	if err != nil {
		return err
	}
	for _, serial := range files {
		if l.entries[l.place[serial]].der == nil { // a lost certificate that was brought back
			return nil
		}
	}
	hint := "see it with: notation-hsm ca show " + a.Name
	if published == "" {
		hint += "; if a newer list is published, name it with --crl FILE"
	}
	return failure.New(failure.Invalid, "the record of the CA %q is whole: there is nothing to recover", a.Name).
		WithHint(hint)
}

// replace writes the new ledger in the place of the old, which is kept.
func (a *Authority) replace(signer crypto.Signer, l *ledger, kept string) error {
	if err := l.sign(signer); err != nil {
		return err
	}
	if kept != "" {
		if err := os.Link(a.path(ledgerFile), kept); err != nil {
			return failure.New(failure.Internal, "can't keep the old ledger: %w", err).WithHint("check the folder's permissions")
		}
	}
	return a.commit(l)
}

// gather finds what is left of the CA. What comes first counts: a list's date and reason before those in the old
// ledger.
func (a *Authority) gather(r *Recovery, lists []*x509.RevocationList) error {
	found := map[string]*Entry{}
	certificate := func(cert *x509.Certificate) {
		if e := newEntry(cert, cert.NotBefore); found[e.Serial] == nil {
			found[e.Serial] = &e
		}
	}
	known := func(serial string, issued time.Time) { // even without its certificate it can be revoked
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
				"list "+list.Number.String())
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
	index, _ := a.index() // what comes before a mistake
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

// salvage reads as much of the old ledger as can be read, and says where it is to be kept. behind are the records that
// follow one that is wrong, as far as they are records: each may be as it was written, and a revocation among them has
// to be kept.
func (a *Authority) salvage() (l *ledger, behind []record, kept string, err error) {
	unreadable := func(err error) error {
		return failure.New(failure.Internal, "can't read what is left of the ledger of the CA %q: %w", a.Name, err).
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
	l, _ = parseLedger(file, a.Certificate()) // what comes before the mistake is returned
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

// recordsIn returns the records in a text, and passes over what is none.
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

// Lost lists the serials whose certificates are in none of the places that Recover looks in.
func (r *Recovery) Lost() (serials []string) {
	for _, e := range r.Entries {
		if _, err := e.Certificate(); err != nil {
			serials = append(serials, e.Serial)
		}
	}
	return serials
}
