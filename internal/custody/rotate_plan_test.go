package custody

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/ca"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// TestRotateRefused creates nothing where a rotation could not be finished.
func TestRotateRefused(t *testing.T) {
	yes := true
	for name, c := range map[string]struct {
		arrange func(*testing.T, *keystoretest.Module, *RotationRequest)
		kind    failure.Kind
		text    string
	}{
		"no such signing key": {func(_ *testing.T, _ *keystoretest.Module, o *RotationRequest) { o.Name = "none" },
			failure.NotFound, `no signing key "none"`},
		"an answer to no request": {func(_ *testing.T, _ *keystoretest.Module, o *RotationRequest) {
			o.Certificate = "x.pem"
		}, failure.NotFound, "waits for a certificate"},
		"no such CA": {func(_ *testing.T, _ *keystoretest.Module, o *RotationRequest) { o.CA = "none" },
			failure.NotFound, `there is no CA "none"`},
		"a token that is read-only": {func(_ *testing.T, m *keystoretest.Module, _ *RotationRequest) {
			m.ShowToken(func(t *key.Token) { t.WriteProtect = true })
		}, failure.Denied, "is read-only"},
		"a key that can be backed up": {func(_ *testing.T, m *keystoretest.Module, _ *RotationRequest) {
			m.ShowInfo(func(i *key.Info) { i.Extractable = &yes })
		}, failure.Unsupported, "which can be backed up"},
		"no certificate": {func(t *testing.T, m *keystoretest.Module, o *RotationRequest) {
			generateWithout(t, m, "bare")
			register(t, "bare", "pkcs11:token=a;object=bare")
			o.Name = "bare"
		}, failure.NotFound, "has no certificate"},
		"a CA elsewhere": {func(t *testing.T, m *keystoretest.Module, o *RotationRequest) {
			folder := newCA(t, m, "a", "outside")
			issue(t, m, folder, "outside", "issued")
			register(t, "issued", "pkcs11:token=a;object=issued")
			o.Name = "issued"
		}, failure.NotFound, "is not a CA in"},
	} {
		t.Run(name, func(t *testing.T) {
			m := fixture(t, "a")
			generate(t, m, "a", "release")
			register(t, "release", "pkcs11:token=a;object=release")
			o := RotationRequest{Name: "release", CAFolder: t.TempDir()}
			c.arrange(t, m, &o)
			keys := len(keysOf(t, m, "a"))
			err := Rotate(t.Context(), m.Keystore(), o, func(*Rotation) error { t.Error("asked"); return nil }, silent)
			wantFailure(t, name, err, c.kind, c.text)
			if left, _ := journals(); len(left) != 0 || len(keysOf(t, m, "a")) != keys {
				t.Errorf("left are the journals %q and the keys %q", left, keysOf(t, m, "a"))
			}
		})
	}
}

// issue generates a key whose certificate is from a CA.
func issue(t *testing.T, m *keystoretest.Module, folder, name, label string) {
	t.Helper()
	generateWithout(t, m, label)
	a := must[*ca.Authority](t)(ca.Open(m.Keystore(), folder, name))
	_, err := a.IssueKey(t.Context(), m.Reference("a", label), ca.Terms{Subject: testSubject, Days: 100,
		CDP: "http://pki.example.com/ca.crl"}, nil)
	if err != nil {
		t.Fatal(err)
	}
}

// TestRotateNotConfirmed changes nothing, and leaves no journal.
func TestRotateNotConfirmed(t *testing.T) {
	m := fixture(t, "a")
	generate(t, m, "a", "release")
	register(t, "release", "pkcs11:token=a;object=release")
	var plan *Rotation
	err := Rotate(t.Context(), m.Keystore(), RotationRequest{Name: "release", CAFolder: t.TempDir()},
		func(r *Rotation) error { plan = r; return errInjected }, silent)
	if left, _ := journals(); err == nil || len(left) != 0 || m.Has("a", "release-2") {
		t.Errorf("%v, %q", err, left)
	}
	if plan.Source != SelfSigned || plan.Label != "release-2" || plan.OldName != "release-old-1" || plan.Days != 365 ||
		plan.Spec != "EC-256" || plan.Subject != "CN=release,O=Example,ST=Zurich,C=CH" {
		t.Errorf("%+v", plan)
	}
}

// TestRotateNames counts labels and names on, past those that are taken.
func TestRotateNames(t *testing.T) {
	m := fixture(t, "a")
	generate(t, m, "a", "release-2")
	generateWithout(t, m, "release-3")
	register(t, "release", "pkcs11:token=a;object=release-2")
	keys := must[*signingKeys](t)(loadSigningKeys())
	keys.Keys = append(keys.Keys, signingKey{Name: "release-old-1"})
	if err := keys.save(); err != nil {
		t.Fatal(err)
	}
	confirm := func(*Rotation) error { return nil }
	o := RotationRequest{Name: "release", CAFolder: t.TempDir()}
	if err := Rotate(t.Context(), m.Keystore(), o, confirm, silent); err != nil {
		t.Fatal(err)
	}
	keys = must[*signingKeys](t)(loadSigningKeys())
	if !m.Has("a", "release-4") || keys.find("release-old-2") == nil {
		t.Errorf("%q, %+v", keysOf(t, m, "a"), keys.Keys)
	}
}

// TestRotateUnderCA takes the terms of the old certificate, at most as long as the CA lasts.
func TestRotateUnderCA(t *testing.T) {
	m := fixture(t, "a")
	folder := newCA(t, m, "a", "root")
	issue(t, m, folder, "root", "release")
	register(t, "release", "pkcs11:token=a;object=release")
	var plan *Rotation
	o := RotationRequest{Name: "release", CAFolder: folder}
	err := Rotate(t.Context(), m.Keystore(), o, func(r *Rotation) error { plan = r; return nil }, silent)
	if err != nil || plan.Source != FromCA || plan.CA != "root" || plan.Days != 100 ||
		plan.CRL != "http://pki.example.com/ca.crl" || plan.OCSP != "" {
		t.Errorf("%+v, %v", plan, err)
	}
	cert := leafOf(t, m.Reference("a", "release-2"))
	if cert.Issuer.CommonName != "root" || len(cert.CRLDistributionPoints) != 1 {
		t.Errorf("issued by %s, with %q", cert.Issuer, cert.CRLDistributionPoints)
	}
	soon := *cert
	soon.NotAfter = time.Now().Add(50 * time.Hour)
	if days := limitDays(100, &soon); days != 2 {
		t.Errorf("%d days", days)
	}
}

// TestRotateResumed goes on only as the journal says, and not if Notation's entry was changed.
func TestRotateResumed(t *testing.T) {
	m := fixture(t, "a")
	generate(t, m, "a", "release")
	register(t, "release", "pkcs11:token=a;object=release")
	o := RotationRequest{Name: "release", CAFolder: t.TempDir()}
	rotate := func(o RotationRequest) error {
		return Rotate(t.Context(), m.Keystore(), o, func(*Rotation) error { return nil }, silent)
	}
	m.Fail("Generate", errInjected)
	if err := rotate(o); err == nil {
		t.Fatal("no failure")
	}
	m.Fail("Generate", nil)
	for name, other := range map[string]RotationRequest{
		"a request": {Request: "x"}, "an answer": {Certificate: "x"}, "a CA": {CA: "x"},
	} {
		other.Name, other.CAFolder = o.Name, o.CAFolder
		wantFailure(t, name, rotate(other), failure.Conflict, "from another source")
	}
	keys := must[*signingKeys](t)(loadSigningKeys())
	keys.find("release").ID = "pkcs11:token=a;object=other"
	if err := keys.save(); err != nil {
		t.Fatal(err)
	}
	wantFailure(t, "a changed entry", rotate(o), failure.Conflict, "was changed during its rotation")
	if m.Has("a", "release-2") {
		t.Error("a key was generated")
	}
}

// TestRotateSettings reaches the new key with the settings of the old one, wherever they are.
func TestRotateSettings(t *testing.T) {
	m := fixture(t, "a")
	s := generate(t, m, "a", "release")
	chain := filepath.Join(t.TempDir(), "chain.pem")
	data, err := Export(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(chain, data, 0o600); err != nil {
		t.Fatal(err)
	}
	path := config.Path()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("keys:\n  short:\n    uri: pkcs11:token=a;object=release\n    pin-source: env:OTHER\n    timeout: 7s\n" +
		"    certificate-chain: " + chain + "\n")
	t.Setenv("OTHER", keystoretest.PIN)
	t.Setenv("NOTATION_HSM_PIN", "")
	register(t, "release", "short")
	o := RotationRequest{Name: "release", CAFolder: t.TempDir()}
	rotate := func() error {
		return Rotate(t.Context(), m.Keystore(), o, func(*Rotation) error { return nil }, silent)
	}
	if err := rotate(); err != nil {
		t.Fatal(err)
	}
	keys := must[*signingKeys](t)(loadSigningKeys())
	stored := keys.find("release").PluginConfig
	if stored[config.PINSource] != "env:OTHER" || stored[config.Timeout] != "7s" || stored[config.CertificateChain] != "" {
		t.Errorf("%q", stored)
	}

	// A PIN for the alias alone is not written to Notation's list.
	write("keys:\n  short:\n    uri: pkcs11:token=a;object=release?pin-value=" + keystoretest.PIN + "\n")
	register(t, "pin", "short")
	o.Name = "pin"
	wantFailure(t, "a PIN of the alias", rotate(), failure.Invalid, "cannot use the PIN")
	if text := must[[]byte](t)(os.ReadFile(must[string](t)(signingKeysPath()))); strings.Contains(string(text),
		keystoretest.PIN) {
		t.Errorf("the PIN is in %s", text)
	}

	// The old certificate for every key would hide the new one.
	write("certificate-chain: " + chain + "\n")
	t.Setenv("NOTATION_HSM_PIN", keystoretest.PIN)
	register(t, "all", "pkcs11:token=a;object=release")
	o.Name = "all"
	wantFailure(t, "a chain for every key", rotate(), failure.Invalid, "has the certificate of another key")
}
