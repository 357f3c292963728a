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

func (e *examination) checkModule(ctx context.Context) (Check, error) {
	tokens, err := e.settings.Tokens(ctx)
	return describeModule(e.settings.ModulePath, tokens), err
}

// describeModule describes a module and its tokens. It warns of a library that others can change, and does not fail:
// vendors install libraries for users and groups of their own.
func describeModule(path string, tokens []key.Token) Check {
	initialized := slices.DeleteFunc(slices.Clone(tokens), func(t key.Token) bool { return !t.Initialized })
	c := ok("%s, with %d initialised token(s)", path, len(initialized))
	if !filepath.IsAbs(path) {
		return c // a name for the dynamic linker, or the URL of a NetHSM
	}
	if err := ownership.Check(path, os.Getuid()); err != nil {
		cause := failure.From(err)
		return warning(cause.Hint, "%s; its code runs as this user, and others can change it: %v", c.Detail, cause)
	}
	return c
}

func (e *examination) checkToken(ctx context.Context) (_ Check, err error) {
	if e.store, err = e.settings.Open(ctx); err != nil {
		e.store = nil
		return Check{}, err
	}
	t := e.store.Describe()
	if t.WriteProtect {
		return warning("create keys and store certificates with the vendor's tool; signing works", "%s is read-only", t.URI),
			nil
	}
	return ok("%s", t.URI), nil
}

func (e *examination) checkPIN(_ context.Context) (Check, error) {
	return checkPINState(e.store.Describe())
}

// checkPINState checks what a token reports of its PIN. Where it fails, the PIN is not tried.
func checkPINState(t key.Token) (Check, error) {
	switch t.PIN {
	case key.PINLocked:
		return Check{}, failure.New(failure.Denied, "the user PIN is locked").
			WithHint("have the security officer reset the PIN with the vendor's tool")
	case key.PINFinalTry:
		return Check{}, failure.New(failure.Denied, "the PIN was not tried: one more wrong PIN locks the token").
			WithHint("log in once with the right PIN and the vendor's tool, which resets the count")
	case key.PINCountLow:
		return warning("find out who entered it: a few more lock the token",
			"a wrong PIN was entered since the last successful login"), nil
	case key.PINExpired:
		return warning("change it with the vendor's tool", "the PIN must be changed"), nil
	case key.PINNotSet:
		return warning("if the login fails, have the security officer set a user PIN",
			"the token reports that no user PIN is set"), nil
	case key.PINNotTold:
		return ok("the token does not report wrong PINs; a wrong one is tried once"), nil
	}
	return ok("no wrong PIN was entered since the last successful login"), nil
}

func (e *examination) checkLogin(ctx context.Context) (Check, error) {
	if err := e.store.Login(ctx); err != nil {
		return Check{}, err
	}
	if !e.store.Describe().LoginRequired {
		return ok("the token needs no login"), nil
	}
	return ok("the PIN is right"), nil
}

func (e *examination) checkKey(ctx context.Context) (_ Check, err error) {
	if e.key, err = e.store.Key(ctx, nil); err != nil {
		return Check{}, err
	}
	if e.info, err = e.key.Info(ctx); err != nil {
		return Check{}, err
	}
	spec, err := key.SpecOf(e.key.Public())
	return ok("%s, %s", e.info.URI, spec.Name), err
}

// checkAttributes compares the key with what Generate creates: a key for signing alone, whose value never was readable
// outside the token.
func (e *examination) checkAttributes(_ context.Context) (Check, error) {
	i := e.info
	const replace = "generate a new key with 'notation-hsm key generate'"
	switch {
	case isFalse(i.Sign):
		return Check{}, failure.New(failure.Denied, "the key cannot sign (CKA_SIGN is false)").
			WithHint("use or generate a signing key")
	case isFalse(i.Sensitive):
		return Check{}, failure.New(failure.Denied,
			"everyone who is logged in can read the key (CKA_SENSITIVE is false)").WithHint(replace)
	case isTrue(i.Extractable) && !isTrue(i.WrapWithTrusted):
		return Check{}, failure.New(failure.Denied,
			"the key can leave the token wrapped by any other key (CKA_EXTRACTABLE is true)").WithHint(replace)
	}
	if remarks := attributeRemarks(i); len(remarks) > 0 {
		return warning("if this is not intended, "+replace, "%s", strings.Join(remarks, "; ")), nil
	}
	text := "sensitive"
	if isTrue(i.NeverExtractable) {
		text += ", never extractable"
	} else {
		text += ", not extractable"
	}
	if isTrue(i.Local) {
		text += ", generated on the token"
	}
	return ok("%s, for signing alone", text), nil
}

// attributeRemarks lists what is different from a key that Generate creates, but can be intended.
func attributeRemarks(i key.Info) (remarks []string) {
	for _, remark := range []struct {
		applies bool
		text    string
	}{
		{isTrue(i.Extractable), "it can leave the token, wrapped by a key that the security officer trusts, as backups need"},
		{isFalse(i.AlwaysSensitive), "it was not always sensitive (CKA_ALWAYS_SENSITIVE)"},
		{isFalse(i.NeverExtractable) && !isTrue(i.Extractable), "it was extractable before (CKA_NEVER_EXTRACTABLE)"},
		{isFalse(i.Local), "it was not generated on this token, so a copy may exist (CKA_LOCAL)"},
		{isTrue(i.Decrypt), "it can also decrypt"},
		{isTrue(i.Unwrap), "it can also unwrap keys"},
		{isTrue(i.Derive), "it can also derive keys"},
		{i.Sensitive == nil || i.Extractable == nil, "the module does not show whether it can leave the token"},
	} {
		if remark.applies {
			remarks = append(remarks, remark.text)
		}
	}
	return remarks
}

func (e *examination) checkCertificate(ctx context.Context) (_ Check, err error) {
	if e.known, err = certificates(ctx, e.store, e.settings); err != nil {
		return Check{}, err
	}
	if e.leaf = certs.LeafOf(e.key.Public(), e.known, time.Now()); e.leaf == nil {
		return Check{}, withoutCertificate(e.info.URI)
	}
	return ok("%q, issued by %q", e.leaf.Subject, e.leaf.Issuer), nil
}

// checkChain applies Notation's rules at a time when no certificate of the chain had expired: checkExpiry reports that.
func (e *examination) checkChain(_ context.Context) (Check, error) {
	chain, err := certs.Chain(e.leaf, e.known, nil, time.Now())
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
	e.chain = chain
	return ok("complete up to the root (length %d), and valid by Notation's rules", len(chain)), nil
}

func (e *examination) checkExpiry(_ context.Context) (Check, error) {
	chain := e.chain
	if chain == nil {
		chain = []*x509.Certificate{e.leaf}
	}
	return checkValidity(chain, time.Now())
}

func (e *examination) checkSignature(ctx context.Context) (Check, error) {
	if err := proveSigning(ctx, e.key, e.key.Public()); err != nil {
		return Check{}, err
	}
	return ok("made in the module, and verified"), nil
}
