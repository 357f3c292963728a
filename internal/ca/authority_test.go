package ca

import (
	"crypto"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/config"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/key"
	"github.com/notation-hsm/notation-hsm/internal/keystore"
	"github.com/notation-hsm/notation-hsm/internal/keystore/keystoretest"
)

// modules makes a module with the tokens "vault" and "signing", a key of each CA and a signer's, and a folder for CAs.
// The environment gives the PIN, as it does to the commands.
func modules(t *testing.T) (m *keystoretest.Module, ks *keystore.Keystore, folder string) {
	t.Helper()
	t.Setenv("XDG_CONFIG_HOME", t.TempDir())
	t.Setenv("NOTATION_HSM_MODULE_PATH", keystoretest.Path)
	t.Setenv("NOTATION_HSM_PIN", keystoretest.PIN)
	m = keystoretest.New("vault", "signing")
	m.Key(t, "vault", "root", newTestKey(t), key.Sign)
	m.Key(t, "vault", "team", newTestKey(t), key.Sign)
	m.Key(t, "signing", "release", newTestKey(t), key.Sign)
	return m, m.Keystore(), t.TempDir()
}

const (
	rootURI, teamURI = "pkcs11:token=vault;object=root", "pkcs11:token=vault;object=team"
	releaseURI       = "pkcs11:token=signing;object=release"
	releaseSubject   = "CN=release,O=Example,C=CH,ST=Zurich"
)

// authorities makes a root and an intermediate of it.
func authorities(t *testing.T, ks *keystore.Keystore, folder string) (root, team *Authority) {
	t.Helper()
	root, err := Init(t.Context(), ks, folder, "root", rootURI, nil, config.Flags, "",
		Terms{Subject: "CN=root", Days: 900})
	if err != nil {
		t.Fatal(err)
	}
	team, err = Init(t.Context(), ks, folder, "team", teamURI, map[string]string{"token": "vault"}, config.Flags, "root",
		Terms{Subject: "CN=team", Days: 800})
	if err != nil {
		t.Fatal(err)
	}
	return root, team
}

func release(t *testing.T, ks *keystore.Keystore) *keystore.Reference {
	t.Helper()
	r, err := ks.Resolve(releaseURI, nil, config.Flags)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestIssueKey makes a root, an intermediate and a signer's certificate, and stores the chain beside the key. A later
// process opens the same CAs. No store stays open.
func TestIssueKey(t *testing.T) {
	m, ks, folder := modules(t)
	authorities(t, ks, folder)
	team, err := Open(ks, folder, "team")
	if err != nil {
		t.Fatal(err)
	}
	made, err := team.IssueKey(t.Context(), release(t, ks), Terms{Subject: releaseSubject, Days: 90}, AllowSubjectOf(""))
	if err != nil {
		t.Fatal(err)
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(team.chain[1])
	between.AddCert(team.Certificate())
	_, err = made.Leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageCodeSigning}})
	if err != nil || strings.Count(string(made.Chain), "BEGIN") != 3 || len(made.Lacks) != 0 {
		t.Errorf("%v; it lacks %v", err, made.Lacks)
	}
	store, err := release(t, ks).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if leaf, err := store.Leaf(t.Context()); err != nil || !made.Leaf.Equal(leaf) {
		t.Errorf("the leaf is not beside the key: %v", err)
	}
	if m.OpenStores() != 1 {
		t.Errorf("%d stores are open", m.OpenStores()-1)
	}
	shown, err := team.Show()
	if err != nil || len(shown.Issued) != 1 || shown.Unsigned != 0 || shown.Parent != "root" {
		t.Errorf("%+v, %v", shown, err)
	}
	if all, err := List(ks, folder); err != nil || len(all) != 2 {
		t.Errorf("%d CAs, %v", len(all), err)
	}
}

// TestIssueKeyRefuses issues nothing for a key that does not sign, that is the CA's own, or of another kind, and
// nothing when the CA's key is not the one of its certificate.
func TestIssueKeyRefuses(t *testing.T) {
	m, ks, folder := modules(t)
	_, team := authorities(t, ks, folder)
	m.Key(t, "signing", "recipient", newTestKey(t), key.Decrypt)
	terms := Terms{Subject: releaseSubject, Days: 90}
	for name, c := range map[string]struct {
		uri   string
		terms Terms
		kind  failure.Kind
	}{
		"a key that does not sign": {"pkcs11:token=signing;object=recipient", terms, failure.Denied},
		"the CA's own":             {teamURI, terms, failure.Invalid},
		"no such key":              {"pkcs11:token=signing;object=other", terms, failure.NotFound},
		"no subject":               {releaseURI, Terms{Days: 90}, failure.Invalid},
		"longer than the CA":       {releaseURI, Terms{Subject: releaseSubject, Days: 5000}, failure.Invalid},
	} {
		r, err := ks.Resolve(c.uri, nil, config.Flags)
		if err != nil {
			t.Fatal(err)
		}
		if made, err := team.IssueKey(t.Context(), r, c.terms, AllowSubjectOf("")); made != nil || !failure.Is(err, c.kind) {
			t.Errorf("%s: %v, %v", name, made, err)
		}
	}
	other := keystoretest.New("vault", "signing")
	other.Key(t, "vault", "team", newTestKey(t), key.Sign)
	other.Key(t, "signing", "release", newTestKey(t), key.Sign)
	elsewhere, err := Open(other.Keystore(), folder, "team")
	if err != nil {
		t.Fatal(err)
	}
	_, err = elsewhere.IssueKey(t.Context(), release(t, other.Keystore()), terms, AllowSubjectOf(""))
	if !failure.Is(err, failure.Invalid) || !strings.Contains(err.Error(), "not the key of the CA") {
		t.Errorf("with another key: %v", err)
	}
	if shown, err := team.Show(); err != nil || len(shown.Issued) != 0 {
		t.Errorf("%d certificates were issued, %v", len(shown.Issued), err)
	}
}

// TestIssueUnstored returns the certificate with the failure when it was issued and could not be stored on the token.
func TestIssueUnstored(t *testing.T) {
	m, ks, folder := modules(t)
	_, team := authorities(t, ks, folder)
	m.Fail("Import", failure.New(failure.Denied, "the token is read-only"))
	made, err := team.IssueKey(t.Context(), release(t, ks), Terms{Subject: releaseSubject, Days: 90}, AllowSubjectOf(""))
	if made == nil || !failure.Is(err, failure.Denied) || !strings.Contains(err.Error(), "not stored") {
		t.Errorf("%v, %v", made, err)
	}
	if shown, err := team.Show(); err != nil || len(shown.Issued) != 1 {
		t.Errorf("%d certificates are in the ledger, %v", len(shown.Issued), err)
	}
}

// TestInitRefuses makes no CA in the place of another, below an unknown one, or with a name that is a path.
func TestInitRefuses(t *testing.T) {
	m, ks, folder := modules(t)
	authorities(t, ks, folder)
	m.Key(t, "vault", "next", newTestKey(t), key.Sign)
	terms := Terms{Subject: "CN=next", Days: 100}
	for name, c := range map[string]struct {
		name, key, parent string
		kind              failure.Kind
	}{
		"taken":      {"root", "pkcs11:token=vault;object=next", "", failure.Conflict},
		"no parent":  {"next", "pkcs11:token=vault;object=next", "nobody", failure.NotFound},
		"a path":     {"../next", "pkcs11:token=vault;object=next", "", failure.Invalid},
		"no key":     {"next", "pkcs11:token=vault;object=none", "", failure.NotFound},
		"a bad URI":  {"next", "pkcs11:token", "", failure.Invalid},
		"its issuer": {"next", rootURI, "root", failure.Invalid},
	} {
		_, err := Init(t.Context(), ks, folder, c.name, c.key, nil, config.Flags, c.parent, terms)
		if !failure.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := os.Remove(filepath.Join(folder, "team", description)); err != nil {
		t.Fatal(err)
	}
	root, err := Open(ks, folder, "root")
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := root.CRL(t.Context(), nil, "7d", ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(folder, "root", description)); err != nil {
		t.Fatal(err)
	}
	_, err = Init(t.Context(), ks, folder, "root", rootURI, nil, config.Flags, "", terms)
	if err == nil || !strings.Contains(err.Error(), description) {
		t.Errorf("a CA was made over what another has issued: %v", err)
	}
}

// TestRevokeAndList revokes by serial, file and key, keeps the first date and reason, and lists what was revoked.
func TestRevokeAndList(t *testing.T) {
	m, ks, folder := modules(t)
	_, team := authorities(t, ks, folder)
	m.Key(t, "signing", "second", newTestKey(t), key.Sign)
	m.Key(t, "signing", "third", newTestKey(t), key.Sign)
	serials := map[string]string{}
	for label, subject := range map[string]string{"release": releaseSubject, "second": "CN=second", "third": "CN=third"} {
		made, err := team.IssueKey(t.Context(), m.Reference("signing", label), Terms{Subject: subject, Days: 90},
			AllowSubjectOf(""))
		if err != nil {
			t.Fatal(err)
		}
		serials[label] = certs.Serial(made.Leaf)
		if err := os.WriteFile(filepath.Join(folder, label+".pem"), made.Chain, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx := t.Context()
	first, err := team.RevokeSerial(ctx, strings.ToUpper(serials["release"]), "keyCompromise")
	if err != nil || first.Unsigned != nil || len(first.Entries) != 1 {
		t.Fatalf("%+v, %v", first, err)
	}
	again, err := team.RevokeKey(ctx, m.Reference("signing", "release"), "superseded")
	if err != nil || again.Entries[0].Reason != "keyCompromise" ||
		!again.Entries[0].Revoked.Equal(*first.Entries[0].Revoked) {
		t.Errorf("%+v, %v", again, err)
	}
	if _, err := team.RevokeFile(ctx, filepath.Join(folder, "second.pem"), "superseded"); err != nil {
		t.Error(err)
	}
	for name, refuse := range map[string]func() (Revocation, error){
		"an unknown serial": func() (Revocation, error) { return team.RevokeSerial(ctx, "abcdef", "keyCompromise") },
		"no reason":         func() (Revocation, error) { return team.RevokeSerial(ctx, serials["third"], "") },
		"a hold": func() (Revocation, error) {
			return team.RevokeSerial(ctx, serials["third"], "certificateHold")
		},
		"another CA's": func() (Revocation, error) {
			return team.RevokeFile(ctx, filepath.Join(folder, "root", "chain.pem"), "superseded")
		},
		"a key without": func() (Revocation, error) {
			return team.RevokeKey(ctx, m.Reference("vault", "root"), "superseded")
		},
	} {
		if done, err := refuse(); err == nil {
			t.Errorf("%s: %+v", name, done)
		}
	}
	list, path, err := team.CRL(ctx, nil, "7d", "")
	if err != nil || !lists(list, serials["release"]) || !lists(list, serials["second"]) || lists(list, serials["third"]) {
		t.Errorf("%v, %v", revokedSerials(list), err)
	}
	if published, err := team.Published(); err != nil || published.Number.Cmp(list.Number) != 0 {
		t.Errorf("%v at %s, %v", published, path, err)
	}
	next, _, err := team.CRL(ctx, nil, "7d", path)
	if err != nil || next.Number.Cmp(list.Number) <= 0 {
		t.Errorf("%v, %v", next, err)
	}
	if _, _, err := team.CRL(ctx, nil, "soon", ""); !failure.Is(err, failure.Invalid) {
		t.Error(err)
	}
}

// TestRevokeWithoutKey notes a revocation when the CA's key cannot be used, and says that it is not signed; the next
// use of the key signs it.
func TestRevokeWithoutKey(t *testing.T) {
	m, ks, folder := modules(t)
	_, team := authorities(t, ks, folder)
	made, err := team.IssueKey(t.Context(), release(t, ks), Terms{Subject: releaseSubject, Days: 90}, AllowSubjectOf(""))
	if err != nil {
		t.Fatal(err)
	}
	away := errors.New("the token is in the safe")
	m.Fail("Key", away)
	done, err := team.RevokeSerial(t.Context(), certs.Serial(made.Leaf), "keyCompromise")
	if err != nil || !errors.Is(done.Unsigned, away) {
		t.Fatalf("%+v, %v", done, err)
	}
	m.Fail("Key", nil)
	if shown, err := team.Show(); err != nil || shown.Unsigned != 1 || shown.Revoked != 1 {
		t.Errorf("%+v, %v", shown, err)
	}
	if _, _, err := team.CRL(t.Context(), nil, "7d", ""); err != nil {
		t.Fatal(err)
	}
	if shown, err := team.Show(); err != nil || shown.Unsigned != 0 {
		t.Errorf("%+v, %v", shown, err)
	}
}

// TestIssueRequest issues for a request what was agreed to, and nothing when it was not.
func TestIssueRequest(t *testing.T) {
	_, ks, folder := modules(t)
	_, team := authorities(t, ks, folder)
	path := filepath.Join(folder, "release.csr")
	subject, err := certs.ParseSubject(releaseSubject)
	if err != nil {
		t.Fatal(err)
	}
	signer := newTestKey(t)
	der, err := certs.Request(signer, subject)
	if err != nil {
		t.Fatal(err)
	}
	request := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	if err := os.WriteFile(path, request, 0o600); err != nil {
		t.Fatal(err)
	}
	no := errors.New("no")
	made, err := team.IssueRequest(t.Context(), path, nil, Terms{Days: 30}, AllowSubjectOf(""),
		func(Part) error { return no })
	if made != nil || !errors.Is(err, no) {
		t.Errorf("%v, %v", made, err)
	}
	made, err = team.IssueRequest(t.Context(), path, nil, Terms{Days: 30}, AllowSubjectOf(""),
		func(Part) error { return nil })
	if err != nil || !made.Leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }).Equal(signer.Public()) {
		t.Errorf("%v", err)
	}
}

const ceremonyFile = `keys:
- {name: root-key, token: vault, label: new-root, spec: EC-384}
- {name: team-key, token: vault, label: new-team, spec: EC-256}
- {name: release-key, token: signing, label: new-release, spec: EC-256}
root: {name: new-root, key: root-key, subject: "CN=new root", days: 3000}
intermediates:
- {name: new-team, parent: new-root, key: team-key, subject: "CN=new team", days: 2000}
leaves:
- {name: release-2026, ca: new-team, key: release-key, subject: "CN=release,O=Example,C=CH,ST=Zurich", days: 300}
- {name: old-release, ca: new-team, key: "pkcs11:token=signing;object=release", subject: "CN=old", days: 300}
crls:
- {ca: new-team, next-update: 30d}
`

func plan(t *testing.T, ks *keystore.Keystore, text string) *Plan {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ceremony.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := ReadPlan(ks, path)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestCeremony generates the keys, CAs, certificates and CRLs of a plan, and records each in the transcript. It is
// performed once.
func TestCeremony(t *testing.T) {
	m, ks, folder := modules(t)
	p, out := plan(t, ks, ceremonyFile), filepath.Join(t.TempDir(), "out")
	parts, err := p.Rehearse(folder)
	if err != nil || len(parts) != 8 || m.Calls("Open") != 0 {
		t.Fatalf("%d parts, %d tokens opened, %v", len(parts), m.Calls("Open"), err)
	}
	var steps []string
	if err := p.Perform(t.Context(), folder, out, func(step string) { steps = append(steps, step) }); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(out, transcriptFile))
	if err != nil {
		t.Fatal(err)
	}
	var record Transcript
	if err := json.Unmarshal(data, &record); err != nil {
		t.Fatal(err)
	}
	made := 0
	for _, k := range record.Keys {
		if k.Made {
			made++
		}
	}
	if record.Ended == nil || record.SHA256 != p.digest || made != 3 || len(record.Keys) != 4 ||
		len(record.Certificates) != 4 || len(record.Lists) != 1 || len(steps) != 8 {
		t.Errorf("%d keys of which %d made, %d certificates, %d lists, steps %q", len(record.Keys), made,
			len(record.Certificates), len(record.Lists), steps)
	}
	if strings.Contains(string(data), keystoretest.PIN+`"`) {
		t.Error("the transcript has the PIN")
	}
	for _, label := range []string{"new-root", "new-team"} {
		if !m.Has("vault", label) {
			t.Errorf("there is no key %s", label)
		}
	}
	if err := p.Perform(t.Context(), folder, out, func(string) {}); err == nil {
		t.Error("the ceremony was performed twice")
	}
	if m.OpenStores() != 0 {
		t.Errorf("%d stores are open", m.OpenStores())
	}
}

// TestCeremonyChecksFirst generates nothing when a label is taken, a key or CA of the plan does not exist, a PIN is
// refused, or a subject is another key's.
func TestCeremonyChecksFirst(t *testing.T) {
	for name, c := range map[string]struct {
		change func(text string) string
		pin    string
		kind   failure.Kind
	}{
		"a label that is taken": {func(s string) string {
			return strings.Replace(s, "label: new-root", "label: root", 1)
		}, "", failure.Conflict},
		"a key that does not exist": {func(s string) string {
			return strings.Replace(s, "object=release", "object=none", 1)
		}, "", failure.NotFound},
		"a CA that does not exist": {func(s string) string {
			return strings.Replace(s, "ca: new-team, next", "ca: none, next", 1)
		}, "", failure.NotFound},
		"a wrong PIN": {func(s string) string { return s }, "9999", failure.Denied},
		"another token": {func(s string) string {
			return strings.Replace(s, "token: vault", "token: safe", 1)
		}, "", failure.NotFound},
		"the subject of another key": {func(s string) string {
			return strings.Replace(s, `subject: "CN=old"`, `subject: "CN=release,O=Example,C=CH,ST=Zurich"`, 1)
		}, "", failure.Denied},
	} {
		t.Run(name, func(t *testing.T) {
			m, ks, folder := modules(t)
			if c.pin != "" {
				t.Setenv("NOTATION_HSM_PIN", c.pin)
			}
			out := filepath.Join(t.TempDir(), "out")
			err := plan(t, ks, c.change(ceremonyFile)).Perform(t.Context(), folder, out, func(step string) { t.Error(step) })
			if !failure.Is(err, c.kind) || m.Calls("Generate") != 0 {
				t.Errorf("%v; %d keys were generated", err, m.Calls("Generate"))
			}
			if all, err := List(ks, folder); err != nil || len(all) != 0 {
				t.Errorf("%d CAs, %v", len(all), err)
			}
		})
	}
}

// TestCeremonyInterrupted keeps a transcript of what was made when a step fails, without an end.
func TestCeremonyInterrupted(t *testing.T) {
	m, ks, folder := modules(t)
	out := filepath.Join(t.TempDir(), "out")
	broken := errors.New("the token was pulled out")
	err := plan(t, ks, ceremonyFile).Perform(t.Context(), folder, out, func(step string) {
		if strings.Contains(step, "certificate") {
			m.Fail("Sign", broken)
		}
	})
	if !errors.Is(err, broken) {
		t.Fatal(err)
	}
	var record Transcript
	data, err := os.ReadFile(filepath.Join(out, transcriptFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(data, &record); err != nil || record.Ended != nil || len(record.Keys) != 3 ||
		len(record.Certificates) != 1 {
		t.Errorf("%+v, %v", record, err)
	}
}

// TestFolder prefers the flag, then the environment, then the configuration directory.
func TestFolder(t *testing.T) {
	home := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", home)
	for _, c := range []struct{ flag, variable, want string }{
		{"/flag", "/variable", "/flag"}, {"", "/variable", "/variable"}, {"", "", filepath.Join(home, "notation-hsm", "ca")},
	} {
		t.Setenv("NOTATION_HSM_CA_DIR", c.variable)
		if got, err := Folder(c.flag); err != nil || got != c.want {
			t.Errorf("%q, not %q: %v", got, c.want, err)
		}
	}
}
