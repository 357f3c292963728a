package custody

import (
	"crypto/x509"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-go/dir"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// outcomes returns the outcome of each check by its name.
func outcomes(report []Check) map[string]Outcome {
	all := map[string]Outcome{}
	for _, c := range report {
		all[c.Name] = c.Outcome
	}
	return all
}

// find returns the check of a name.
func find(t *testing.T, report []Check, name string) Check {
	t.Helper()
	i := slices.IndexFunc(report, func(c Check) bool { return c.Name == name })
	if i < 0 {
		t.Fatalf("there is no check %q in %+v", name, report)
	}
	return report[i]
}

// wantCheck fails the test unless a check has an outcome and a text.
func wantCheck(t *testing.T, report []Check, name string, outcome Outcome, text string) {
	t.Helper()
	if c := find(t, report, name); c.Outcome != outcome || !strings.Contains(c.Detail, text) ||
		(outcome == Failed || outcome == Warning) && c.Hint == "" {
		t.Errorf("%+v, want %s and %q", c, outcome, text)
	}
}

// trustPolicy writes a trust policy with one statement, and a trust store with a certificate.
func trustPolicy(t *testing.T, level, store, identity string, cert *x509.Certificate) {
	t.Helper()
	policy := map[string]any{"version": "1.0", "trustPolicies": []any{map[string]any{
		"name": "release", "registryScopes": []string{"registry.example.com/app"},
		"signatureVerification": map[string]string{"level": level},
	}}}
	if level != "skip" {
		statement := policy["trustPolicies"].([]any)[0].(map[string]any)
		statement["trustStores"], statement["trustedIdentities"] = []string{store}, []string{identity}
	}
	for path, data := range map[string][]byte{
		"trustpolicy.json":                       must[[]byte](t)(json.Marshal(policy)),
		"truststore/x509/ca/release/release.pem": certs.Encode([]*x509.Certificate{cert}),
	} {
		path = filepath.Join(dir.UserConfigDir, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// leafOf returns the certificate of a key.
func leafOf(t *testing.T, s *keystore.Reference) *x509.Certificate {
	t.Helper()
	data, err := Export(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return must[[]*x509.Certificate](t)(certs.Parse(data))[0]
}

// TestDoctor finds nothing wrong with a key that Notation signs with and trusts.
func TestDoctor(t *testing.T) {
	m := fixture(t, "a")
	s := generate(t, m, "a", "release")
	if _, err := Install(); err != nil {
		t.Fatal(err)
	}
	register(t, "signing", "pkcs11:token=a;object=release")
	trustPolicy(t, "strict", "ca:release", "x509.subject: C=CH, S=Zurich, O=Example", leafOf(t, s))
	report := Doctor(t.Context(), s)
	for _, c := range report {
		want := OK
		if c.Name == "module" { // the library of this module is no file
			want = Warning
		}
		if c.Outcome != want {
			t.Errorf("%+v", c)
		}
	}
	if len(report) != 13 {
		t.Errorf("%d checks", len(report))
	}
	wantCheck(t, report, "trust policy", OK, `accepted by statement "release", for registry.example.com/app`)
	wantCheck(t, report, "expiry", OK, "in 364 days")
	survey := Survey(t.Context(), m.Reference("a", ""))
	wantCheck(t, survey, `signing key "signing"`, OK, "no login was made")
	wantCheck(t, survey, `token "a"`, OK, "no wrong PIN")
}

// TestDoctorFinalPIN tries no PIN if a wrong one would lock the token, even if the settings allow it.
func TestDoctorFinalPIN(t *testing.T) {
	for state, c := range map[key.PINState]struct {
		outcome Outcome
		login   Outcome
		text    string
	}{
		key.PINFinalTry: {Failed, NotChecked, "was not tried"},
		key.PINLocked:   {Failed, NotChecked, "is locked"},
		key.PINCountLow: {Warning, OK, "a wrong PIN was entered"},
		key.PINExpired:  {Warning, OK, "must be changed"},
		key.PINNotSet:   {Warning, OK, "no user PIN is set"},
		key.PINNotTold:  {OK, OK, "does not report wrong PINs"},
	} {
		m := fixture(t, "a")
		s := generate(t, m, "a", "release")
		s.AllowFinalPINTry = true
		m.ShowToken(func(t *key.Token) { t.PIN = state })
		before := m.Calls("Login")
		report := Doctor(t.Context(), s)
		wantCheck(t, report, "PIN", c.outcome, c.text)
		if login := find(t, report, "login"); login.Outcome != c.login ||
			(login.Outcome == NotChecked) != (m.Calls("Login") == before) {
			t.Errorf("%s: %+v, and %d logins", state, login, m.Calls("Login")-before)
		}
		wantCheck(t, Survey(t.Context(), m.Reference("a", "")), `token "a"`, c.outcome, c.text)
	}
	// The keystore gets settings that do not allow it either.
	m := fixture(t, "a")
	s := generate(t, m, "a", "release")
	s.AllowFinalPINTry = true
	spy := &openSpy{Module: m}
	Doctor(t.Context(), keystore.New(nil, spy).Reference(&s.Settings))
	if len(spy.opened) != 1 || spy.opened[0].AllowFinalPINTry {
		t.Errorf("opened with %+v", spy.opened)
	}
}

// TestDoctorAttributes judges what the module shows of a key.
func TestDoctorAttributes(t *testing.T) {
	yes, no := true, false
	for name, c := range map[string]struct {
		change  func(*key.Info)
		outcome Outcome
		text    string
	}{
		"not signing":    {func(i *key.Info) { i.Sign = &no }, Failed, "CKA_SIGN is false"},
		"readable":       {func(i *key.Info) { i.Sensitive = &no }, Failed, "CKA_SENSITIVE is false"},
		"extractable":    {func(i *key.Info) { i.Extractable = &yes }, Failed, "CKA_EXTRACTABLE is true"},
		"for backups":    {func(i *key.Info) { i.Extractable, i.WrapWithTrusted = &yes, &yes }, Warning, "as backups need"},
		"once readable":  {func(i *key.Info) { i.AlwaysSensitive = &no }, Warning, "CKA_ALWAYS_SENSITIVE"},
		"once let out":   {func(i *key.Info) { i.NeverExtractable = &no }, Warning, "CKA_NEVER_EXTRACTABLE"},
		"imported":       {func(i *key.Info) { i.Local = &no }, Warning, "CKA_LOCAL"},
		"decrypts":       {func(i *key.Info) { i.Decrypt = &yes }, Warning, "it can also decrypt"},
		"unwraps":        {func(i *key.Info) { i.Unwrap = &yes }, Warning, "it can also unwrap keys"},
		"derives":        {func(i *key.Info) { i.Derive = &yes }, Warning, "it can also derive keys"},
		"nothing shown":  {func(i *key.Info) { i.Sensitive = nil }, Warning, "does not show whether it can leave the token"},
		"little shown":   {func(i *key.Info) { i.NeverExtractable, i.Local = nil, nil }, OK, "sensitive, not extractable"},
		"all as it is":   {func(*key.Info) {}, OK, "sensitive, never extractable, generated on the token, for signing alone"},
		"wrapped by any": {func(i *key.Info) { i.Extractable, i.WrapWithTrusted = &yes, nil }, Failed, "CKA_EXTRACTABLE"},
	} {
		m := fixture(t, "a")
		s := generate(t, m, "a", "release")
		m.ShowInfo(c.change)
		report := Doctor(t.Context(), s)
		t.Run(name, func(t *testing.T) { wantCheck(t, report, "attributes", c.outcome, c.text) })
	}
}

// TestDoctorFaults finds what is wrong, and leaves out checks that need what has failed.
func TestDoctorFaults(t *testing.T) {
	m := fixture(t, "a")
	s := m.Reference("a", "release")
	m.Fail("Tokens", errInjected)
	report := Doctor(t.Context(), s)
	wantCheck(t, report, "module", Failed, "injected")
	wantCheck(t, report, "token", NotChecked, "needs: module")
	wantCheck(t, report, "test signature", NotChecked, "needs: key")
	wantCheck(t, report, "plugin", Failed, "is not installed")
	m.Fail("Tokens", nil)
	if got := outcomes(Doctor(t.Context(), s)); got["key"] != Failed || got["login"] != OK || got["chain"] != NotChecked {
		t.Errorf("no key: %v", got)
	}
	generateWithout(t, m, "release")
	m.ShowToken(func(t *key.Token) { t.WriteProtect, t.LoginRequired = true, false })
	report = Doctor(t.Context(), s)
	wantCheck(t, report, "token", Warning, "is read-only")
	wantCheck(t, report, "login", OK, "needs no login")
	wantCheck(t, report, "certificate", Failed, "has no certificate")
	wantCheck(t, report, "signing key", Warning, "not in Notation's list")
	wantCheck(t, report, "test signature", OK, "made in the module")
	m.Fail("Sign", errInjected)
	wantCheck(t, Doctor(t.Context(), s), "test signature", Failed, "injected")
}

// TestDoctorTrustPolicy says why Notation would not trust the chain.
func TestDoctorTrustPolicy(t *testing.T) {
	m := fixture(t, "a")
	s := generate(t, m, "a", "release")
	other := leafOf(t, generate(t, m, "a", "other"))
	own := leafOf(t, s)
	wantCheck(t, Doctor(t.Context(), s), "trust policy", Warning, "has no trust policy")
	for name, c := range map[string]struct {
		level, store, identity string
		cert                   *x509.Certificate
		outcome                Outcome
		text                   string
	}{
		"everyone":          {"strict", "ca:release", "*", own, OK, `accepted by statement "release"`},
		"another subject":   {"strict", "ca:release", "x509.subject: C=CH, ST=Bern, O=Example", own, Failed, "matches none"},
		"another root":      {"strict", "ca:release", "*", other, Failed, "have no certificate of the chain"},
		"no store":          {"strict", "ca:missing", "*", own, Failed, "missing"},
		"another kind":      {"strict", "signingAuthority:release", "*", own, Failed, "have no certificate of the chain"},
		"nothing":           {"skip", "", "", own, Failed, "which verifies nothing"},
		"an unknown policy": {"strictest", "ca:release", "*", own, Failed, "is not valid"},
	} {
		trustPolicy(t, c.level, c.store, c.identity, c.cert)
		t.Run(name, func(t *testing.T) { wantCheck(t, Doctor(t.Context(), s), "trust policy", c.outcome, c.text) })
	}
}

// TestExpiry reports the certificate of a chain that expires first.
func TestExpiry(t *testing.T) {
	m := fixture(t, "a")
	cert := leafOf(t, generate(t, m, "a", "release"))
	issuer := *cert
	for days, c := range map[int]struct {
		outcome Outcome
		text    string
	}{-1: {Failed, "expired on"}, 0: {Warning, "expires in 0 days"}, 29: {Warning, "expires in 29 days"},
		30: {OK, "in 30 days"}} {
		issuer.NotAfter = time.Now().Add(time.Duration(days)*24*time.Hour + time.Hour)
		if days < 0 {
			issuer.NotAfter = time.Now().Add(-time.Hour)
		}
		check, err := checkValidity([]*x509.Certificate{cert, &issuer}, time.Now())
		if err != nil {
			check = failed(err)
		}
		check.Name = "expiry"
		wantCheck(t, []Check{check}, "expiry", c.outcome, c.text)
	}
}

// TestSurvey looks at each signing key of this plugin without a login.
func TestSurvey(t *testing.T) {
	m := fixture(t, "a")
	generate(t, m, "a", "release")
	generateWithout(t, m, "bare")
	register(t, "release", "pkcs11:token=a;object=release")
	register(t, "bare", "pkcs11:token=a;object=bare")
	keys := must[*signingKeys](t)(loadSigningKeys())
	keys.Keys = append(keys.Keys, signingKey{Name: "gone", ID: "pkcs11:token=none;object=x", PluginName: "hsm"},
		signingKey{Name: "unknown", ID: "alias", PluginName: "hsm"}, signingKey{Name: "other", ID: "x", PluginName: "other"})
	if err := keys.save(); err != nil {
		t.Fatal(err)
	}
	journal := must[string](t)(journalPath("release"))
	if err := os.MkdirAll(filepath.Dir(journal), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(journal, []byte(`{"name":"release","begun":"2026-01-02T03:04:05Z"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	before, spy := m.Calls("Login"), &openSpy{Module: m}
	report := Survey(t.Context(), keystore.New(nil, spy).Reference(&m.Reference("a", "").Settings))
	if m.Calls("Login") != before {
		t.Error("a login was made")
	}
	for _, settings := range spy.opened { // a module that shows nothing without a login must not get the PIN
		if settings.PIN != "" || settings.PINSource != "" {
			t.Errorf("%s was opened with a PIN", settings.Key)
		}
	}
	got := outcomes(report)
	for name, want := range map[string]Outcome{`signing key "release"`: OK, `signing key "bare"`: Warning,
		`signing key "gone"`: Failed, `signing key "unknown"`: Failed, `rotation of "release"`: Warning, "plugin": Failed} {
		if got[name] != want {
			t.Errorf("%s: %q, want %q", name, got[name], want)
		}
	}
	if _, there := got[`signing key "other"`]; there {
		t.Error("the key of another plugin was examined")
	}
	wantCheck(t, report, `rotation of "release"`, Warning, "started on 2026-01-02 and is not finished")
	if err := os.WriteFile(must[string](t)(signingKeysPath()), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	wantCheck(t, Survey(t.Context(), m.Reference("a", "")), "signing keys", Failed, "list of signing keys")
}

// generateWithout generates a signing key without a certificate on token "a".
func generateWithout(t *testing.T, m *keystoretest.Module, label string) {
	t.Helper()
	_, _, err := Generate(t.Context(), m.Reference("a", ""), KeyRequest{Spec: "EC-256", Usage: "sign", Label: label})
	if err != nil {
		t.Fatal(err)
	}
}
