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

// CRL signs a new revocation list, which holds until next update, and keeps it. given are settings for the CA's key.
// What was revoked stays listed when it has expired: a signature with a timestamp outlives its certificate. published
// is the path of a list that the new one will replace, or empty: if that is a newer one than the CA knows of, the CA's
// folder is an older copy, and nothing is signed.
func (a *Authority) CRL(ctx context.Context, given map[string]string, nextUpdate,
	published string) (list *x509.RevocationList, path string, err error) {
	lasts, err := parsePeriod(nextUpdate)
	if err != nil {
		return nil, "", err
	}
	err = a.change(ctx, func(l *ledger) error {
		// what is no list of ours is no evidence
		if other, err := readList(published, a.Certificate()); published != "" && err == nil {
			if err := l.covers(nil, other, "the list "+published); err != nil {
				return failure.New(failure.Invalid, "the folder of the CA %q is not what it was: %w", a.Name, err).
					WithHint("restore the newest folder of the CA from a backup; or take over what the list has: notation-hsm ca recover --ca " +
						a.Name + " --crl " + published)
			}
		}
		return a.withKey(ctx, given, func(k crypto.Signer) error {
			list, err = a.signList(k, l, lasts)
			return err
		})
	})
	return list, a.crlFile(), err
}

// signList signs the next list. Its number (RFC 5280, section 5.2.3) is in the ledger before the list is on the disk,
// so a list that anyone has seen never shares it with another.
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

// Published returns the last revocation list, or nil when there has been none.
func (a *Authority) Published() (*x509.RevocationList, error) {
	list, err := readList(a.crlFile(), a.Certificate())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failure.New(failure.Invalid,
			"can't use the last revocation list of the CA %q: %s: %w", a.Name, a.crlFile(), err).
			WithHint("copy the list that is published to that place; if there is none, remove the file and sign a new list: " +
				"notation-hsm ca crl --ca " + a.Name)
	}
	return list, nil
}

const listLimit = 64 << 20 // bytes; an entry has about 40

// readList reads a revocation list of an issuer.
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

// parsePeriod reads a length of time in days, such as 7d, or as Go writes it, such as 12h.
func parsePeriod(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	if text == "" {
		return 0, failure.New(failure.Invalid, "nothing says when the next update is due").
			WithHint("as in: --next-update 7d (in a ceremony: next-update: 7d)")
	}
	period, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 12)
		period = time.Duration(n) * day //nolint:gosec // at most 12 bits
	}
	if err != nil || period < time.Second || period > 3660*day {
		return 0, failure.New(failure.Invalid, "%q is no time for the next update", text).
			WithHint("write it like 7d or 12h, up to ten years")
	}
	return period, nil
}
