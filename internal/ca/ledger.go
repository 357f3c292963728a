package ca

import (
	"bufio"
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
)

// The ledger of a CA is the file ledger.jsonl: one line of JSON for each event, in order. A record has the SHA-256 of
// the line before it, the first one that of the CA's certificate, so no record can be changed, removed or moved without
// changing all that follow. Whenever the CA's key is used, it signs the last record, and with it all before. Only
// revocations can follow the last signature, since they are recorded even when the key cannot be used.

const (
	ledgerFile  = "ledger.jsonl"
	lineLimit   = 64 << 10  // bytes of one line; one with a certificate has about two kilobytes
	ledgerLimit = 256 << 20 // bytes of the whole ledger
)

// certificateLimits bound what is parsed as a certificate of a ledger.
var certificateLimits = bound.Limits{Bytes: 32 << 10, Depth: bound.Depth, Elements: 2000}

type event string

const (
	created     event = "created"   // the CA was made; the first record
	moved       event = "moved"     // the first record of a ledger made from the index.json of an earlier version
	recovered   event = "recovered" // the first record of a ledger made by Recover
	certified   event = "issued"
	invalidated event = "revoked"
	listed      event = "list" // a CRL was signed
)

// record is one event.
type record struct {
	Number int `json:"number"` // from 1
	// SHA-256 of the line before, in hex; in the first record, of the CA's certificate
	Previous    string    `json:"previous"`
	Time        time.Time `json:"time"` // UTC
	Event       event     `json:"event"`
	Certificate []byte    `json:"certificate,omitempty"` // issued: DER
	Serial      string    `json:"serial,omitempty"`      // revoked; issued, when the certificate is lost
	Reason      Reason    `json:"reason,omitempty"`      // revoked
	// list: the number of the CRL; moved and recovered: no CRL had a greater one
	List string `json:"list,omitempty"`
}

type signedRecord struct {
	Record    record `json:"record"`
	Signature []byte `json:"signature,omitempty"` // of headText
}

// encode returns the JSON of a record and its line in the file. It is the only encoding that parseLedger accepts.
func encode(r record, signature []byte) (body, line []byte, err error) {
	if body, err = json.Marshal(r); err != nil {
		return nil, nil, err
	}
	line, err = json.Marshal(signedRecord{r, signature})
	return body, append(line, '\n'), err
}

// headText returns the text that the CA's key signs for a record. It is not DER: see certs.SignText.
func headText(owner *x509.Certificate, body []byte) []byte {
	return fmt.Appendf(nil,
		"notation-hsm: record of a certificate authority's ledger, version 1\nCA certificate SHA-256: %s\nrecord "+
			"SHA-256: %s\n",
		certs.Fingerprint(owner), digest(body))
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// ledger is the state after all records.
type ledger struct {
	owner   *x509.Certificate
	entries []Entry
	place   map[string]int // of an entry, by serial
	began   event          // that of the first record
	number  int            // of the last record
	head    string         // SHA-256 of the last line, in hex
	list    *big.Int       // number of the last revocation list

	need      int    // number of the last record that must be signed, by its own signature or a later one
	signed    int    // number of the last record with a signature
	text      []byte // that it signs
	signature []byte

	size    int64  // of the lines in the file, in bytes
	pending []byte // lines to be written after them
	last    record // of the pending ones
	lastAt  int    // where its line begins
}

func newLedger(owner *x509.Certificate) *ledger {
	return &ledger{owner: owner, place: map[string]int{}, head: certs.Fingerprint(owner), list: new(big.Int)}
}

// parseLedger reads and verifies a ledger. On failure it also returns the state before the wrong record. It ignores a
// last line without a newline, which an interrupted write left behind.
func parseLedger(from io.Reader, owner *x509.Certificate) (*ledger, error) {
	l := newLedger(owner)
	lines := bufio.NewReaderSize(from, lineLimit)
	for {
		line, err := lines.ReadSlice('\n')
		if errors.Is(err, io.EOF) {
			return l, l.verify()
		}
		if err == nil && l.size+int64(len(line)) > ledgerLimit {
			err = fmt.Errorf("the ledger has more than %d bytes", ledgerLimit)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			err = fmt.Errorf("it has more than %d bytes", lineLimit)
		}
		if err == nil {
			err = l.readLine(line)
		}
		if err != nil {
			return l, fmt.Errorf("record %d: %w", l.number+1, err)
		}
		l.size += int64(len(line))
	}
}

// readLine reads the next record.
func (l *ledger) readLine(line []byte) error {
	var r signedRecord
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("it is not a record: %w", err)
	}
	r.Record.Time = r.Record.Time.UTC()
	body, canonical, err := encode(r.Record, r.Signature)
	if err != nil || !bytes.Equal(line, canonical) { // which refuses unknown and repeated names, among other things
		return errors.New("its encoding is not the canonical one")
	}
	if err := l.apply(r.Record); err != nil {
		return err
	}
	l.noteHead(body, canonical, r.Signature)
	return nil
}

func (l *ledger) noteHead(body, line, signature []byte) {
	l.head = digest(line[:len(line)-1])
	if len(signature) > 0 {
		l.signed, l.text, l.signature = l.number, headText(l.owner, body), signature
	}
}

// verify checks the last signature with the CA's certificate, and fails when a record that must be signed is not.
func (l *ledger) verify() error {
	if l.signed == 0 || l.signed < l.need {
		return errors.New("its last records are not signed by the CA's key")
	}
	if err := certs.CheckText(l.owner, l.text, l.signature); err != nil {
		return fmt.Errorf("record %d: %w", l.signed, err)
	}
	return nil
}

// apply updates the state with a record. It fails when the record cannot follow those before it.
func (l *ledger) apply(r record) error {
	if r.Number != l.number+1 {
		return fmt.Errorf("its number is %d", r.Number)
	}
	if r.Previous != l.head {
		return errors.New(
			"it does not follow the record before it: a record was changed, removed or moved, or the ledger is another CA's")
	}
	if (l.number == 0) != (r.Event == created || r.Event == moved || r.Event == recovered) {
		return fmt.Errorf("its kind %q is not allowed there", r.Event)
	}
	if err := r.checkFields(); err != nil {
		return err
	}
	switch r.Event {
	case created:
	case moved, recovered:
		number, err := listNumber(r.List)
		if err != nil {
			return err
		}
		l.list = number
	case certified:
		if err := l.certified(r); err != nil {
			return err
		}
	case invalidated:
		if err := l.invalidated(r); err != nil {
			return err
		}
	case listed:
		number, err := listNumber(r.List)
		if err != nil {
			return err
		}
		if number.Cmp(l.list) <= 0 {
			return fmt.Errorf("the CRL number %s does not follow %s", number, l.list)
		}
		l.list = number
	}
	if l.number = r.Number; l.number == 1 {
		l.began = r.Event
	}
	if r.Event != invalidated {
		l.need = r.Number
	}
	return nil
}

// checkFields fails when a record has a field that its kind does not have.
func (r record) checkFields() error {
	var has record
	switch r.Event {
	case created:
	case certified:
		has.Certificate, has.Serial = r.Certificate, r.Serial
	case invalidated:
		has.Serial, has.Reason = r.Serial, r.Reason
	case moved, recovered, listed:
		has.List = r.List
	default:
		return fmt.Errorf("its kind %.50q is unknown", r.Event)
	}
	if !bytes.Equal(r.Certificate, has.Certificate) || r.Serial != has.Serial || r.Reason != has.Reason ||
		r.List != has.List {
		return fmt.Errorf("it has a field that a record of the kind %q does not have", r.Event)
	}
	return nil
}

func (l *ledger) certified(r record) error {
	entry := Entry{Serial: r.Serial, Subject: "unknown, its certificate is lost", Issued: r.Time}
	switch {
	case r.Certificate != nil && r.Serial == "":
		if err := bound.DER(r.Certificate, certificateLimits); err != nil {
			return fmt.Errorf("its certificate: %w", err)
		}
		cert, err := x509.ParseCertificate(r.Certificate)
		if err != nil {
			return fmt.Errorf("its certificate: %w", err)
		}
		if !bytes.Equal(cert.RawIssuer, l.owner.RawSubject) {
			return fmt.Errorf("another CA issued its certificate")
		}
		entry = newEntry(cert, r.Time)
	case l.began == created || r.Certificate != nil || r.Serial == "":
		return errors.New("it has no certificate")
	}
	if !isSerial(entry.Serial) {
		return fmt.Errorf("%.100q is not a serial number", entry.Serial)
	}
	if _, twice := l.place[entry.Serial]; twice {
		return fmt.Errorf("the serial number %s was issued twice", entry.Serial)
	}
	l.place[entry.Serial] = len(l.entries)
	l.entries = append(l.entries, entry)
	return nil
}

func (l *ledger) invalidated(r record) error {
	i, known := l.place[r.Serial]
	if !known {
		return fmt.Errorf("it revokes the serial number %.100q, which was not issued", r.Serial)
	}
	if l.entries[i].Revoked != nil {
		return fmt.Errorf("the serial number %s was revoked twice", r.Serial)
	}
	if _, known := reasonCodes[r.Reason]; !known {
		return fmt.Errorf("%.50q is not a reason to revoke a certificate", r.Reason)
	}
	l.entries[i].Revoked, l.entries[i].Reason = &r.Time, r.Reason
	return nil
}

// isSerial reports whether a text is a serial number as certs.Serial writes it, of at most 20 octets (RFC 5280, section
// 4.1.2.2).
func isSerial(text string) bool {
	octets, err := hex.DecodeString(text)
	return err == nil && len(octets) > 0 && len(octets) <= 20 && octets[0] != 0 && hex.EncodeToString(octets) == text
}

// listNumber reads the number of a CRL: at most 20 octets (RFC 5280, section 5.2.3), in decimal.
func listNumber(text string) (*big.Int, error) {
	if len(text) <= 49 { // digits, of 20 octets
		if number, ok := new(big.Int).SetString(text, 10); ok && number.Sign() >= 0 && number.BitLen() < 160 &&
			number.String() == text {
			return number, nil
		}
	}
	return nil, fmt.Errorf("%.100q is not the number of a CRL", text)
}

// add appends records, for commit to write. It sets their numbers, hashes and times in whole seconds.
func (l *ledger) add(records ...record) error {
	for _, r := range records {
		r.Number, r.Previous, r.Time = l.number+1, l.head, r.Time.UTC().Truncate(time.Second)
		if err := l.apply(r); err != nil {
			return fmt.Errorf("cannot add record %d to the ledger: %w", r.Number, err)
		}
		l.last, l.lastAt = r, len(l.pending)
		if err := l.write(nil); err != nil {
			return err
		}
	}
	return nil
}

// sign signs the last added record with the CA's key, and with it all before.
func (l *ledger) sign(signer crypto.Signer) error {
	body, _, err := encode(l.last, nil)
	if err != nil {
		return err
	}
	text := headText(l.owner, body)
	signature, err := certs.SignText(signer, text)
	if err != nil {
		return err
	}
	if err := certs.CheckText(l.owner, text, signature); err != nil {
		return err
	}
	return l.write(signature)
}

// write replaces the pending line of the last added record.
func (l *ledger) write(signature []byte) error {
	body, line, err := encode(l.last, signature)
	if err != nil {
		return err
	}
	if len(line) > lineLimit || l.size+int64(l.lastAt+len(line)) > ledgerLimit {
		return fmt.Errorf("record %d is too long: a line has at most %d bytes, the ledger at most %d",
			l.number, lineLimit, ledgerLimit)
	}
	l.noteHead(body, line, signature)
	l.pending = append(l.pending[:l.lastAt], line...)
	return nil
}
