package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/notaryproject/notation-go/dir"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const app = "registry.example.com/team/app"

// issue makes a certificate; without an issuer it is self-signed.
func issue(t testing.TB, subject pkix.Name, ca bool, issuer *pair) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: subject, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true, IsCA: ca,
	}
	if ca {
		template.KeyUsage = x509.KeyUsageCertSign
	}
	if issuer == nil {
		issuer = &pair{template, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer.cert, &key.PublicKey, issuer.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{cert, key}
}

type pair struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func name(cn string) pkix.Name {
	return pkix.Name{CommonName: cn, Organization: []string{"Example"}, Country: []string{"CH"},
		Province: []string{"Zurich"}}
}

func file(t testing.TB, list ...*pair) string {
	t.Helper()
	var chain []*x509.Certificate
	for _, p := range list {
		chain = append(chain, p.cert)
	}
	path := filepath.Join(t.TempDir(), "cert.pem")
	if err := os.WriteFile(path, certs.Encode(chain), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestExact holds the rule for signers of one scope against what it stands for: over all certificates and subjects of a
// small world, Notation accepts from the statement what some signer allows, and nothing else, if and only if the rule
// lets it pass.
func TestExact(t *testing.T) {
	a, b := issue(t, name("A"), true, nil), issue(t, name("B"), true, nil)
	lone := issue(t, name("lone"), false, nil)
	const base = "C=CH,ST=Zurich,O=Example"
	var choices []Signer
	for _, c := range []struct {
		cert     *pair
		subjects []string
	}{{a, []string{"", base, base + ",CN=x", base + ",CN=x,OU=y", base + ",CN=lone"}},
		{b, []string{"", base, base + ",CN=x"}}, {lone, []string{lone.cert.Subject.String()}}} {
		for _, subject := range c.subjects {
			kind, err := kindOf(c.cert.cert)
			if err != nil {
				t.Fatal(err)
			}
			who, err := readIdentity(subject)
			if err != nil {
				t.Fatal(err)
			}
			choices = append(choices, Signer{Name: fmt.Sprint("s", len(choices)), Kind: kind, Subject: subject,
				cert: c.cert.cert, who: who, Level: "strict"})
		}
	}
	var world []identity // subjects of certificates that a CA may issue
	for _, cn := range []string{"", "x", "lone", "other"} {
		for _, ou := range []string{"", "y", "other"} {
			world = append(world, identity{"C": "CH", "ST": "Zurich", "O": "Example", "CN": cn, "OU": ou})
		}
	}
	world = append(world, identity{"C": "DE", "ST": "Bavaria", "O": "Stranger", "CN": "x"})

	passed, refused := 0, 0
	for mask := 1; mask < 1<<len(choices); mask++ {
		var signers []Signer
		for i, s := range choices {
			if mask&(1<<i) != 0 {
				signers = append(signers, s)
			}
		}
		if len(signers) > 3 {
			continue
		}
		var trusted []identity
		for _, text := range identities(signers) {
			id, err := readIdentity(strings.TrimPrefix(strings.TrimPrefix(text, x509Subject), anyone))
			if err != nil {
				t.Fatal(err)
			}
			trusted = append(trusted, id)
		}
		same := true
		for _, s := range signers {
			subjects := world
			if s.Kind == SelfSigned {
				subjects = []identity{s.who}
			}
			for _, subject := range subjects {
				accepted := slices.ContainsFunc(trusted, func(id identity) bool { return id.covers(subject) })
				meant := slices.ContainsFunc(signers, func(t Signer) bool { return t.cert.Equal(s.cert) && t.who.covers(subject) })
				same = same && accepted == meant
			}
		}
		err := exact(app, signers)
		if (err == nil) != same {
			t.Errorf("exact says %v, and the statement accepting what is meant is %v: %s", err, same, describe(signers))
		}
		if err != nil {
			refused++
			continue
		}
		passed++
		if err := accepted(trustpolicy.TrustPolicy{RegistryScopes: []string{app},
			TrustedIdentities: identities(signers)}); err != nil {
			t.Errorf("%s: %v", describe(signers), err)
		}
	}
	t.Logf("%d combinations pass, %d are refused", passed, refused)
}

func describe(signers []Signer) string {
	var text []string
	for _, s := range signers {
		text = append(text, s.cert.Subject.CommonName+" for "+s.subjects())
	}
	return strings.Join(text, "; ")
}

// TestKinds reads certificates of every kind, and those that Notation could not tell from others.
func TestKinds(t *testing.T) {
	root := issue(t, name("root"), true, nil)
	middle := issue(t, name("middle"), true, root)
	leaf := issue(t, name("leaf"), false, middle)
	lone := issue(t, name("lone"), false, nil)
	plain := issue(t, pkix.Name{CommonName: "plain"}, false, nil)
	anonymous := issue(t, pkix.Name{CommonName: "anonymous"}, false, root)
	two := issue(t, pkix.Name{CommonName: "two", Organization: []string{"Example", "Other"}, Country: []string{"CH"},
		Province: []string{"Zurich"}}, false, root)
	for _, c := range []struct {
		name, file, subject string
		trusted             *pair
		kind                Kind
		who                 string
		fails               string
	}{
		{name: "self-signed", file: file(t, lone), trusted: lone, kind: SelfSigned, who: "CN=lone,O=Example,ST=Zurich,C=CH"},
		{name: "self-signed without C, ST and O", file: file(t, plain), trusted: plain, kind: SelfSigned},
		{name: "under a CA", file: file(t, root, leaf, middle), trusted: root, kind: CA,
			who: "CN=leaf,O=Example,ST=Zurich,C=CH"},
		{name: "a root", file: file(t, root), trusted: root, kind: CA},
		{name: "the end of a chain of CAs", file: file(t, root, middle), trusted: middle, kind: CA},
		{name: "a CA and a subject", file: file(t, root), subject: "C=CH,ST=Zurich,O=Example", trusted: root, kind: CA,
			who: "C=CH,ST=Zurich,O=Example"},
		{name: "without its root", file: file(t, leaf, middle), fails: "cannot complete the certificate chain"},
		{name: "two leaves", file: file(t, lone, plain), fails: "of 2 signers"},
		{name: "two CAs", file: file(t, root, issue(t, name("other"), true, nil)), fails: "are not one chain"},
		{name: "a leaf and a subject", file: file(t, lone), subject: "C=CH,ST=Zurich,O=Example", fails: "limits a CA"},
		{name: "under a CA without C, ST and O", file: file(t, anonymous, root), fails: "the subject has no C, ST, O"},
		{name: "under a CA with two O", file: file(t, two, root), fails: "multi-valued"},
		{name: "a CA and a subject without ST", file: file(t, root), subject: "C=CH,O=Example",
			fails: "does not accept the subject"},
	} {
		got, err := FromFile(c.file, c.subject)
		switch {
		case c.fails != "":
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%s: the failure is %v", c.name, err)
			} else if failure.From(err).Hint == "" {
				t.Errorf("%s: there is no hint", c.name)
			}
		case err != nil:
			t.Errorf("%s: %v", c.name, err)
		case !got.trusted.Equal(c.trusted.cert) || got.kind != c.kind || got.subject != c.who:
			t.Errorf("%s: %v, %s, %q", c.name, got.trusted.Subject, got.kind, got.subject)
		}
	}
}

// manifest makes a manifest with one signer, "alice", of a self-signed certificate.
func manifest(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "trust.yaml")
	if _, err := Init(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	cert, err := FromFile(file(t, issue(t, name("alice"), false, nil)), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Add(t.Context(), path, Grant{Name: "alice", Scopes: []string{app}, Cert: cert}); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestManifestByHand changes the file by hand, in ways that are mistakes or worse.
func TestManifestByHand(t *testing.T) {
	path := manifest(t)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	other := string(certs.Encode([]*x509.Certificate{issue(t, name("mallory"), false, nil).cert}))
	indent := func(pem string) string {
		return "    " + strings.ReplaceAll(strings.TrimSpace(pem), "\n", "\n    ") + "\n"
	}
	for _, c := range []struct{ name, from, to, fails string }{
		{"a newer version", "version: 1", "version: 2", "version 2 is not supported"},
		{"an unknown field", "level:", "colour:", "colour"},
		{"a threshold", "level:", "threshold: 2\n  level:", "threshold"},
		{"no level", "level: strict", "level: \"\"", "unknown verification level"},
		{"skip", "level: strict", "level: skip", "skip is refused"},
		{"a pattern", app, "registry.example.com/team/*", "is a pattern"},
		{"a tag", app, app + ":v1", "is not a repository"},
		{"a scope twice", "- " + app, "- " + app + "\n  - " + app, "twice"},
		{"a bad name", "name: alice", "name: ../alice", "is not the name of a signer"},
		{"another kind", "kind: self-signed", "kind: ca", "of kind"},
		{"another fingerprint", "sha256:", "sha256:0", "does not have the fingerprint"},
		{"another subject", "CN=alice", "CN=bob", "does not have the subject"},
		{"no certificate", "BEGIN CERTIFICATE", "BEGIN SOMETHING", "not one PEM certificate"},
		{"another certificate", "    -----BEGIN", indent(other) + "    -----BEGIN", "not one PEM certificate"},
	} {
		changed := strings.Replace(good, c.from, c.to, 1)
		if _, err := parse([]byte(changed)); changed == good || err == nil || !strings.Contains(err.Error(), c.fails) {
			t.Errorf("%s: the failure is %v", c.name, err)
		}
	}
	again, err := parse(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.save(path); err != nil {
		t.Fatal(err)
	}
	if data, _ := os.ReadFile(path); string(data) != good {
		t.Errorf("reading and writing changes the manifest:\n%s", data)
	}
}

// TestMerge exports beside statements and trust stores of others, with parts that no version of Notation knows yet.
func TestMerge(t *testing.T) {
	path, to := manifest(t), t.TempDir()
	const others = `{"version": "1.0", "trustPolicies": [
		{"name": "all", "registryScopes": ["*"],
		 "signatureVerification": {"level": "audit", "override": {"revocation": "skip"}},
		 "trustStores": ["ca:theirs", "tsa:theirs"], "trustedIdentities": ["*"], "later": {"a": [1, 2.50]}},
		{"name": "notation-hsm:registry.example.com/gone", "registryScopes": ["registry.example.com/gone"],
		 "signatureVerification": {"level": "strict"},
		 "trustStores": ["ca:notation-hsm-gone-0000000000000000"], "trustedIdentities": ["*"]},
		{"name": "none", "registryScopes": ["registry.example.com/public"], "signatureVerification": {"level": "skip"}}]}`
	policy, stores := filepath.Join(to, "trustpolicy.json"), filepath.Join(to, "truststore", "x509", "ca")
	put := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	put(policy, others)
	for _, store := range []string{"theirs", "notation-hsm-not-ours", "notation-hsm-gone-0000000000000000",
		"notation-hsm-kept-0000000000000000"} {
		put(filepath.Join(stores, store, "gone.pem"), "theirs")
	}
	put(filepath.Join(stores, "notation-hsm-gone-1111111111111111.unfinished", "gone.pem"), "half")
	done, err := Export(t.Context(), path, to)
	if err != nil {
		t.Fatal(err)
	}
	if done.Statements != 1 || done.Kept != 2 || done.Removed {
		t.Errorf("the export says %+v", done)
	}
	var before, after struct {
		TrustPolicies []any
	}
	data, err := os.ReadFile(policy)
	if err != nil {
		t.Fatal(err)
	}
	if json.Unmarshal([]byte(others), &before) != nil || json.Unmarshal(data, &after) != nil {
		t.Fatalf("the policy is no JSON:\n%s", data)
	}
	if len(after.TrustPolicies) != 3 || fmt.Sprint(after.TrustPolicies[0],
		after.TrustPolicies[1]) != fmt.Sprint(before.TrustPolicies[0], before.TrustPolicies[2]) ||
		!strings.Contains(string(data), "2.50") {
		t.Errorf("the statements are:\n%s", data)
	}
	if info, err := os.Stat(policy); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the policy's permissions are %v", info.Mode())
	}
	var left []string
	entries, _ := os.ReadDir(stores)
	for _, entry := range entries {
		left = append(left, entry.Name())
	}
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{storeName(m.Signers[0]), "notation-hsm-kept-0000000000000000", "notation-hsm-not-ours", "theirs"}
	if !slices.Equal(left, want) {
		t.Errorf("the stores are %v, not %v", left, want)
	}

	// The same again changes nothing.
	if _, err := Export(t.Context(), path, to); err != nil {
		t.Fatal(err)
	}
	if again, _ := os.ReadFile(policy); string(again) != string(data) {
		t.Errorf("a second export changes the policy:\n%s", again)
	}

	// What Notation would not take, or others have, is left alone.
	for name, text := range map[string]string{
		"is in the statement \"mine\"": `{"version": "1.0", "trustPolicies": [{"name": "mine", "registryScopes": ["` +
			app + `"], "signatureVerification": {"level": "skip"}}]}`,
		"cannot parse": `{"version": "1.0", "trustPolicies": [], "later": 1}`,
		"refuses": `{"version": "1.0", "trustPolicies": [{"name": "", "registryScopes": ["*"], ` +
			`"signatureVerification": {"level": "skip"}}]}`,
	} {
		put(policy, text)
		_, err := Export(t.Context(), path, to)
		if data, _ := os.ReadFile(policy); err == nil || !strings.Contains(err.Error(), name) || string(data) != text {
			t.Errorf("the failure is %v, and the policy:\n%s", err, data)
		}
	}

	// A store of ours that holds more than we put there would trust more.
	put(policy,
		`{"version": "1.0", "trustPolicies": [{"name": "all", "registryScopes": ["*"], `+
			`"signatureVerification": {"level": "skip"}}]}`)
	put(filepath.Join(stores, want[0], "more.pem"),
		string(certs.Encode([]*x509.Certificate{issue(t, name("mallory"), false, nil).cert})))
	if _, err := Export(t.Context(), path, to); err == nil ||
		!strings.Contains(err.Error(), "has other content than the certificate") {
		t.Errorf("the failure is %v", err)
	}
}

// TestExportForUser writes where Notation reads, and removes what is left when the last signer is gone.
func TestExportForUser(t *testing.T) {
	path := manifest(t)
	dir.UserConfigDir = t.TempDir()
	t.Cleanup(func() { dir.UserConfigDir = "" })
	if _, err := Export(t.Context(), path, ""); err != nil {
		t.Fatal(err)
	}
	loaded, err := trustpolicy.LoadDocument()
	if err != nil {
		t.Fatal(err)
	}
	if err := loaded.Validate(); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(filepath.Join(dir.UserConfigDir, "trustpolicy.json")); err != nil ||
		info.Mode().Perm() != 0o600 {
		t.Errorf("the policy's permissions are %v", info.Mode())
	}
	if gone, err := Remove(t.Context(), path, "alice", []string{app}); err != nil || !gone {
		t.Fatal(gone, err)
	}
	done, err := Export(t.Context(), path, "")
	if err != nil || !done.Removed {
		t.Fatal(done, err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir.UserConfigDir, "truststore", "x509", "ca", "*")); len(left) > 0 {
		t.Errorf("left are %v", left)
	}
	if _, err := Export(t.Context(), path, ""); err == nil || !strings.Contains(err.Error(), "no signer to export") {
		t.Errorf("the failure is %v", err)
	}
}

// manifestCost is what reading a manifest may allocate: it is parsed once to be measured and once to be read, and its
// statements are put together.
var manifestCost = boundtest.Budget{Bytes: 256 << 10, BytesPerByte: 4 << 10}

// FuzzManifest reads manifests of all kinds, none of which costs more than its size allows. One that is taken is
// written in a form that is taken too, and stays.
func FuzzManifest(f *testing.F) {
	data, err := os.ReadFile(manifest(f))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte("version: 1\nsigners: []\n"))
	if data, err = os.ReadFile(tagged(f)); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	demanding := people(f)
	if err := AddApprovals(f.Context(), demanding, twoOf(f), false); err != nil {
		f.Fatal(err)
	}
	if data, err = os.ReadFile(demanding); err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	path := filepath.Join(f.TempDir(), "trust.yaml")
	f.Fuzz(func(t *testing.T, data []byte) {
		var m *Manifest
		var err error
		manifestCost.Check(t, len(data), func() { m, err = parse(data) })
		if err != nil {
			return
		}
		if err := m.save(path); err != nil {
			t.Fatal(err)
		}
		first, _ := os.ReadFile(path)
		if m, err = parse(first); err != nil {
			t.Fatalf("what was written is not taken: %v\n%s", err, first)
		}
		if err := m.save(path); err != nil {
			t.Fatal(err)
		}
		if second, _ := os.ReadFile(path); string(second) != string(first) {
			t.Errorf("it changes when it is written again:\n%s\n%s", first, second)
		}
	})
}
