package ca

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Entry is what became of an issued certificate.
type Entry struct {
	Serial    string     `json:"serial"` // hex
	Subject   string     `json:"subject"`
	CA        bool       `json:"ca"`
	NotBefore time.Time  `json:"notBefore"`
	NotAfter  time.Time  `json:"notAfter"`
	PublicKey string     `json:"publicKey"` // SHA-256 of the SubjectPublicKeyInfo, in hex
	Issued    time.Time  `json:"issued"`
	Revoked   *time.Time `json:"revoked,omitempty"`
	Reason    Reason     `json:"reason,omitempty"`

	der        []byte // nil when the certificate is lost
	rawSubject []byte
}

func newEntry(cert *x509.Certificate, issued time.Time) Entry {
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return Entry{
		Serial: certs.Serial(cert), Subject: cert.Subject.String(), CA: cert.IsCA, NotBefore: cert.NotBefore,
		NotAfter:  cert.NotAfter,
		PublicKey: hex.EncodeToString(sum[:]), Issued: issued.UTC().Truncate(time.Second), der: cert.Raw,
		rawSubject: cert.RawSubject,
	}
}

// State is an entry's state in one word.
func (e Entry) State() string {
	switch {
	case e.Revoked != nil:
		return "revoked"
	case e.der == nil:
		return "unknown"
	case time.Now().After(e.NotAfter):
		return "expired"
	}
	return "valid"
}

// Certificate returns the certificate itself. It fails when that is lost.
func (e Entry) Certificate() (*x509.Certificate, error) {
	if e.der == nil {
		return nil, failure.New(failure.Invalid, "the CA has no copy of the certificate %s", e.Serial).
			WithHint("get the certificate from whom it was issued to")
	}
	return x509.ParseCertificate(e.der)
}

// Entries returns what became of all certificates that the CA has issued, in the order of their issue.
func (a *Authority) Entries() ([]Entry, error) {
	l, err := a.read()
	if err != nil {
		return nil, err
	}
	return l.entries, nil
}

// read returns the ledger, verified and held against the rest of the folder. What is issued and the last list are
// looked up before the ledger: both are written after it, so whatever is found there is in a ledger that is whole.
func (a *Authority) read() (*ledger, error) {
	files, err := a.issuedFiles()
	if err != nil {
		return nil, err
	}
	list, err := a.Published()
	if err != nil {
		return nil, err
	}
	file, err := os.Open(a.path(ledgerFile))
	if errors.Is(err, fs.ErrNotExist) {
		if a.Ledger != 0 {
			return nil, a.distrust(errors.New("the file is missing"))
		}
		l, err := a.readIndex(files, list)
		if _, there := os.Stat(a.path(ledgerFile)); err != nil && there == nil {
			return a.read() // another command has made it from the index meanwhile
		}
		return l, err
	}
	if err != nil {
		return nil, failure.New(failure.Internal, "can't read what the CA %q has issued: %w", a.Name, err).
			WithHint("check the folder's permissions")
	}
	defer file.Close()
	l, err := parseLedger(file, a.Certificate())
	if err == nil {
		err = l.covers(files, list, "the list "+a.crlFile())
	}
	if err != nil {
		return nil, a.distrust(err)
	}
	return l, nil
}

// distrust is the failure of a ledger that can't be what the CA wrote last.
func (a *Authority) distrust(err error) error {
	return failure.New(failure.Invalid,
		"the ledger of the CA %q can't be trusted: %s: %w", a.Name, a.path(ledgerFile), err).
		WithHint("restore the newest " + ledgerFile +
			" from a backup; or see what can be rebuilt from the certificates in issued/ and the last list: notation-hsm ca " +
			"recover --ca " + a.Name)
}

// covers fails unless the ledger knows every certificate in issued/ and all that a list of the CA says: one that does
// not is older than they are. list may be nil.
func (l *ledger) covers(files []string, list *x509.RevocationList, named string) error {
	for _, serial := range files {
		if _, known := l.place[serial]; !known {
			return fmt.Errorf("it is older than issued/%s.pem, which it does not know", serial)
		}
	}
	if list == nil {
		return nil
	}
	if list.Number.Cmp(l.list) > 0 {
		return fmt.Errorf("it is older than %s: that has the number %s, and the last that the ledger knows is %s", named,
			list.Number, l.list)
	}
	for _, e := range list.RevokedCertificateEntries {
		serial := hex.EncodeToString(e.SerialNumber.Bytes())
		if i, known := l.place[serial]; !known || l.entries[i].Revoked == nil {
			return fmt.Errorf("%s has revoked the certificate %s, and the ledger has not", named, serial)
		}
	}
	return nil
}

// issuedFiles returns the serial numbers that the certificates in issued/ are filed under.
func (a *Authority) issuedFiles() ([]string, error) {
	entries, err := os.ReadDir(a.path("issued"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.Internal, "can't read what the CA %q has issued: %w", a.Name, err).
			WithHint("check the folder's permissions")
	}
	var serials []string
	for _, entry := range entries {
		if serial, isCertificate := strings.CutSuffix(entry.Name(), ".pem"); isCertificate &&
			!strings.HasPrefix(serial, ".") {
			serials = append(serials, serial)
		}
	}
	return serials, nil
}

// locked runs do while no other command changes the CA. The lock comes before any key is opened: hundreds of commands
// at once then wait here, and not in the module.
func (a *Authority) locked(ctx context.Context, do func() error) error {
	unlock, err := state.Lock(ctx, a.dir)
	if err != nil {
		return err
	}
	defer unlock()
	return do()
}

// change runs do with the ledger while no other command changes the CA.
func (a *Authority) change(ctx context.Context, do func(*ledger) error) error {
	return a.locked(ctx, func() error {
		l, err := a.read()
		if err != nil {
			return err
		}
		return do(l)
	})
}

// record adds a record to the ledger, has the CA's key sign it, and writes it.
func (a *Authority) record(signer crypto.Signer, l *ledger, r record) error {
	if err := l.add(r); err != nil {
		return err
	}
	if err := l.sign(signer); err != nil {
		return err
	}
	return a.commit(l)
}

// commit writes the ledger's new records, and then the certificates in issued/ that are missing: those of the new
// records, those that a killed command did not come to, and those that were lost. The CA is locked.
func (a *Authority) commit(l *ledger) error {
	if err := l.verify(); err != nil {
		return err
	}
	write := func() error { return state.Append(a.path(ledgerFile), l.size, l.pending) }
	if l.size == 0 {
		write = func() error { return a.write(ledgerFile, l.pending) }
	}
	if err := write(); err != nil {
		return err
	}
	l.size, l.pending = l.size+int64(len(l.pending)), nil
	files, err := a.issuedFiles()
	if err != nil {
		return err
	}
	there := make(map[string]bool, len(files))
	for _, serial := range files {
		there[serial] = true
	}
	for _, e := range l.entries {
		if there[e.Serial] || e.der == nil {
			continue
		}
		cert, err := e.Certificate()
		if err != nil {
			return err
		}
		if err := a.write(filepath.Join("issued", e.Serial+".pem"), certs.Encode([]*x509.Certificate{cert})); err != nil {
			return err
		}
	}
	return a.retireIndex()
}
