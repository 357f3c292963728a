package ca

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// CRL signs a new revocation list, which holds until next update, and keeps it. given are settings for the CA's key. What was revoked
// stays listed when it has expired: a signature with a timestamp outlives its certificate.
func (a *Authority) CRL(ctx context.Context, given map[string]string, nextUpdate string) (list *x509.RevocationList, path string, err error) {
	lasts, err := parsePeriod(nextUpdate)
	if err != nil {
		return nil, "", err
	}
	path = a.path(a.Name + ".crl")
	err = a.locked(ctx, func() error {
		entries, err := a.Entries()
		if err != nil {
			return err
		}
		revoked, err := revokedEntries(entries)
		if err != nil {
			return err
		}
		return a.withKey(ctx, given, func(k keystore.Key) error {
			// The number is used up before it is signed: a list that was signed and lost may not share it with another.
			number, err := a.nextNumber()
			if err != nil {
				return err
			}
			now := time.Now().UTC().Truncate(time.Second)
			list, err = certs.SignCRL(k, &x509.RevocationList{
				Number: number, ThisUpdate: now, NextUpdate: now.Add(lasts), RevokedCertificateEntries: revoked,
			}, a.Certificate())
			if err != nil {
				return err
			}
			return a.write(a.Name+".crl", list.Raw)
		})
	})
	return list, path, err
}

func revokedEntries(entries []Entry) (revoked []x509.RevocationListEntry, err error) {
	for _, e := range entries {
		if e.Revoked == nil {
			continue
		}
		serial, err := hex.DecodeString(e.Serial)
		if err != nil {
			return nil, failure.New(failure.Invalid, "restore index.json from a backup", "the index is damaged: %q is no serial number", e.Serial)
		}
		revoked = append(revoked, x509.RevocationListEntry{
			SerialNumber: new(big.Int).SetBytes(serial), RevocationTime: *e.Revoked, ReasonCode: reasonCodes[e.Reason],
		})
	}
	return revoked, nil
}

// Published returns the last revocation list, or nil when there has been none.
func (a *Authority) Published() (*x509.RevocationList, error) {
	der, err := os.ReadFile(a.path(a.Name + ".crl"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, failure.New(failure.Internal, "check the folder's permissions", "can't read the revocation list of the CA %q: %w", a.Name, err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, failure.New(failure.Invalid, "sign it again: notation-hsm ca crl --ca "+a.Name, "the revocation list %s is damaged: %w", a.path(a.Name+".crl"), err)
	}
	return list, nil
}

// nextNumber takes the next CRL number (RFC 5280, section 5.2.3).
func (a *Authority) nextNumber() (*big.Int, error) {
	number := new(big.Int)
	data, err := os.ReadFile(a.path("crlnumber"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, failure.New(failure.Internal, "check the folder's permissions", "can't read the CRL number of the CA %q: %w", a.Name, err)
	}
	if err == nil {
		if _, ok := number.SetString(strings.TrimSpace(string(data)), 10); !ok {
			return nil, failure.New(failure.Invalid, "restore the file, or write the number of the last list that was published into it", "the file %s holds no number", a.path("crlnumber"))
		}
	}
	number.Add(number, big.NewInt(1))
	return number, a.write("crlnumber", []byte(number.String()+"\n"))
}

// parsePeriod reads a length of time in days, such as 7d, or as Go writes it, such as 12h.
func parsePeriod(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	if text == "" {
		return 0, failure.New(failure.Invalid, "as in: --next-update 7d (in a ceremony: next-update: 7d)", "nothing says when the next update is due")
	}
	period, err := time.ParseDuration(text)
	if days, isDays := strings.CutSuffix(text, "d"); isDays {
		var n uint64
		n, err = strconv.ParseUint(days, 10, 12)
		period = time.Duration(n) * day //nolint:gosec // at most 12 bits
	}
	if err != nil || period < time.Second || period > 3660*day {
		return 0, failure.New(failure.Invalid, "write it like 7d or 12h, up to ten years", "%q is no time for the next update", text)
	}
	return period, nil
}
