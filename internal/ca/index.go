package ca

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/big"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Earlier versions kept the certificates of a CA in index.json, which was rewritten for each certificate, and the
// number of its last CRL in crlnumber. Such a CA is read from both until the CA's key is used; then they become a
// ledger.

const (
	indexFile  = "index.json"
	numberFile = "crlnumber"
	indexLimit = 64 << 20 // bytes
)

// retired replaces the content of index.json, so that an earlier version fails instead of treating the CA as a new one.
const retired = `"the record of this CA is in ledger.jsonl, which needs a newer version of notation-hsm"` + "\n"

// ledgerVersion is the value of Authority.Ledger.
const ledgerVersion = 1

// readIndex returns the ledger of index.json and crlnumber. It writes nothing.
//
// Earlier versions wrote a certificate before the index. So one certificate in issued/ that is not in the index belongs
// to a command that was interrupted between the two, and is accepted. Two mean that the index is older: it fails with
// Invalid. So does one without any index: the index, and a revocation with it, may be lost.
func (a *Authority) readIndex(files []string, list *x509.RevocationList) (*ledger, error) {
	distrust := func(format string, args ...any) error {
		return failure.New(failure.Invalid,
			"cannot trust the record of the CA %q: %s: %w", a.Name, a.path(indexFile), fmt.Errorf(format, args...)).
			WithHint("restore the newest " + indexFile +
				" from a backup; or rebuild it: notation-hsm ca recover --ca " + a.Name)
	}
	entries, err := a.index()
	if err != nil {
		return nil, distrust("%w", err)
	}
	number, err := a.lastNumber()
	if err != nil {
		return nil, err
	}
	if number == nil { // no list was signed, or the number is lost
		if number = new(big.Int); len(entries) > 0 || len(files) > 0 || list != nil {
			number = numberFloor()
		}
	}
	if list != nil && list.Number.Cmp(number) > 0 {
		number = list.Number
	}
	known := map[string]bool{}
	for _, e := range entries {
		if !isSerial(e.Serial) { // before it becomes a path
			return nil, distrust("%.100q is not a serial number", e.Serial)
		}
		known[e.Serial] = true
	}
	strays := 0
	for _, serial := range files {
		if known[serial] {
			continue
		}
		if strays++; strays > 1 || len(entries) == 0 {
			return nil, distrust("it is missing, or older than issued/%s.pem, which it does not contain", serial)
		}
		entries = append(entries, Entry{Serial: serial})
	}
	l := newLedger(a.Certificate())
	records := []record{{Event: moved, List: number.String(), Time: time.Now()}}
	for _, e := range entries {
		r, err := a.issuedRecord(e.Serial)
		if err != nil {
			return nil, err
		}
		if !e.Issued.IsZero() {
			r.Time = e.Issued
		}
		records = append(records, r)
	}
	for _, e := range entries {
		if e.Revoked != nil {
			records = append(records, record{Event: invalidated, Serial: e.Serial, Time: *e.Revoked,
				Reason: orUnspecified(e.Reason)})
		}
	}
	if err := l.add(records...); err != nil {
		return nil, distrust("%w", err)
	}
	if err := l.covers(nil, list, "the CRL "+a.crlFile()); err != nil {
		return nil, distrust("%w", err)
	}
	return l, nil
}

// index reads index.json. A missing file is an empty index.
func (a *Authority) index() ([]Entry, error) {
	file, err := os.Open(a.path(indexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, indexLimit+1))
	if err != nil {
		return nil, err
	}
	if len(data) > indexLimit {
		return nil, fmt.Errorf("it has more than %d bytes", indexLimit)
	}
	return parseIndex(data)
}

// parseIndex returns the entries of an index. On failure it also returns the entries before the mistake.
func parseIndex(data []byte) (entries []Entry, err error) {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	begin, err := decoder.Token()
	if err != nil || begin == nil { // null is an empty one
		return nil, err
	}
	if begin != json.Delim('[') {
		return nil, errors.New("it is not a JSON array")
	}
	for decoder.More() {
		var e Entry
		if err := decoder.Decode(&e); err != nil {
			return entries, err
		}
		entries = append(entries, e)
	}
	_, err = decoder.Token() // the end of the list
	return entries, err
}

// lastNumber reads crlnumber. It returns nil when there is no such file.
func (a *Authority) lastNumber() (*big.Int, error) {
	data, err := bound.ReadFile(a.path(numberFile), lineLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot read the CRL number of the CA %q: %w", a.Name, err).
			WithHint("check the folder's permissions")
	}
	number, err := listNumber(strings.TrimSpace(string(data)))
	if err != nil {
		return nil, failure.New(failure.Invalid, "the file %s is damaged: %w", a.path(numberFile), err).
			WithHint("restore the file, or write the number of the last published CRL into it")
	}
	return number, nil
}

// numberFloor returns a number above those of all CRLs, for a CA whose last number is not known: the seconds since
// 1970. CRLs are numbered from 1, or from an earlier such number, and nobody signs one every second.
func numberFloor() *big.Int {
	number, _ := new(big.Int).SetString(strconv.FormatInt(time.Now().Unix(), 10), 10)
	return number
}

// issuedRecord returns the record of a certificate in issued/, with the time when it became valid. The record of a lost
// certificate has the serial number only.
func (a *Authority) issuedRecord(serial string) (record, error) {
	if !isSerial(serial) { // before it becomes a path
		return record{}, failure.New(failure.Invalid,
			"the CA %q has a certificate under the name %.100q, which is not a serial number", a.Name, serial).
			WithHint("move it elsewhere, or restore it")
	}
	path := a.path("issued", serial+".pem")
	found, err := certs.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return record{Event: certified, Serial: serial, Time: time.Now()}, nil
	}
	if err != nil {
		return record{}, err
	}
	if err := found[0].CheckSignatureFrom(a.Certificate()); err != nil || certs.Serial(found[0]) != serial {
		return record{}, failure.New(failure.Invalid,
			"the file %s is not the certificate %s of the CA %q", path, serial, a.Name).
			WithHint("move it elsewhere, or restore it")
	}
	return record{Event: certified, Certificate: found[0].Raw, Time: found[0].NotBefore}, nil
}

func orUnspecified(r Reason) Reason {
	if _, known := reasonCodes[r]; !known {
		return "unspecified"
	}
	return r
}

// retireIndex notes in ca.json that the CA has a ledger, which is an error to miss from then on, once the files that it
// was made from say so.
func (a *Authority) retireIndex() error {
	if a.Ledger == ledgerVersion {
		return nil
	}
	if _, err := os.Stat(a.path(indexFile)); err == nil {
		if err := a.write(indexFile, []byte(retired)); err != nil {
			return err
		}
	}
	if err := os.Remove(a.path(numberFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return failure.New(failure.Internal, "cannot remove %s: %w", a.path(numberFile), err).
			WithHint("check the folder's permissions")
	}
	a.Ledger, a.Moved = ledgerVersion, true
	return a.save()
}
