package trust

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"go.yaml.in/yaml/v4"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// TestKyvernoExact holds what Kyverno may be told against what it stands for: over all certificates and subjects of a
// small world, Kyverno accepts what Notation accepts, if and only if the signers are not refused.
func TestKyvernoExact(t *testing.T) {
	a, b, lone := issue(t, name("A"), true, nil), issue(t, name("B"), true, nil), issue(t, name("lone"), false, nil)
	const base = "C=CH,ST=Zurich,O=Example"
	var choices []Signer
	for _, c := range []struct {
		cert    *pair
		kind    Kind
		subject string
	}{{a, CA, ""}, {a, CA, base}, {a, CA, base + ",CN=x"}, {b, CA, ""}, {b, CA, base},
		{lone, SelfSigned, lone.cert.Subject.String()}} {
		for _, level := range []string{"strict", "permissive", "audit"} {
			who, err := readIdentity(c.subject)
			if err != nil {
				t.Fatal(err)
			}
			choices = append(choices, Signer{Name: c.subject + level, Kind: c.kind, Subject: c.subject, cert: c.cert.cert,
				who: who, Level: level})
		}
	}
	world := []identity{{"C": "CH", "ST": "Zurich", "O": "Example", "CN": "x"},
		{"C": "CH", "ST": "Zurich", "O": "Example", "CN": "y"}, {"C": "DE", "ST": "Bavaria", "O": "Other"}}
	passed, refused := 0, 0
	for mask := 1; mask < 1<<len(choices); mask++ {
		var signers []Signer
		for i, s := range choices {
			if mask&(1<<i) != 0 {
				signers = append(signers, s)
			}
		}
		if len(signers) > 3 || exact(app, signers) != nil {
			continue
		}
		same := signers[0].Level == "strict" // which is all that Kyverno knows
		for _, s := range signers {
			for _, subject := range world {
				if s.Kind == CA { // Kyverno takes every subject under every certificate
					same = same && slices.ContainsFunc(signers,
						func(t Signer) bool { return t.cert.Equal(s.cert) && t.who.covers(subject) })
				}
			}
		}
		err := checkKyverno(group{app, signers})
		if (err == nil) != same {
			t.Errorf("the answer is %v, and Kyverno taking what is meant is %v: %s", err, same, describe(signers))
		}
		if err != nil {
			refused++
			if hint := failure.From(err).Hint; !strings.Contains(hint, "--format ratify") {
				t.Errorf("the hint is %q", hint)
			}
		} else {
			passed++
		}
	}
	t.Logf("%d combinations pass, %d are refused", passed, refused)
}

// TestClusterNames refuses the scopes that a cluster would never look up, so that the repository had other signers than
// noAttestor exports a manifest for Kyverno that needs no approvals.
func noAttestor(manifest string) ([]byte, error) { return Kyverno(manifest, "") }

// the manifest says.
func TestClusterNames(t *testing.T) {
	for scope, want := range map[string]string{
		app:                           app,
		"127.0.0.1:5000/app":          "127.0.0.1:5000/app",
		"registry:5000/app":           "registry:5000/app",
		"docker.io/library/nginx":     "docker.io/library/nginx",
		"docker.io/team/app":          "docker.io/team/app",
		"docker.io/nginx":             "docker.io/library/nginx",
		"index.docker.io/team/app":    "docker.io/team/app",
		"index.docker.io/nginx":       "docker.io/library/nginx",
		"team/app":                    "docker.io/team/app",
		"localhost/app":               "docker.io/localhost/app",
		"registry.example.com/a/b/c":  "registry.example.com/a/b/c",
		"docker.io/library/nginx/sub": "docker.io/library/nginx/sub",
		"registry-1.docker.io/app":    "docker.io/library/app",
		"example.com:443/app":         "example.com/app",
	} {
		if got, err := repository(clusterName(scope)); err != nil || got != want {
			t.Errorf("%s becomes %s, not %s: %v", scope, got, want, err)
		}
		path := manifest(t)
		if _, err := Add(t.Context(), path, Grant{Name: "alice", Scopes: []string{scope}}); err != nil {
			t.Fatal(err)
		}
		for format, export := range map[string]func(string) ([]byte, error){"kyverno": noAttestor, "ratify": Ratify} {
			data, err := export(path)
			if (err == nil) != (scope == want) || err != nil && !strings.Contains(failure.From(err).Hint, want) {
				t.Errorf("%s for %s: the failure is %v", scope, format, err)
			}
			if hub := strings.HasPrefix(scope, "docker.io/"); err == nil && format == "kyverno" &&
				hub != strings.Contains(string(data), `"index.`+scope+`": [`) {
				t.Errorf("Kyverno would look up index.%s:\n%s", scope, data)
			}
		}
	}
}

// TestRatify reads the resources as Ratify does: the policy is the one that Notation gets, and each of its trust stores
// leads to the certificates that Notation finds in it.
func TestRatify(t *testing.T) {
	path := manifest(t)
	root := issue(t, name("root"), true, nil)
	add := func(g Grant, subject string) {
		t.Helper()
		var err error
		if g.Cert, err = FromFile(file(t, root), subject); err != nil {
			t.Fatal(err)
		}
		if _, err := Add(t.Context(), path, g); err != nil {
			t.Fatal(err)
		}
	}
	add(Grant{Name: "all_of.them", Scopes: []string{"*"}, Level: "audit"}, "")
	add(Grant{Name: "x", Scopes: []string{"registry.example.com/x"}}, "C=CH,ST=Zurich,O=Example,CN=x")
	data, err := Ratify(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Load(path)
	if err != nil {
		t.Fatal(err)
	}
	providers := map[string]string{}
	var verifier struct {
		VerificationCertStores map[string]map[string][]string
		TrustPolicyDoc         trustpolicy.Document
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var resource struct {
			Kind     string
			Metadata struct{ Name string }
			Spec     struct{ Parameters map[string]any }
		}
		if err := decoder.Decode(&resource); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		switch resource.Kind {
		case "KeyManagementProvider":
			if _, twice := providers[resource.Metadata.Name]; twice {
				t.Errorf("%s is there twice", resource.Metadata.Name)
			}
			providers[resource.Metadata.Name] = resource.Spec.Parameters["value"].(string)
		case "Verifier":
			text, err := json.Marshal(resource.Spec.Parameters)
			if err != nil {
				t.Fatal(err)
			}
			strict := json.NewDecoder(bytes.NewReader(text))
			strict.DisallowUnknownFields()
			if err := strict.Decode(&verifier); err != nil {
				t.Fatal(err)
			}
		}
	}
	statements, err := m.statements()
	if err != nil {
		t.Fatal(err)
	}
	want, _ := json.Marshal(statements)
	if got, _ := json.Marshal(verifier.TrustPolicyDoc.TrustPolicies); !bytes.Equal(got, want) {
		t.Errorf("the statements are\n%s, not\n%s", got, want)
	}
	for _, s := range m.Signers {
		if list := verifier.VerificationCertStores["ca"][storeName(s)]; len(list) != 1 ||
			providers[list[0]] != s.Certificate {
			t.Errorf("the trust store of %s leads to %v", s.Name, list)
		}
	}
	if len(providers) != 2 {
		t.Errorf("there are %d certificates, not 2", len(providers))
	}
}

// TestExportedExample holds the exports of deploy/kubernetes/trust.yaml against the files beside it, which reviewers
// see change. TestKubernetesExample in softhsm-test/e2e/kubernetes writes them.
func TestExportedExample(t *testing.T) {
	folder := filepath.Join("..", "..", "deploy", "kubernetes")
	for name, export := range map[string]func(string) ([]byte, error){"kyverno.yaml": noAttestor, "ratify.yaml": Ratify} {
		got, err := export(filepath.Join(folder, "trust.yaml"))
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("the export is not %s:\n%s", name, got)
		}
		if name == "kyverno.yaml" && bytes.Count(got, []byte("\n  - Deny\n")) != 1 {
			t.Error("docs/kubernetes.md replaces the one line '- Deny'")
		}
	}
}

// TestAttestor refuses to leave approvals out, and attestors whom Kyverno would take for others.
func TestAttestor(t *testing.T) {
	t.Parallel()
	path := people(t)
	attestor := issue(t, name("attestor"), false, nil)
	if _, err := Kyverno(path, file(t, attestor)); !failure.Is(err, failure.Invalid) {
		t.Errorf("an attestor without approvals: %v", err)
	}
	if err := AddApprovals(t.Context(), path, twoOf(t), false); err != nil {
		t.Fatal(err)
	}
	for format, export := range map[string]func(string) ([]byte, error){"kyverno": noAttestor, "ratify": Ratify} {
		if _, err := export(path); !failure.Is(err, failure.Unsupported) || !strings.Contains(err.Error(), app) {
			t.Errorf("%s without an attestor: %v", format, err)
		}
	}
	data, err := Kyverno(path, file(t, attestor))
	if err != nil || !strings.Contains(string(data), kyvernoApprovalsHeader) ||
		!strings.Contains(string(data), `"`+app+`"`) {
		t.Errorf("%s: %v", data, err)
	}
	ca := issue(t, name("CA"), true, nil)
	if _, err := Kyverno(path, file(t, issue(t, name("attestor"), false, ca), ca)); !failure.Is(err, failure.Unsupported) {
		t.Errorf("a subject under a CA: %v", err)
	}
	if _, err := Kyverno(path, file(t, ca)); err != nil {
		t.Errorf("a CA: %v", err)
	}
	addSigner(t, path, Grant{Name: "bot", Scopes: []string{app}}, attestor, "")
	if _, err := Kyverno(path, file(t, attestor)); !failure.Is(err, failure.Invalid) {
		t.Errorf("a signer: %v", err)
	}
	other := twoOf(t)
	other.Scope = "index.docker.io/team/app"
	if err := AddApprovals(t.Context(), path, other, false); err != nil {
		t.Fatal(err)
	}
	if _, err := Kyverno(path, file(t, issue(t, name("attestor"), false, nil))); !failure.Is(err, failure.Invalid) ||
		!strings.Contains(failure.From(err).Hint, "docker.io/team/app") {
		t.Errorf("another name of a repository: %v", err)
	}
}
