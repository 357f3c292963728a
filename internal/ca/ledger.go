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

// The ledger of a CA is the file ledger.jsonl: one line of JSON for each event, appended when it happens. A record
// names the SHA-256 of the line before it, and the first one that of the CA's certificate, so none can be changed, left
// out or moved without changing all that follow. The CA's key signs a record, and with it all before, whenever it is
// used; what follows the last signature can only be revocations, which are written down even when the key is out of
// reach.

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
	moved       event = "moved"     // the first record of a ledger made from an index.json of earlier versions
	recovered   event = "recovered" // the first record of a ledger made by Recover
	certified   event = "issued"
	invalidated event = "revoked"
	listed      event = "list" // a revocation list was signed
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
	// list: its number; moved and recovered: no list has had a greater one
	List string `json:"list,omitempty"`
}

type signedRecord struct {
	Record    record `json:"record"`
	Signature []byte `json:"signature,omitempty"` // of headText
}

// encode returns a record and its line as they are written; there is no other way to write them.
func encode(r record, signature []byte) (body, line []byte, err error) {
	if body, err = json.Marshal(r); err != nil {
		return nil, nil, err
	}
	line, err = json.Marshal(signedRecord{r, signature})
	return body, append(line, '\n'), err
}

// headText is what the CA's key signs of a record. It is not DER: see certs.SignText.
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

// ledger is what the records amount to.
type ledger struct {
	owner   *x509.Certificate
	entries []Entry
	place   map[string]int // of an entry, by serial
	began   event          // that of the first record
	number  int            // of the last record
	head    string         // SHA-256 of the last line, in hex
	list    *big.Int       // number of the last revocation list

	need      int    // number of the last record that has to be signed, itself or by one after it
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

// parseLedger reads and verifies a ledger. With a failure it returns what came before the record that is wrong. A last
// line without an end is left of a write that was cut short: it is no part of the ledger.
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
			err = l.take(line)
		}
		if err != nil {
			return l, fmt.Errorf("record %d: %w", l.number+1, err)
		}
		l.size += int64(len(line))
	}
}

// take reads the next line.
func (l *ledger) take(line []byte) error {
	var r signedRecord
	if err := json.Unmarshal(line, &r); err != nil {
		return fmt.Errorf("it is not a record: %w", err)
	}
	r.Record.Time = r.Record.Time.UTC()
	body, canonical, err := encode(r.Record, r.Signature)
	if err != nil || !bytes.Equal(line, canonical) { // unknown and repeated names among other things
		return errors.New("it is not written as records are")
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

// verify holds the last signature against the CA's certificate, and refuses records that have to be signed and are not.
func (l *ledger) verify() error {
	if l.signed == 0 || l.signed < l.need {
		return errors.New("its last records are not signed by the CA's key")
	}
	if err := certs.CheckText(l.owner, l.text, l.signature); err != nil {
		return fmt.Errorf("record %d: %w", l.signed, err)
	}
	return nil
}

// apply takes a record in, if it can follow those before it.
func (l *ledger) apply(r record) error {
	if r.Number != l.number+1 {
		return fmt.Errorf("it has the number %d", r.Number)
	}
	if r.Previous != l.head {
		return errors.New(
			"it does not follow the record before it: a record was changed, removed or moved, or the ledger is another CA's")
	}
	if (l.number == 0) != (r.Event == created || r.Event == moved || r.Event == recovered) {
		return fmt.Errorf("it is of the kind %q, which can't stand there", r.Event)
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
			return fmt.Errorf("the list number %s does not follow %s", number, l.list)
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

// checkFields fails when a record has a field that means nothing in one of its kind.
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
		return fmt.Errorf("it has a field that has no meaning in a record of the kind %q", r.Event)
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
			return fmt.Errorf("its certificate is of another issuer")
		}
		entry = newEntry(cert, r.Time)
	case l.began == created || r.Certificate != nil || r.Serial == "":
		return errors.New("it has no certificate")
	}
	if !isSerial(entry.Serial) {
		return fmt.Errorf("%.100q is not a serial number", entry.Serial)
	}
	if _, twice := l.place[entry.Serial]; twice {
		return fmt.Errorf("the serial number %s was issued before", entry.Serial)
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
		return fmt.Errorf("the serial number %s was revoked before", r.Serial)
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

// listNumber reads the number of a revocation list: at most 20 octets (RFC 5280, section 5.2.3), in decimal.
func listNumber(text string) (*big.Int, error) {
	if len(text) <= 49 { // digits, of 20 octets
		if number, ok := new(big.Int).SetString(text, 10); ok && number.Sign() >= 0 && number.BitLen() < 160 &&
			number.String() == text {
			return number, nil
		}
	}
	return nil, fmt.Errorf("%.100q is not the number of a revocation list", text)
}

// add makes records follow the last one, to be written by commit. Their numbers and links are set here.
func (l *ledger) add(records ...record) error {
	for _, r := range records {
		r.Number, r.Previous, r.Time = l.number+1, l.head, r.Time.UTC().Truncate(time.Second)
		if err := l.apply(r); err != nil {
			return fmt.Errorf("record %d can't be added to the ledger: %w", r.Number, err)
		}
		l.last, l.lastAt = r, len(l.pending)
		if err := l.write(nil); err != nil {
			return err
		}
	}
	return nil
}

// sign has the CA's key sign the last record that was added, and with it all before.
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

// write puts the line of the last record that was added at the end of those to be written.
func (l *ledger) write(signature []byte) error {
	body, line, err := encode(l.last, signature)
	if err != nil {
		return err
	}
	if len(line) > lineLimit || l.size+int64(l.lastAt+len(line)) > ledgerLimit {
		return fmt.Errorf("record %d does not fit into the ledger, whose lines have at most %d bytes, and all together %d",
			l.number, lineLimit, ledgerLimit)
	}
	l.noteHead(body, line, signature)
	l.pending = append(l.pending[:l.lastAt], line...)
	return nil
}
