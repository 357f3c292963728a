package custody

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
)

// Result is how a check came out.
type Result string

const (
	OK         Result = "ok"
	Warning    Result = "warning"
	Failed     Result = "failure"
	NotChecked Result = "not checked" // what it needs has failed
)

// Check is one line of the doctor's report.
type Check struct {
	Name   string `json:"check"`
	Result Result `json:"result"`
	Detail string `json:"detail"`
	Hint   string `json:"hint,omitempty"`
}

func ok(format string, args ...any) Check {
	return Check{Result: OK, Detail: fmt.Sprintf(format, args...)}
}

func warning(hint, format string, args ...any) Check {
	return Check{Result: Warning, Detail: fmt.Sprintf(format, args...), Hint: hint}
}

func failed(err error) Check {
	f := failure.From(err)
	return Check{Result: Failed, Detail: oneLine(f.Error()), Hint: oneLine(f.Hint)}
}

// oneLine joins the lines of an error that lists things.
func oneLine(text string) string { return strings.ReplaceAll(text, "\n ", "") }

// A visit is one examination of a key: what the checks have found so far, for those that follow.
type visit struct {
	settings *keystore.Reference
	store    keystore.Store
	key      keystore.Key
	info     key.Info
	known    []*x509.Certificate // of the certificate-chain file and the token
	leaf     *x509.Certificate
	chain    []*x509.Certificate
}

// Doctor examines everything between a key and an image that verifies, from the module's file to the trust policy. It
// never tries a PIN that could be the last one, whatever the settings say: a check-up must not be what locks a token.
func Doctor(ctx context.Context, s *keystore.Reference) []Check {
	careful := *s
	careful.AllowFinalPINTry = false
	v := &visit{settings: &careful}
	defer func() {
		if v.store != nil {
			v.store.Close()
		}
	}()
	var report []Check
	for _, check := range []struct {
		name, needs string
		run         func(context.Context) (Check, error)
	}{
		{"module", "", v.module},
		{"token", "module", v.token},
		{"PIN", "token", v.pin},
		{"login", "PIN", v.login},
		{"key", "login", v.findKey},
		{"attributes", "key", v.attributes},
		{"certificate", "key", v.certificate},
		{"chain", "certificate", v.wholeChain},
		{"expiry", "certificate", v.expiry},
		{"plugin", "", pluginCheck},
		{"signing key", "key", v.registered},
		{"trust policy", "chain", v.trusted},
		{"test signature", "key", v.signature},
	} {
		done := slices.IndexFunc(report, func(c Check) bool { return c.Name == check.needs })
		c := Check{Result: NotChecked, Detail: "needs: " + check.needs}
		if done < 0 || report[done].Result == OK || report[done].Result == Warning {
			var err error
			if c, err = check.run(ctx); err != nil {
				c = failed(err)
			}
		}
		c.Name = check.name
		report = append(report, c)
	}
	return report
}

// Survey is the doctor's look at the whole: the module, its tokens, the plugin, and in short each signing key that
// Notation uses with it. It logs in nowhere.
func Survey(ctx context.Context, s *keystore.Reference) []Check {
	tokens, err := s.Tokens(ctx)
	var report []Check
	add := func(name string, c Check, err error) {
		if err != nil {
			c = failed(err)
		}
		c.Name = name
		report = append(report, c)
	}
	add("module", loads(s.ModulePath, tokens), err)
	for _, t := range tokens {
		if t.Initialized {
			c, err := pinState(t)
			add(fmt.Sprintf("token %q", t.Label), c, err)
		}
	}
	c, err := pluginCheck(ctx)
	add("plugin", c, err)
	keys, err := loadSigningKeys()
	if err != nil {
		add("signing keys", Check{}, err)
		return report
	}
	for _, k := range keys.own() {
		c, err := glance(ctx, s.Keystore(), k)
		add(fmt.Sprintf("signing key %q", k.Name), c, err)
	}
	for _, k := range keys.own() {
		if c, err := rotating(k.Name); c.Result != OK || err != nil {
			add(fmt.Sprintf("rotation of %q", k.Name), c, err)
		}
	}
	return report
}

// soon is how long before its end a certificate is worth a warning.
const soon = 30 * 24 * time.Hour

// expires judges when the first certificate of a chain ends.
func expires(chain []*x509.Certificate, now time.Time) (Check, error) {
	first := chain[0]
	for _, cert := range chain {
		if cert.NotAfter.Before(first.NotAfter) {
			first = cert
		}
	}
	const hint = "renew it: 'notation-hsm key rotate' makes a new key with a certificate like it; or import a new certificate for this key"
	day, left := first.NotAfter.UTC().Format("2006-01-02 15:04 MST"), int(first.NotAfter.Sub(now)/(24*time.Hour))
	switch {
	case now.After(first.NotAfter):
		return Check{}, failure.New(failure.Invalid, "the certificate of %q expired on %s", first.Subject, day).WithHint(hint)
	case first.NotAfter.Sub(now) < soon:
		return warning(hint, "the certificate of %q expires in %d days, on %s", first.Subject, left, day), nil
	}
	return ok("in %d days, on %s", left, day), nil
}
