// Package ca is a certificate authority whose key stays in a module. It issues roots, intermediates and signers'
// certificates, revokes them, and signs certificate revocation lists (CRLs).
//
// Each CA is a folder of plain files, none of them secret, which is locked while it is changed:
//
//	ca.json              its key, and how the key is reached
//	chain.pem            its certificate, and its issuers up to the root
//	ledger.jsonl         every event: issued, revoked, list signed; chained, and signed by the CA's key
//	issued/SERIAL.pem    every certificate it has issued
//	NAME.crl             its last CRL
package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/folders"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/state"
)

// Terms are the choices of whoever orders a certificate.
type Terms = certs.Terms

// Authority is one CA.
type Authority struct {
	Name     string            `json:"name"`
	Key      string            `json:"key"`                // URI or alias, as it was given
	Settings map[string]string `json:"settings,omitempty"` // those given with the key; never a PIN
	Parent   string            `json:"parent,omitempty"`   // the CA that certified it, unless it is a root
	Created  time.Time         `json:"created"`
	Ledger   int               `json:"ledger,omitempty"` // version of its ledger; 0 is a CA that may have none yet

	Moved bool `json:"-"` // whether its ledger was made from the files of an earlier version just now

	chain []*x509.Certificate // its own, and its issuers up to the root
	dir   string

	keystore *keystore.Keystore // reaches its key
}

// Folder returns the folder of the CAs: the flag, else NOTATION_HSM_CA_DIR, else notation-hsm/ca in the user's
// configuration directory.
func Folder(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if dir := os.Getenv("NOTATION_HSM_CA_DIR"); dir != "" {
		return dir, nil
	}
	dir, err := folders.Config()
	if err != nil {
		return "", failure.New(failure.Invalid, "cannot find the folder of the CAs: %w", err).
			WithHint("set --ca-dir or NOTATION_HSM_CA_DIR")
	}
	return filepath.Join(dir, "notation-hsm", "ca"), nil
}

var names = sync.OnceValue(func() *regexp.Regexp { // not at the start, which every signature pays for
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)
})

func checkName(name string) error {
	if names().MatchString(name) {
		return nil
	}
	return failure.New(failure.Invalid, "%q is not the name of a CA, which is also the name of its folder", name).
		WithHint("use letters, digits, dots, dashes and underscores, as in: signing-2026")
}

const description = "ca.json" // written last: a CA exists when it does

// Open returns the CA of a name.
func Open(ks *keystore.Keystore, folder, name string) (*Authority, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	a := &Authority{keystore: ks, dir: filepath.Join(folder, name)}
	data, err := bound.ReadFile(a.path(description), lineLimit)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, unknown(folder, name)
	}
	if err != nil {
		return nil, failure.New(failure.Internal, "cannot read the CA %q: %w", name, err).
			WithHint("check the folder's permissions")
	}
	if err := json.Unmarshal(data, a); err != nil {
		return nil, failure.New(failure.Invalid, "the file %s is damaged: %w",
			a.path(description), err).
			WithHint("restore the file from a backup")
	}
	if a.Name != name { // it names files
		return nil, failure.New(failure.Invalid,
			"the file %s is damaged: it describes the CA %.100q", a.path(description), a.Name).
			WithHint("restore the file from a backup; a CA's folder keeps its name")
	}
	if a.chain, err = certs.ReadFile(a.path("chain.pem")); err != nil {
		return nil, err
	}
	return a, nil
}

func unknown(folder, name string) error {
	hint := "make it with: notation-hsm ca init " + name
	if all, _ := List(nil, folder); len(all) > 0 {
		known := make([]string, len(all))
		for i, a := range all {
			known[i] = a.Name
		}
		hint = "the CAs are: " + strings.Join(known, ", ")
	}
	return failure.New(failure.NotFound, "there is no CA %q in %s", name, folder).WithHint(hint)
}

// List returns all CAs in a folder, by name.
func List(ks *keystore.Keystore, folder string) ([]*Authority, error) {
	entries, err := os.ReadDir(folder)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.Internal, "cannot list the CAs: %w", err).WithHint("check the folder's permissions")
	}
	var all []*Authority
	for _, entry := range entries {
		if _, err := os.Stat(filepath.Join(folder, entry.Name(), description)); err != nil {
			continue // not a CA, or an Init that was interrupted
		}
		a, err := Open(ks, folder, entry.Name())
		if err != nil {
			return nil, err
		}
		all = append(all, a)
	}
	return all, nil
}

func (a *Authority) path(name ...string) string {
	return filepath.Join(append([]string{a.dir}, name...)...)
}

// Path returns the path of the CA's ledger.
func (a *Authority) Path() string { return a.path(ledgerFile) }

// Certificate returns the CA's own certificate.
func (a *Authority) Certificate() *x509.Certificate { return a.chain[0] }

// Chain returns the CA's own certificate and its issuers up to the root, as PEM.
func (a *Authority) Chain() []byte { return certs.Encode(a.chain) }

func (a *Authority) write(name string, data []byte) error {
	return state.Write(a.path(name), data, 0o644)
}

// save writes ca.json.
func (a *Authority) save() error {
	data, err := json.MarshalIndent(a, "", "  ")
	if err != nil {
		return err
	}
	return a.write(description, append(data, '\n'))
}

// resolve returns the reference of the CA's key. given are flags, which override the settings in ca.json.
func (a *Authority) resolve(given map[string]string) (*keystore.Reference, error) {
	return a.keystore.ResolveStored(a.Key, a.Settings, config.Stored(a.path(description)), given)
}

// withKey opens the CA's key for as long as do takes. It fails with Invalid when the key is not the one of the CA's
// certificate. given are as in resolve.
func (a *Authority) withKey(ctx context.Context, given map[string]string, do func(crypto.Signer) error) error {
	s, err := a.resolve(given)
	if err != nil {
		return err
	}
	return s.WithKey(ctx, func(_ keystore.Store, k keystore.Key) error {
		if !certs.SameKey(k.Public(), a.Certificate().PublicKey) {
			return failure.New(failure.Invalid, "the key %s is not the key of the CA %q", s.Key, a.Name).
				WithHint("check the token: the CA's public key is in " + a.path("chain.pem"))
		}
		return do(keystore.Signer(ctx, k))
	})
}
