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

// Outcome is the outcome of a check.
type Outcome string

// The outcomes.
const (
	OK         Outcome = "ok"
	Warning    Outcome = "warning"
	Failed     Outcome = "failure"
	NotChecked Outcome = "not checked" // a check that it depends on has failed, or it is not possible
)

// Check is one line of the doctor's report.
type Check struct {
	Name    string  `json:"check"`
	Outcome Outcome `json:"result"`
	Detail  string  `json:"detail"`
	Hint    string  `json:"hint,omitempty"`
}

func ok(format string, args ...any) Check {
	return Check{Outcome: OK, Detail: fmt.Sprintf(format, args...)}
}

func warning(hint, format string, args ...any) Check {
	return Check{Outcome: Warning, Detail: fmt.Sprintf(format, args...), Hint: hint}
}

func failed(err error) Check {
	f := failure.From(err)
	return Check{Outcome: Failed, Detail: joinLines(f.Error()), Hint: joinLines(f.Hint)}
}

// joinLines joins the lines of a message that has a list.
func joinLines(text string) string { return strings.ReplaceAll(text, "\n ", "") }

// An examination is the state of Doctor: what its checks have found so far, for those that follow.
type examination struct {
	settings *keystore.Reference
	store    keystore.Store
	key      keystore.Key
	info     key.Info
	known    []*x509.Certificate // of the certificate-chain file and the token
	leaf     *x509.Certificate
	chain    []*x509.Certificate
}

// A step is one check of Doctor. needs is the check that must have passed.
type step struct {
	name, needs string
	run         func(context.Context) (Check, error)
}

// Doctor examines a key and what a signature with it needs, from the module's library to Notation's trust policy. It
// never tries a PIN if a wrong one would lock the token, whatever the settings allow.
func Doctor(ctx context.Context, s *keystore.Reference) []Check {
	careful := *s
	careful.AllowFinalPINTry = false
	e := &examination{settings: &careful}
	defer func() {
		if e.store != nil {
			e.store.Close()
		}
	}()
	steps := e.ofModule()
	if s.Broker != "" {
		steps = e.ofBroker()
	}
	var report []Check
	for _, check := range steps {
		done := slices.IndexFunc(report, func(c Check) bool { return c.Name == check.needs })
		c := Check{Outcome: NotChecked, Detail: "needs: " + check.needs}
		if done < 0 || report[done].Outcome == OK || report[done].Outcome == Warning {
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

// ofModule lists the checks of a key that this process uses in its module.
func (e *examination) ofModule() []step {
	return []step{
		{"module", "", e.checkModule},
		{"token", "module", e.checkToken},
		{"PIN", "token", e.checkPIN},
		{"login", "PIN", e.checkLogin},
		{"key", "login", e.checkKey},
		{"attributes", "key", e.checkAttributes},
		{"certificate", "key", e.checkCertificate},
		{"chain", "certificate", e.checkChain},
		{"expiry", "certificate", e.checkExpiry},
		{"plugin", "", checkPlugin},
		{"signing key", "key", e.checkSigningKey},
		{"trust policy", "chain", e.checkTrustPolicy},
		{"test signature", "key", e.checkSignature},
	}
}

// Survey examines the module and its tokens, or the broker, the plugin, and each signing key of this plugin in
// Notation's list, without a login.
func Survey(ctx context.Context, s *keystore.Reference) []Check {
	var report []Check
	add := func(name string, c Check, err error) {
		if err != nil {
			c = failed(err)
		}
		c.Name = name
		report = append(report, c)
	}
	if s.Broker != "" {
		c, err := surveyBroker(ctx, s)
		add("broker", c, err)
	} else {
		tokens, err := s.Tokens(ctx)
		add("module", describeModule(s.ModulePath, tokens), err)
		for _, t := range tokens {
			if t.Initialized {
				c, err := checkPINState(t)
				add(fmt.Sprintf("token %q", t.Label), c, err)
			}
		}
	}
	c, err := checkPlugin(ctx)
	add("plugin", c, err)
	keys, err := loadSigningKeys()
	if err != nil {
		add("signing keys", Check{}, err)
		return report
	}
	for _, k := range keys.own() {
		c, err := checkWithoutLogin(ctx, s.Keystore(), k)
		add(fmt.Sprintf("signing key %q", k.Name), c, err)
	}
	for _, k := range keys.own() {
		if c, err := checkRotation(k.Name); c.Outcome != OK || err != nil {
			add(fmt.Sprintf("rotation of %q", k.Name), c, err)
		}
	}
	return report
}

// expiryWarning is how long before the end of a certificate the doctor warns.
const expiryWarning = 30 * 24 * time.Hour

// checkValidity checks the certificate of a chain that expires first.
func checkValidity(chain []*x509.Certificate, now time.Time) (Check, error) {
	first := chain[0]
	for _, cert := range chain {
		if cert.NotAfter.Before(first.NotAfter) {
			first = cert
		}
	}
	const hint = "replace key and certificate with 'notation-hsm key rotate'; or import a new certificate for the key"
	day, left := first.NotAfter.UTC().Format("2006-01-02 15:04 MST"), int(first.NotAfter.Sub(now)/(24*time.Hour))
	switch {
	case now.After(first.NotAfter):
		return Check{}, failure.New(failure.Invalid, "the certificate of %q expired on %s", first.Subject, day).WithHint(hint)
	case first.NotAfter.Sub(now) < expiryWarning:
		return warning(hint, "the certificate of %q expires in %d days, on %s", first.Subject, left, day), nil
	}
	return ok("in %d days, on %s", left, day), nil
}
