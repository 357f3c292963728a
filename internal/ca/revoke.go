package ca

import (
	"context"
	"crypto"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Reason is the reason of a revocation, by its name in RFC 5280, section 5.3.1. certificateHold is not supported: a
// revocation is final.
type Reason string

var reasonCodes = map[Reason]int{
	"unspecified": 0, "keyCompromise": 1, "cACompromise": 2, "affiliationChanged": 3, "superseded": 4,
	"cessationOfOperation": 5,
	"privilegeWithdrawn":   9, "aACompromise": 10,
}

// Reasons returns all reasons, ordered by their code.
func Reasons() []string {
	all := make([]string, 0, len(reasonCodes))
	for code := range 11 {
		for reason, c := range reasonCodes {
			if c == code {
				all = append(all, string(reason))
			}
		}
	}
	return all
}

func parseReason(text string) (Reason, error) {
	if text == "" {
		return "", failure.New(failure.Invalid, "a revocation needs a reason").
			WithHint("give it, as in --reason keyCompromise; the reasons are " + strings.Join(Reasons(), ", "))
	}
	for reason := range reasonCodes {
		if strings.EqualFold(string(reason), text) {
			return reason, nil
		}
	}
	return "", failure.New(failure.Invalid, "%q is not a reason to revoke a certificate", text).
		WithHint("use one of " + strings.Join(Reasons(), ", "))
}

// Revocation is the result of a revocation.
type Revocation struct {
	Entries []Entry // the revoked certificates; those revoked before keep their date and reason

	// Unsigned is the failure to sign the ledger with the CA's key, or nil. The revocation counts without a signature, but
	// until the key signs the ledger, whoever can write to the ledger can also remove the revocation.
	Unsigned error
}

// RevokeSerial revokes the certificate with a serial number, in hex. It fails with NotFound when the CA issued none.
func (a *Authority) RevokeSerial(ctx context.Context, serial, reason string) (Revocation, error) {
	wanted := plainSerial(serial)
	return a.revoke(ctx, "the serial number "+serial, reason, func(e Entry) bool { return e.Serial == wanted })
}

// RevokeFile revokes the first certificate of a PEM file. It fails with Invalid when another CA issued it.
func (a *Authority) RevokeFile(ctx context.Context, path, reason string) (Revocation, error) {
	file, err := certs.ReadFile(path)
	if err != nil {
		return Revocation{}, err
	}
	if err := file[0].CheckSignatureFrom(a.Certificate()); err != nil {
		return Revocation{}, failure.New(failure.Invalid, "the certificate in %s was not issued by the CA %q", path, a.Name).
			WithHint("name the CA that issued it, " + file[0].Issuer.String())
	}
	serial := certs.Serial(file[0])
	return a.revoke(ctx, "the serial number "+serial, reason, func(e Entry) bool { return e.Serial == serial })
}

// RevokeKey revokes every certificate of a key in a module.
func (a *Authority) RevokeKey(ctx context.Context, s *keystore.Reference, reason string) (Revocation, error) {
	public, err := publicKey(ctx, s)
	if err != nil {
		return Revocation{}, err
	}
	fingerprint, err := certs.KeyFingerprint(public)
	if err != nil {
		return Revocation{}, err
	}
	return a.revoke(ctx, "the key "+s.Key.String(), reason, func(e Entry) bool { return e.PublicKey == fingerprint })
}

func publicKey(ctx context.Context, s *keystore.Reference) (crypto.PublicKey, error) {
	store, err := s.Open(ctx)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return store.Public(ctx)
}

func (a *Authority) revoke(ctx context.Context, what, why string, matches func(Entry) bool) (done Revocation,
	err error) {
	reason, err := parseReason(why)
	if err != nil {
		return done, err
	}
	return done, a.change(ctx, func(l *ledger) error {
		var records []record
		found := false
		for _, e := range l.entries {
			if !matches(e) {
				continue
			}
			if found = true; e.Revoked == nil {
				records = append(records, record{Event: invalidated, Serial: e.Serial, Reason: reason, Time: now()})
			}
		}
		if !found {
			return failure.New(failure.NotFound, "the CA %q has issued no certificate with %s", a.Name, what).
				WithHint("list its certificates: notation-hsm ca show " + a.Name)
		}
		if len(records) > 0 {
			if done.Unsigned, err = a.invalidate(ctx, l, records); err != nil {
				return err
			}
		}
		for _, e := range l.entries {
			if matches(e) {
				done.Entries = append(done.Entries, e)
			}
		}
		return nil
	})
}

// invalidate records revocations in the ledger, signed if the CA's key can be used. unsigned is the failure of the key:
// a revocation must not wait for a root's key that is locked away.
func (a *Authority) invalidate(ctx context.Context, l *ledger, records []record) (unsigned, err error) {
	if err := l.add(records...); err != nil {
		return nil, err
	}
	unsigned = a.withKey(ctx, nil, func(k crypto.Signer) error { return l.sign(k) })
	if ctx.Err() != nil {
		return nil, unsigned
	}
	if unsigned != nil && l.size == 0 {
		f := failure.From(unsigned)
		return nil, failure.New(f.Kind,
			"cannot move the record of the CA %q, of an earlier version, into a ledger without the CA's key: %w", a.Name,
			unsigned).
			WithHint(f.Hint)
	}
	return unsigned, a.commit(l)
}
