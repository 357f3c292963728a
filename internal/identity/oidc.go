package identity

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// skew is how far the clocks of an issuer and of the broker may differ.
const skew = 60 * time.Second

// issuer verifies the tokens of one issuer.
type issuer struct {
	settings Issuer
	keys     *keyCache
	now      func() time.Time
}

func newIssuer(settings Issuer, now func() time.Time) (*issuer, error) {
	keys, err := newKeyCache(settings, now)
	if err != nil {
		return nil, err
	}
	return &issuer{settings, keys, now}, nil
}

// caller verifies a token of this issuer and returns its caller. What costs nothing is checked first; the issuer is
// asked for a key only for a token that it could have issued.
func (i *issuer) caller(ctx context.Context, t *token) (Caller, error) {
	name := i.settings.Issuer
	expires, err := i.checkTimes(t)
	if err != nil {
		return Caller{}, failure.New(failure.Denied, "cannot accept a token of %s: %w", name, err).
			WithHint("request a new token, and check the clocks")
	}
	if err := i.checkAudience(t.claims["aud"]); err != nil {
		return Caller{}, failure.New(failure.Denied, "cannot accept a token of %s: %w", name, err).
			WithHint("request the token for the audience " + i.settings.Audience[0])
	}
	subject, _ := t.claims["sub"].(string)
	if subject == "" || len(subject) > maxSubject {
		return Caller{}, failure.New(failure.Denied, "cannot accept a token of %s: its subject (sub) is missing or too "+
			"long", name).WithHint("check the subject that the issuer is configured for")
	}
	if err := types[i.settings.Type].checkClaims(t.claims, subject); err != nil {
		return Caller{}, failure.New(failure.Denied, "cannot accept a token of %s (type %s): %w", name, i.settings.Type,
			err).WithHint("check the type of the issuer in the config of the broker")
	}
	key, err := i.keys.get(ctx, t.keyID, t.algorithm)
	if err != nil {
		return Caller{}, err
	}
	if _, err := t.signed.Verify(key); err != nil {
		return Caller{}, failure.New(failure.Denied, "cannot accept a token of %s: its signature does not verify", name).
			WithHint("request a new token")
	}
	return Caller{
		Issuer: name, Subject: subject, Claims: t.claims,
		Token: &Token{ID: t.id, Expires: expires, Uses: i.settings.uses()},
	}, nil
}

// checkTimes verifies exp, nbf, iat and the lifetime of a token. It returns the time from which on it fails.
func (i *issuer) checkTimes(t *token) (time.Time, error) {
	now := i.now()
	expires, err := t.moment("exp")
	if err != nil {
		return time.Time{}, err
	}
	issued, err := t.moment("iat")
	if err != nil {
		return time.Time{}, err
	}
	end := expires.Add(skew)
	if !now.Before(end) {
		return time.Time{}, errors.New("it has expired (exp)")
	}
	if issued.After(now.Add(skew)) {
		return time.Time{}, errors.New("it was issued in the future (iat)")
	}
	if most := i.settings.lifetime(); expires.Sub(issued) > most {
		return time.Time{}, fmt.Errorf("it is valid for longer than %s", most)
	}
	if _, has := t.claims["nbf"]; has {
		begins, err := t.moment("nbf")
		if err != nil {
			return time.Time{}, err
		}
		if begins.After(now.Add(skew)) {
			return time.Time{}, errors.New("it is not valid yet (nbf)")
		}
	}
	return end, nil
}

// checkAudience verifies that every audience of a token is listed: one that another service accepts too could be
// presented here by that service.
func (i *issuer) checkAudience(claim any) error {
	var audiences []string
	switch v := claim.(type) {
	case string:
		audiences = []string{v}
	case []any:
		for _, one := range v {
			text, _ := one.(string)
			audiences = append(audiences, text)
		}
	}
	for _, audience := range audiences {
		if !slices.Contains(i.settings.Audience, audience) {
			return fmt.Errorf("it has another audience (aud) than %s", strings.Join(i.settings.Audience, ", "))
		}
	}
	if len(audiences) == 0 {
		return errors.New("it has no audience (aud)")
	}
	return nil
}
