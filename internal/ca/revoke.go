package ca

import (
	"context"
	"crypto"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Reason is why a certificate was revoked, by its name in RFC 5280, section 5.3.1. A hold, which could be lifted again, is not among
// them: signatures that verify, then do not, then do again help nobody.
type Reason string

var reasonCodes = map[Reason]int{
	"unspecified": 0, "keyCompromise": 1, "cACompromise": 2, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5,
	"privilegeWithdrawn": 9, "aACompromise": 10,
}

// Reasons lists the reasons there are, by code.
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
		return "", failure.New(failure.Invalid, "as in: --reason keyCompromise; known are "+strings.Join(Reasons(), ", "), "nothing says for what reason the certificate is revoked")
	}
	for reason := range reasonCodes {
		if strings.EqualFold(string(reason), text) {
			return reason, nil
		}
	}
	return "", failure.New(failure.Invalid, "use one of "+strings.Join(Reasons(), ", "), "%q is not a reason to revoke a certificate", text)
}

// RevokeSerial revokes the certificate of a serial number, in hex. Like its siblings it returns what is now revoked, as the index has it;
// what was revoked before keeps its date and reason.
func (a *Authority) RevokeSerial(ctx context.Context, serial, reason string) ([]Entry, error) {
	wanted := strings.ToLower(strings.ReplaceAll(serial, ":", ""))
	return a.revoke(ctx, "the serial number "+serial, reason, func(e Entry) bool { return e.Serial == wanted })
}

// RevokeFile revokes the certificate that is first in a PEM file.
func (a *Authority) RevokeFile(ctx context.Context, path, reason string) ([]Entry, error) {
	file, err := certs.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := file[0].CheckSignatureFrom(a.Certificate()); err != nil {
		return nil, failure.New(failure.Invalid, "name the CA that issued it, "+file[0].Issuer.String(), "the certificate in %s was not issued by the CA %q", path, a.Name)
	}
	serial := certs.Serial(file[0])
	return a.revoke(ctx, "the serial number "+serial, reason, func(e Entry) bool { return e.Serial == serial })
}

// RevokeKey revokes every certificate of a key in a module.
func (a *Authority) RevokeKey(ctx context.Context, s *config.Settings, reason string) ([]Entry, error) {
	public, err := publicKey(ctx, s)
	if err != nil {
		return nil, err
	}
	fingerprint, err := certs.KeyFingerprint(public)
	if err != nil {
		return nil, err
	}
	return a.revoke(ctx, "the key "+s.Key.String(), reason, func(e Entry) bool { return e.PublicKey == fingerprint })
}

func publicKey(ctx context.Context, s *config.Settings) (crypto.PublicKey, error) {
	store, err := keystore.Open(ctx, s)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	return store.Public()
}

func (a *Authority) revoke(ctx context.Context, what, why string, matches func(Entry) bool) (revoked []Entry, err error) {
	reason, err := parseReason(why)
	if err != nil {
		return nil, err
	}
	err = a.locked(ctx, func() error {
		return a.update(func(entries []Entry) ([]Entry, error) {
			now := time.Now().UTC().Truncate(time.Second)
			for i := range entries {
				e := &entries[i]
				if !matches(*e) {
					continue
				}
				if e.Revoked == nil {
					e.Revoked, e.Reason = &now, reason
				}
				revoked = append(revoked, *e)
			}
			if revoked == nil {
				return nil, failure.New(failure.Invalid, "see what it has issued: notation-hsm ca show "+a.Name, "the CA %q has issued no certificate with %s", a.Name, what)
			}
			return entries, nil
		})
	})
	return revoked, err
}
