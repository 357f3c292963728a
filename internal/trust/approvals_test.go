package trust

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/bound/boundtest"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

const tools = "registry.example.com/team/tools"

// enrol returns a credential of a person with a new key.
func enrol(t testing.TB, person string, kind approval.Kind) *approval.Credential {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &approval.Credential{Approver: person, Kind: kind, Salt: strings.Repeat("5a", 32)}
	switch kind {
	case approval.Key:
		c.Public, err = x509.MarshalPKIXPublicKey(&key.PublicKey)
	case approval.SSH:
		var public ssh.PublicKey
		if public, err = ssh.NewPublicKey(&key.PublicKey); err == nil {
			c.Public = public.Marshal()
		}
	case approval.Passkey:
		c.Public = []byte("a COSE key of " + person)
		c.Passkey = &approval.WebAuthn{AAGUID: "00000000-0000-0000-0000-000000000000", ID: []byte("id<&>"),
			Origins: []string{"https://broker.example.com", "android:a<&>"}, RPID: "broker.example.com", BackupEligible: true}
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// id returns the id of a person in the log.
func id(name string) string { return fmt.Sprintf("%032x", name) }

// exported returns people as 'hsm-broker approver export' prints them.
func exported(t testing.TB, people map[string][]*approval.Credential) []byte {
	t.Helper()
	var all []exportedApprover
	for name, credentials := range people {
		e := exportedApprover{Name: name, ID: id(name)}
		for _, c := range credentials {
			document, err := c.Encode()
			if err != nil {
				t.Fatal(err)
			}
			e.Credentials = append(e.Credentials, document)
		}
		all = append(all, e)
	}
	data, err := json.Marshal(all)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// vkey returns a verifier key, which is also one of a witness.
func vkey(t testing.TB, name string) string {
	t.Helper()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	v, err := translog.NewVerifier(name, public)
	if err != nil {
		t.Fatal(err)
	}
	return v.String()
}

// people adds alice with a key, bob with an SSH key and carol with a passkey to a manifest that has a signer of app.
func people(t testing.TB) string {
	t.Helper()
	path := manifest(t)
	approvers, err := ParseApprovers(exported(t, map[string][]*approval.Credential{
		"alice": {enrol(t, id("alice"), approval.Key)},
		"bob":   {enrol(t, id("bob"), approval.SSH)},
		"carol": {enrol(t, id("carol"), approval.Passkey)},
	}))
	if err != nil {
		t.Fatal(err)
	}
	if err := AddApprovers(t.Context(), path, approvers, false); err != nil {
		t.Fatal(err)
	}
	return path
}

// twoOf returns approvals of app: two of alice, bob and carol.
func twoOf(t testing.TB) Approvals {
	t.Helper()
	return Approvals{Scope: app, Log: []string{vkey(t, "broker.example.com/log")}, MaxAge: Span(90 * 24 * time.Hour),
		Witnesses: []string{vkey(t, "witness.example.com")}, Cosigned: 1,
		Groups: []ApprovalGroup{{Name: "release-managers", Members: []string{"alice", "bob", "carol"}, Quorum: 2,
			Kinds: []string{"key", "ssh"}}}}
}

// TestCredentials compares the documents of a manifest with those that package approval writes: an approval names a
// credential by the hash of these bytes.
func TestCredentials(t *testing.T) {
	t.Parallel()
	for _, kind := range []approval.Kind{approval.Key, approval.SSH, approval.Passkey} {
		want := enrol(t, id("alice"), kind)
		document, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		path := manifest(t)
		list, err := ParseApprovers(exported(t, map[string][]*approval.Credential{"alice": {want}}))
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if err := AddApprovers(t.Context(), path, list, false); err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		m, err := Load(path)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		got := m.Approvers[0].Credentials[0]
		if string(got.Document()) != string(document) || got.Hash() != approval.Hash(document) ||
			got.Fingerprint() != want.Fingerprint() {
			t.Errorf("%s: %s\ninstead of\n%s", kind, got.Document(), document)
		}
		if _, err := approval.DecodeCredential(got.Document()); err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		for _, text := range []string{strings.Replace(string(document), "credential/v1", "credential/v2", 1),
			strings.Replace(string(document), `"kind"`, `"Kind"`, 1), string(document) + "\n",
			strings.Replace(string(document), `,"type"`, `, "type"`, 1)} {
			if _, err := readCredential([]byte(text), id("alice")); err == nil {
				t.Errorf("%s: %s was read", kind, text)
			}
		}
	}
	document, err := enrol(t, id("bob"), approval.SSH).Encode()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := readCredential(document, id("alice")); err == nil {
		t.Error("a credential of another person was read")
	}
}

// TestExportedApprovers refuses anything that 'hsm-broker approver export' does not print.
func TestExportedApprovers(t *testing.T) {
	t.Parallel()
	good := string(exported(t, map[string][]*approval.Credential{"alice": {enrol(t, id("alice"), approval.SSH)}}))
	for name, text := range map[string]string{
		"an object":        `{}`,
		"more":             good + "[]",
		"an unknown field": strings.Replace(good, `"name"`, `"more":1,"name"`, 1),
		"no credential":    `[{"name":"alice","id":"` + id("alice") + `","credentials":[]}]`,
		"another id":       strings.Replace(good, id("alice"), id("bob"), 1),
		"no id":            strings.Replace(good, id("alice"), "", 1),
		"twice":            "[" + strings.Trim(good, "[]") + "," + strings.Trim(good, "[]") + "]",
	} {
		if _, err := ParseApprovers([]byte(text)); !failure.Is(err, failure.Invalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestApprovers changes approvers and approvals, and refuses what would count one person twice or nobody.
func TestApprovers(t *testing.T) {
	t.Parallel()
	path := people(t)
	if err := AddApprovals(t.Context(), path, twoOf(t), false); err != nil {
		t.Fatal(err)
	}
	if err := AddApprovals(t.Context(), path, twoOf(t), false); !failure.Is(err, failure.Conflict) {
		t.Errorf("a second time: %v", err)
	}
	if err := AddApprovals(t.Context(), path, twoOf(t), true); err != nil {
		t.Error(err)
	}
	if err := RemoveApprover(t.Context(), path, "alice"); !failure.Is(err, failure.Conflict) {
		t.Errorf("a member: %v", err)
	}
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ParseApprovers(exported(t, map[string][]*approval.Credential{
		"alice": {enrol(t, id("alice"), approval.Passkey)}}))
	if err != nil {
		t.Fatal(err)
	}
	if err := AddApprovers(t.Context(), path, other, false); !failure.Is(err, failure.Conflict) {
		t.Errorf("another credential: %v", err)
	}
	err = AddApprovers(t.Context(), path, other, true)
	if err == nil || !strings.Contains(err.Error(), "only 1 members") {
		t.Errorf("a quorum that nobody can reach: %v", err)
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("a refused change was written: %v", err)
	}
	if err := RemoveApprovals(t.Context(), path, strings.ToUpper(app[:20])+app[20:]); err != nil {
		t.Error(err)
	}
	if err := RemoveApprovals(t.Context(), path, app); !failure.Is(err, failure.NotFound) {
		t.Errorf("none: %v", err)
	}
	for range 2 {
		err = RemoveApprover(t.Context(), path, "alice")
	}
	if !failure.Is(err, failure.NotFound) {
		t.Errorf("a removed approver: %v", err)
	}
}

// TestApprovalsByHand edits a manifest in ways that no command does, and finds each of them refused with its reason.
func TestApprovalsByHand(t *testing.T) {
	t.Parallel()
	path := people(t)
	if err := AddApprovals(t.Context(), path, twoOf(t), false); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	aliceKey := strings.ReplaceAll(strings.TrimSpace(m.Approvers[0].Credentials[0].Public), "\n", "\n      ")
	alice, err := x509.ParsePKIXPublicKey(m.Approvers[0].Credentials[0].public)
	if err != nil {
		t.Fatal(err)
	}
	aliceSSH, err := ssh.NewPublicKey(alice)
	if err != nil {
		t.Fatal(err)
	}
	bobKey := m.Approvers[1].Credentials[0].Public
	witness, log := m.Approvals[0].Witnesses[0], m.Approvals[0].Log[0]
	for _, test := range []struct{ name, old, new, want string }{
		{"nothing", "", "", ""},
		{"a comment behind an SSH key", bobKey, bobKey + " bob@laptop", ""},
		{"an option before an SSH key", bobKey, `cert-authority ` + bobKey, "not one SSH key"},
		{"a key of two people", bobKey, string(ssh.MarshalAuthorizedKey(aliceSSH)), "have the same public key"},
		{"two keys in one PEM", aliceKey, aliceKey + "\n      " + aliceKey, "not one PUBLIC KEY"},
		{"an id of two people", id("bob"), id("alice"), "have the same id"},
		{"an id", id("bob"), "bob", "hexadecimal"},
		{"a name of two people", "name: bob", "name: alice", `two approvers are named "alice"`},
		{"a name", "name: bob", "name: bob the builder", "not the name of an approver"},
		{"an unknown member", "- bob", "- dave", "not among the approvers"},
		{"a member twice", "- bob", "- alice", "twice"},
		{"a quorum of none", "quorum: 2", "quorum: 0", "is 0 of 3"},
		{"a quorum of too many", "quorum: 2", "quorum: 4", "is 4 of 3"},
		{"a quorum that cannot be reached", "quorum: 2", "quorum: 3", "only 2 members"},
		{"no kinds", "    kinds:\n    - key\n    - ssh\n", "", "does not say which kinds"},
		{"an unknown kind", "- ssh", "- gpg", "unknown or repeated kind"},
		{"a kind twice", "- ssh", "- key", "unknown or repeated kind"},
		{"attestation without passkeys", "quorum: 2", "quorum: 2\n    attestation: required", "they do not count"},
		{"an attestation", "- ssh", "- passkey\n    attestation: preferred", "attestation of the group"},
		{"a copied passkey", "- ssh", "- passkey\n    device-bound: true", "only 1 members"},
		{"too many cosignatures", "cosigned: 1", "cosigned: 2", "there are 1 witnesses"},
		{"no cosignature", "  cosigned: 1\n", "", "cosigned is 0"},
		{"a log", log, "broker.example.com/log+00000000+AQ", "verifier key"},
		{"a witness", witness, witness[:len(witness)-4], "verifier key"},
		{"an age", "2160h", "90d", "not a duration"},
		{"a negative age", "2160h", "-1h", "max-age"},
		{"an age in numbers", "2160h", "2160", "duration"},
		{"a pattern", "scope: " + app, "scope: registry.example.com/team/*", "pattern"},
		{"an unknown field", "quorum: 2", "quorum: 2\n    threshold: 2", "threshold"},
		{"everyone may sign", "level: strict", "level: audit", "at which everyone may sign"},
		{"a salt", strings.Repeat("5a", 32), strings.Repeat("5A", 32), "salt"},
		{"an origin", "https://broker.example.com", "https://br\u00f6ker.example.com", "origin"},
	} {
		text := strings.Replace(string(good), test.old, test.new, 1)
		if test.old != "" && text == string(good) {
			t.Fatalf("%s: the manifest has no %q:\n%s", test.name, test.old, good)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Load(path)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v", test.name, err)
		}
	}
}

// TestRequired reads what an export writes: exact scopes come before "*", which is for all others.
func TestRequired(t *testing.T) {
	t.Parallel()
	path, to := people(t), t.TempDir()
	of := func(repository string) []string {
		t.Helper()
		required, err := ReadApprovals(to)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, a := range required.Of(repository) {
			text := a.Scope
			for _, g := range a.Groups {
				text += fmt.Sprintf(" %s %d", g.Name, g.Quorum)
			}
			for _, p := range a.Approvers {
				text += " " + p.Name + " " + p.Credentials[0].Hash()[:9]
			}
			all = append(all, text)
		}
		return all
	}
	export := func() {
		t.Helper()
		if _, err := Export(t.Context(), path, to); err != nil {
			t.Fatal(err)
		}
	}
	export()
	if got := of(app); got != nil {
		t.Errorf("without approvals: %v", got)
	}
	everywhere := twoOf(t)
	everywhere.Scope = "*"
	everywhere.Groups[0].Quorum, everywhere.Groups[0].Members = 1, []string{"bob"}
	for _, a := range []Approvals{twoOf(t), everywhere} {
		if err := AddApprovals(t.Context(), path, a, false); err != nil {
			t.Fatal(err)
		}
	}
	export()
	for repository, want := range map[string]string{
		app: app + " release-managers 2 alice", tools: "* release-managers 1 bob"} {
		if got := of(repository); len(got) != 1 || !strings.HasPrefix(got[0], want) {
			t.Errorf("%s needs %v", repository, got)
		}
	}
	if err := RemoveApprovals(t.Context(), path, "*"); err != nil {
		t.Fatal(err)
	}
	export()
	if got := of(tools); got != nil {
		t.Errorf("%s needs %v", tools, got)
	}
	data, err := os.ReadFile(filepath.Join(to, approvalsFile))
	if err != nil || strings.Count(string(data), `"id": "`) != 4 {
		t.Errorf("%s does not have the three approvers and a passkey alone: %v", data, err)
	}
	if err := RemoveApprovals(t.Context(), path, app); err != nil {
		t.Fatal(err)
	}
	export()
	if _, err := os.Lstat(filepath.Join(to, approvalsFile)); !os.IsNotExist(err) {
		t.Errorf("without approvals, the file is %v", err)
	}
}

// TestApprovalsOrder stops exports before they replace the policy: the approvals of the policy in force and those of
// the next one are both needed, whatever is exported next.
func TestApprovalsOrder(t *testing.T) {
	t.Parallel()
	path, to := people(t), t.TempDir()
	quorums := func() []int {
		t.Helper()
		required, err := ReadApprovals(to)
		if err != nil {
			t.Fatal(err)
		}
		var all []int
		for _, a := range required.Of(app) {
			all = append(all, a.Groups[0].Quorum)
		}
		return all
	}
	interrupted := func(m *Manifest) {
		t.Helper()
		target, err := openFolder(to)
		if err != nil {
			t.Fatal(err)
		}
		required, err := m.required()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := target.write(t.Context(), m, []byte("{}"), nil, required); err == nil {
			t.Fatal("the policy was replaced")
		}
	}
	a := twoOf(t)
	if err := AddApprovals(t.Context(), path, a, false); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), path, to); err != nil || !slices.Equal(quorums(), []int{2}) {
		t.Fatal(quorums(), err)
	}
	policy := filepath.Join(to, "trustpolicy.json")
	if err := os.Rename(policy, policy+".moved"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(policy, "in the way"), 0o700); err != nil { // the policy cannot be replaced
		t.Fatal(err)
	}
	a.Groups[0].Quorum = 1
	if err := AddApprovals(t.Context(), path, a, true); err != nil {
		t.Fatal(err)
	}
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if interrupted(m); !slices.Equal(quorums(), []int{2, 1}) {
			t.Errorf("before the policy is replaced, the quorums are %v", quorums())
		}
	}
	if interrupted(&Manifest{Signers: m.Signers}); !slices.Equal(quorums(), []int{2, 1}) {
		t.Errorf("before a policy without approvals is in force, the quorums are %v", quorums())
	}
	if err := os.RemoveAll(policy); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(policy+".moved", policy); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), path, to); err != nil || !slices.Equal(quorums(), []int{1}) {
		t.Error(quorums(), err)
	}
}

// TestReadApprovals refuses a file that it does not understand as a whole.
func TestReadApprovals(t *testing.T) {
	t.Parallel()
	path, to := people(t), t.TempDir()
	if err := AddApprovals(t.Context(), path, twoOf(t), false); err != nil {
		t.Fatal(err)
	}
	if _, err := Export(t.Context(), path, to); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(to, approvalsFile)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ name, old, new string }{
		{"another version", `"version": 1`, `"version": 2`},
		{"an unknown field", `"quorum": 2`, `"quorum": 2, "veto": true`},
		{"a field twice", `"quorum": 2`, `"quorum": 2, "quorum": 1`},
		{"another spelling of the scope", app, strings.Replace(app, "registry", "REGISTRY", 1)},
		{"a default port", app, strings.Replace(app, ".com/", ".com:443/", 1)},
		{"a quorum of none", `"quorum": 2`, `"quorum": 0`},
		{"no approver", `"name": "bob"`, `"name": "eve"`},
		{"more", "\n}\n", "\n}\n{}"},
	} {
		text := strings.Replace(string(good), test.old, test.new, 1)
		if text == string(good) {
			t.Fatalf("%s: the file has no %q:\n%s", test.name, test.old, good)
		}
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if required, err := ReadApprovals(to); !failure.Is(err, failure.Invalid) || len(required) > 0 {
			t.Errorf("%s: %v, %v", test.name, required, err)
		}
		if _, err := Export(t.Context(), path, to); err == nil {
			t.Errorf("%s: the export replaced it", test.name)
		}
	}
}

// approvalsCost is what reading an exported file may allocate.
var approvalsCost = boundtest.Budget{Bytes: 256 << 10, BytesPerByte: 4 << 10}

// TestLogHint verifies that the hint for what is no key of a log names what is taken: not a PEM file.
func TestLogHint(t *testing.T) {
	t.Parallel()
	a := twoOf(t)
	a.Log = []string{"log.pem"}
	if err := a.readLog(); !strings.Contains(failure.From(err).Hint, "'hsm-broker log key'") {
		t.Errorf("%v: %s", err, failure.From(err).Hint)
	}
}

// FuzzReadApprovals reads exported approvals and approvers of all kinds, none of which costs more than its size allows.
func FuzzReadApprovals(f *testing.F) {
	path, to := people(f), f.TempDir()
	if err := AddApprovals(f.Context(), path, twoOf(f), false); err != nil {
		f.Fatal(err)
	}
	if _, err := Export(f.Context(), path, to); err != nil {
		f.Fatal(err)
	}
	data, err := os.ReadFile(filepath.Join(to, approvalsFile))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add(exported(f, map[string][]*approval.Credential{"carol": {enrol(f, id("carol"), approval.Passkey)}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		approvalsCost.Check(t, len(data), func() {
			exports, err := parseExports(data)
			for _, e := range exports {
				if err := e.read(); err != nil {
					t.Errorf("what was taken is not taken again: %v", err)
				}
			}
			if err != nil {
				_, _ = ParseApprovers(data)
			}
		})
	})
}
