package custody

import (
	"context"
	"crypto/x509"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/ownership"
)

func (v *visit) module(ctx context.Context) (Check, error) {
	tokens, err := v.settings.Tokens(ctx)
	return loads(v.settings.ModulePath, tokens), err
}

// loads says what a module has. That others can change it is a warning and never a refusal: vendors install their
// libraries for users and groups of their own, who are trusted with the keys.
func loads(path string, tokens []key.Token) Check {
	initialized := slices.DeleteFunc(slices.Clone(tokens), func(t key.Token) bool { return !t.Initialized })
	c := ok("%s, with %d initialised token(s)", path, len(initialized))
	if !filepath.IsAbs(path) {
		return c // the linker finds it; or it is the URL of a NetHSM
	}
	if err := ownership.Check(path, os.Getuid()); err != nil {
		cause := failure.From(err)
		return warning(cause.Hint, "%s; it runs as this user, and others can change it: %v", c.Detail, cause)
	}
	return c
}

func (v *visit) token(ctx context.Context) (_ Check, err error) {
	if v.store, err = v.settings.Open(ctx); err != nil {
		v.store = nil
		return Check{}, err
	}
	t := v.store.Describe()
	if t.WriteProtect {
		return warning("that is enough to sign; keys and certificates need the vendor's tool", "%s is read-only", t.URI), nil
	}
	return ok("%s", t.URI), nil
}

func (v *visit) pin(_ context.Context) (Check, error) { return pinState(v.store.Describe()) }

// pinState judges what a token says of its PIN. What fails here keeps the PIN from being tried.
func pinState(t key.Token) (Check, error) {
	switch t.PIN {
	case key.PINLocked:
		return Check{}, failure.New(failure.Denied, "the user PIN is locked").
			WithHint("the security officer has to reset it with the vendor's tool")
	case key.PINFinalTry:
		return Check{}, failure.New(failure.Denied, "one more wrong PIN locks the token, so the PIN is not tried").
			WithHint("give the right PIN to the vendor's tool once, which resets the count")
	case key.PINCountLow:
		return warning("find out who gave it: a few more lock the token", "a wrong PIN was given since the last right one"),
			nil
	case key.PINExpired:
		return warning("change it with the vendor's tool", "the PIN must be changed"), nil
	case key.PINNotSet:
		return warning("if the login fails, the security officer has to set a user PIN",
			"the token says that no user PIN is set"), nil
	}
	if t.PIN == key.PINNotTold {
		return ok("it tells nothing of wrong ones; a wrong one is tried once"), nil
	}
	return ok("no wrong PIN was given since the last right one"), nil
}

func (v *visit) login(ctx context.Context) (Check, error) {
	if err := v.store.Login(ctx); err != nil {
		return Check{}, err
	}
	if !v.store.Describe().LoginRequired {
		return ok("the token asks for none"), nil
	}
	return ok("the PIN is right"), nil
}

func (v *visit) findKey(ctx context.Context) (_ Check, err error) {
	if v.key, err = v.store.Key(ctx, nil); err != nil {
		return Check{}, err
	}
	if v.info, err = v.key.Info(ctx); err != nil {
		return Check{}, err
	}
	spec, err := key.SpecOf(v.key.Public())
	return ok("%s, %s", v.info.URI, spec.Name), err
}

// attributes holds the key against what a key made here is: it can't be read, it never could, and it does nothing but
// sign.
func (v *visit) attributes(_ context.Context) (Check, error) {
	is := func(attribute *bool) bool { return attribute != nil && *attribute }
	isNot := func(attribute *bool) bool { return attribute != nil && !*attribute }
	i := v.info
	const again = "make a new key with 'notation-hsm key generate'"
	switch {
	case isNot(i.Sign):
		return Check{}, failure.New(failure.Denied, "the key may not sign (CKA_SIGN)").WithHint("use or make a signing key")
	case isNot(i.Sensitive):
		return Check{}, failure.New(failure.Denied, "the key can be read by anyone who is logged in (CKA_SENSITIVE is false)").
			WithHint(again)
	case is(i.Extractable) && !is(i.WrapWithTrusted):
		return Check{}, failure.New(failure.Denied,
			"the key can be taken out of the token under any other key (CKA_EXTRACTABLE)").
			WithHint(again)
	}
	var remarks []string
	for _, remark := range []struct {
		applies bool
		text    string
	}{
		{is(i.Extractable), "it can leave the token, wrapped by a key that the security officer trusts, as backups need"},
		{isNot(i.AlwaysSensitive), "it was not always sensitive (CKA_ALWAYS_SENSITIVE)"},
		{isNot(i.NeverExtractable) && !is(i.Extractable), "it was extractable once (CKA_NEVER_EXTRACTABLE)"},
		{isNot(i.Local), "it was not made on this token, so a copy may exist (CKA_LOCAL)"},
		{is(i.Decrypt), "it can also decrypt"},
		{is(i.Unwrap), "it can also unwrap keys"},
		{is(i.Derive), "it can also derive keys"},
		{i.Sensitive == nil || i.Extractable == nil, "the module does not say whether it can be taken out"},
	} {
		if remark.applies {
			remarks = append(remarks, remark.text)
		}
	}
	if len(remarks) > 0 {
		return warning("if that is not what you meant, "+again, "%s", strings.Join(remarks, "; ")), nil
	}
	told := "sensitive"
	if is(i.NeverExtractable) {
		told += ", never extractable"
	} else {
		told += ", not extractable"
	}
	if is(i.Local) {
		told += ", made on the token"
	}
	return ok("%s, for signing alone", told), nil
}

func (v *visit) certificate(ctx context.Context) (_ Check, err error) {
	if v.known, err = certificates(ctx, v.store, v.settings); err != nil {
		return Check{}, err
	}
	if v.leaf = certs.LeafOf(v.key.Public(), v.known, time.Now()); v.leaf == nil {
		return Check{}, failure.New(failure.Invalid, "the key has no certificate").
			WithHint("make one with 'notation-hsm cert self-sign', or 'cert csr' and your CA; then 'notation-hsm cert import'")
	}
	return ok("%q, issued by %q", v.leaf.Subject, v.leaf.Issuer), nil
}

// wholeChain applies Notation's rules as they were before the first certificate ended: its end is another check's
// matter.
func (v *visit) wholeChain(_ context.Context) (Check, error) {
	chain, err := certs.Chain(v.leaf, v.known, nil, time.Now())
	if err != nil {
		return Check{}, err
	}
	at := time.Now()
	for _, cert := range chain {
		if cert.NotAfter.Before(at) {
			at = cert.NotAfter
		}
	}
	if err := certs.Check(chain, at); err != nil {
		return Check{}, err
	}
	v.chain = chain
	return ok("whole up to the root (length %d), and as Notation's rules want it", len(chain)), nil
}

func (v *visit) expiry(_ context.Context) (Check, error) {
	chain := v.chain
	if chain == nil {
		chain = []*x509.Certificate{v.leaf}
	}
	return expires(chain, time.Now())
}

func (v *visit) signature(ctx context.Context) (Check, error) {
	if err := prove(ctx, v.key, v.key.Public()); err != nil {
		return Check{}, err
	}
	return ok("made in the module, and verified"), nil
}
