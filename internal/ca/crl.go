package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// CRL signs a new CRL (RFC 5280, section 5), valid for nextUpdate (such as 7d), and writes it into the CA's folder.
// given are settings of the CA's key. Revoked certificates stay listed after they expire: a signature with a timestamp
// outlives its certificate. published is the path of the CRL that the new one replaces, or empty: if it is newer than
// the CA's ledger, the CA's folder is an older copy, and CRL fails with Invalid.
func (a *Authority) CRL(ctx context.Context, given map[string]string, nextUpdate,
	published string) (list *x509.RevocationList, path string, err error) {
	lasts, err := parsePeriod(nextUpdate)
	if err != nil {
		return nil, "", err
	}
	err = a.change(ctx, func(l *ledger) error {
		// A file that is not a CRL of this CA proves nothing.
		if other, err := readList(published, a.Certificate()); published != "" && err == nil {
			if err := l.covers(nil, other, "the CRL "+published); err != nil {
				return failure.New(failure.Invalid, "the folder of the CA %q is an older copy: %w", a.Name, err).
					WithHint("restore the newest folder of the CA from a backup; or recover from the CRL: " +
						"notation-hsm ca recover --ca " + a.Name + " --crl " + published)
			}
		}
		return a.withKey(ctx, given, func(k crypto.Signer) error {
			list, err = a.signList(k, l, lasts)
			return err
		})
	})
	return list, a.crlFile(), err
}

// signList signs the next CRL. Its number (RFC 5280, section 5.2.3) is in the ledger before the CRL is on the disk, so
// no two published CRLs have the same number.
func (a *Authority) signList(signer crypto.Signer, l *ledger, lasts time.Duration) (*x509.RevocationList, error) {
	now := now()
	number := new(big.Int).Add(l.list, big.NewInt(1))
	list, err := certs.SignCRL(signer, &x509.RevocationList{
		Number: number, ThisUpdate: now, NextUpdate: now.Add(lasts), RevokedCertificateEntries: revokedEntries(l.entries),
	}, a.Certificate())
	if err != nil {
		return nil, err
	}
	if err := a.record(signer, l, record{Event: listed, List: number.String(), Time: now}); err != nil {
		return nil, err
	}
	return list, a.write(filepath.Base(a.crlFile()), list.Raw)
}

func revokedEntries(entries []Entry) (revoked []x509.RevocationListEntry) {
	for _, e := range entries {
		if e.Revoked == nil {
			continue
		}
		serial, _ := new(big.Int).SetString(e.Serial, 16) // the ledger has no other
		revoked = append(revoked, x509.RevocationListEntry{SerialNumber: serial, RevocationTime: *e.Revoked,
			ReasonCode: reasonCodes[e.Reason]})
	}
	return revoked
}

func (a *Authority) crlFile() string { return a.path(a.Name + ".crl") }

// Published returns the last CRL, or nil when there is none.
func (a *Authority) Published() (*x509.RevocationList, error) {
	list, err := readList(a.crlFile(), a.Certificate())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failure.New(failure.Invalid,
			"cannot read the last CRL of the CA %q: %s: %w", a.Name, a.crlFile(), err).
			WithHint("copy the published CRL to this path; if there is none, remove the file and sign a new CRL: " +
				"notation-hsm ca crl --ca " + a.Name)
	}
	return list, nil
}

const listLimit = 64 << 20 // bytes; an entry has about 40

// readList reads a CRL in DER and verifies its signature by an issuer.
func readList(path string, issuer *x509.Certificate) (*x509.RevocationList, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	der, err := io.ReadAll(io.LimitReader(file, listLimit+1))
	if err != nil {
		return nil, err
	}
	if err := bound.DER(der, bound.Limits{Bytes: listLimit, Depth: bound.Depth, Elements: listLimit / 4}); err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, err
	}
	if list.Number == nil {
		return nil, errors.New("it has no number")
	}
	return list, list.CheckSignatureFrom(issuer)
}

// parsePeriod reads a duration in days, such as 7d, or in Go's form, such as 12h.
func parsePeriod(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	if text == "" {
		return 0, failure.New(failure.Invalid, "a CRL needs the time of its next update").
			WithHint("set it, as in --next-update 7d (in a ceremony: next-update: 7d)")
	}
	period, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 12)
		period = time.Duration(n) * day //nolint:gosec // at most 12 bits
	}
	if err != nil || period < time.Second || period > 3660*day {
		return 0, failure.New(failure.Invalid, "%q is not a duration until the next update", text).
			WithHint("write it like 7d or 12h, up to ten years")
	}
	return period, nil
}
