package ca

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
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
}

// State is an entry's state in one word.
func (e Entry) State() string {
	switch {
	case e.Revoked != nil:
		return "revoked"
	case time.Now().After(e.NotAfter):
		return "expired"
	}
	return "valid"
}

// Entries returns what became of all certificates that the CA has issued, in the order of their issue.
//
// A certificate is written before the index that names it. So one that is in issued/ and not in the index belongs to a command that was
// cut short between the two, and is taken in here; the next change writes it down.
func (a *Authority) Entries() ([]Entry, error) {
	entries := []Entry{}
	data, err := os.ReadFile(a.path("index.json"))
	if err == nil {
		err = json.Unmarshal(data, &entries)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.Invalid, "restore the file from a backup", "can't read what the CA %q has issued: %s: %w", a.Name, a.path("index.json"), err)
	}
	known := map[string]bool{}
	for _, e := range entries {
		known[e.Serial] = true
	}
	files, err := os.ReadDir(a.path("issued"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.Internal, "check the folder's permissions", "can't read what the CA %q has issued: %w", a.Name, err)
	}
	for _, file := range files {
		serial, isCertificate := strings.CutSuffix(file.Name(), ".pem")
		if !isCertificate || known[serial] || strings.HasPrefix(serial, ".") {
			continue
		}
		entry, err := a.takeIn(file)
		if err != nil {
			return nil, err
		}
		entries = append(entries, entry)
	}
	return entries, nil
}

func (a *Authority) takeIn(file fs.DirEntry) (Entry, error) {
	found, err := certs.ReadFile(a.path("issued", file.Name()))
	if err != nil {
		return Entry{}, err
	}
	info, err := file.Info()
	if err != nil {
		return Entry{}, err
	}
	return newEntry(found[0], info.ModTime())
}

func newEntry(cert *x509.Certificate, issued time.Time) (Entry, error) {
	fingerprint, err := certs.KeyFingerprint(cert.PublicKey)
	return Entry{
		Serial: certs.Serial(cert), Subject: cert.Subject.String(), CA: cert.IsCA, NotBefore: cert.NotBefore, NotAfter: cert.NotAfter,
		PublicKey: fingerprint, Issued: issued.UTC().Truncate(time.Second),
	}, err
}

// locked runs do while no other command changes the CA. The lock comes before any key is opened: hundreds of commands at once then wait
// here, and not in the module.
func (a *Authority) locked(ctx context.Context, do func() error) error {
	unlock, err := state.Lock(ctx, a.dir)
	if err != nil {
		return err
	}
	defer unlock()
	return do()
}

// update lets do change the entries and writes them. The CA is locked.
func (a *Authority) update(do func([]Entry) ([]Entry, error)) error {
	entries, err := a.Entries()
	if err != nil {
		return err
	}
	changed, err := do(entries)
	if err != nil {
		return err
	}
	return a.writeJSON("index.json", changed)
}
