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

// Entry is an issued certificate and its state.
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

// State returns the state in one word: revoked, unknown (the certificate is lost), expired or valid.
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

// Certificate returns the certificate. It fails with NotFound when the certificate is lost.
func (e Entry) Certificate() (*x509.Certificate, error) {
	if e.der == nil {
		return nil, failure.New(failure.NotFound, "the CA has no copy of the certificate %s", e.Serial).
			WithHint("get the certificate from its holder")
	}
	return x509.ParseCertificate(e.der)
}

// Entries returns all certificates that the CA has issued, in the order of their issue.
func (a *Authority) Entries() ([]Entry, error) {
	l, err := a.read()
	if err != nil {
		return nil, err
	}
	return l.entries, nil
}

// read returns the ledger, verified and compared with the rest of the folder. It reads issued/ and the last CRL before
// the ledger: both are written after the ledger, so a complete ledger contains them.
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
		if _, missing := os.Stat(a.path(ledgerFile)); err != nil && missing == nil {
			return a.read() // another command made it from the index in the meantime
		}
		return l, err
	}
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot read the certificates of the CA %q: %w", a.Name, err).
			WithHint("check the folder's permissions")
	}
	defer file.Close()
	l, err := parseLedger(file, a.Certificate())
	if err == nil {
		err = l.covers(files, list, "the CRL "+a.crlFile())
	}
	if err != nil {
		return nil, a.distrust(err)
	}
	return l, nil
}

// distrust returns the failure of a ledger that is not the one the CA wrote last.
func (a *Authority) distrust(err error) error {
	return failure.New(failure.Invalid,
		"cannot trust the ledger of the CA %q: %s: %w", a.Name, a.path(ledgerFile), err).
		WithHint("restore the newest " + ledgerFile +
			" from a backup; or rebuild it from issued/ and the last CRL: notation-hsm ca recover --ca " + a.Name)
}

// covers fails unless the ledger has every certificate in issued/ and everything that a CRL of the CA says: otherwise
// it is older than they are. list may be nil.
func (l *ledger) covers(files []string, list *x509.RevocationList, named string) error {
	for _, serial := range files {
		if _, known := l.place[serial]; !known {
			return fmt.Errorf("it is older than issued/%s.pem, which it does not contain", serial)
		}
	}
	if list == nil {
		return nil
	}
	if list.Number.Cmp(l.list) > 0 {
		return fmt.Errorf("it is older than %s, which has the number %s; the last number in the ledger is %s", named,
			list.Number, l.list)
	}
	for _, e := range list.RevokedCertificateEntries {
		serial := hex.EncodeToString(e.SerialNumber.Bytes())
		if i, known := l.place[serial]; !known || l.entries[i].Revoked == nil {
			return fmt.Errorf("%s revokes the certificate %s, and the ledger does not", named, serial)
		}
	}
	return nil
}

// issuedFiles returns the serial numbers in the file names of issued/.
func (a *Authority) issuedFiles() ([]string, error) {
	entries, err := os.ReadDir(a.path("issued"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.Internal, "cannot read the certificates of the CA %q: %w", a.Name, err).
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

// locked runs do while no other command changes the CA. The lock comes before any key is opened, so that hundreds of
// commands at once wait here and not in the module.
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

// record adds a record to the ledger, signs it with the CA's key, and writes it.
func (a *Authority) record(signer crypto.Signer, l *ledger, r record) error {
	if err := l.add(r); err != nil {
		return err
	}
	if err := l.sign(signer); err != nil {
		return err
	}
	return a.commit(l)
}

// commit writes the ledger's new records, and then the certificates missing in issued/: those of the new records, those
// of an interrupted command, and lost ones. The CA is locked.
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
	existing := make(map[string]bool, len(files))
	for _, serial := range files {
		existing[serial] = true
	}
	for _, e := range l.entries {
		if existing[e.Serial] || e.der == nil {
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
