// Package kubernetes holds the exports of a trust manifest against Kyverno, Ratify and a real API server. Only 'make
// kubernetes' builds those; without them, the tests that need them are skipped. They run one after another:
// each starts servers of its own, which are large.
package kubernetes

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestKubernetesExample holds deploy/kubernetes against what the exports write today, and everything in it against the
// definitions that Kyverno, Gatekeeper and Ratify publish. UPDATE_DOCS=1 writes the exports anew.
func TestKubernetesExample(t *testing.T) {
	softhsmtest.Parallel(t)
	plugin, folder := softhsmtest.Build(t, "notation-hsm"), filepath.Join(softhsmtest.Root(), "deploy", "kubernetes")
	definitions := openDefinitions(t)
	for _, format := range []string{"kyverno", "ratify"} {
		path := filepath.Join(folder, format+".yaml")
		export := softhsmtest.Run(t, plugin, "trust", "export", "--manifest", filepath.Join(folder, "trust.yaml"),
			"--format", format)
		if os.Getenv("UPDATE_DOCS") != "" {
			softhsmtest.Write(t, path, export)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(data) != export {
			t.Errorf("%s is not what the export writes; run this test with UPDATE_DOCS=1, and look at the change", path)
		}
		for _, resource := range softhsmtest.Documents(t, path) {
			if err := definitions.check(resource); err != nil {
				t.Errorf("%s: %v", path, err)
			}
			// The check can fail: on a field that is not there, and on one of another type.
			spec := resource["spec"].(map[string]any)
			spec["colour"] = "red"
			if definitions.check(resource) == nil {
				t.Errorf("%s: an unknown field is taken in %v", path, resource["kind"])
			}
			delete(spec, "colour")
			resource["spec"] = []any{spec}
			if definitions.check(resource) == nil {
				t.Errorf("%s: a list is taken for the spec of %v", path, resource["kind"])
			}
		}
	}

	// The constraint is one of the template that is exported.
	template := softhsmtest.Documents(t, filepath.Join(folder, "ratify.yaml"))[0]
	data, err := json.Marshal(template)
	if err != nil {
		t.Fatal(err)
	}
	kind := softhsmtest.Documents(t, filepath.Join(folder, "ratify-constraint.yaml"))[0]["kind"]
	if !strings.Contains(string(data), fmt.Sprintf(`"names":{"kind":%q}`, kind)) {
		t.Errorf("the template makes no constraints of kind %v: %s", kind, data)
	}
}

// TestAdmission asks Notation, Kyverno and Ratify themselves about real images, each by its export of the same
// manifest. They have to agree.
func TestAdmission(t *testing.T) {
	kyverno, ratify := clusterProgram(t, "kubectl-kyverno"), clusterProgram(t, "ratify-answers")
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	// which all three speak plain HTTP to
	repository := strings.Replace(oci.StartRegistry(t), "127.0.0.1", "localhost", 1) + "/team"
	ca := softhsmtest.NewCA(t, "Root", nil)
	folder := t.TempDir()
	for _, name := range []string{"alice", "bob", "carol", "mallory"} {
		uri := strings.TrimSpace(softhsmtest.Run(t, n.Plugin, "key", "generate", "--token", token.Label, "--spec", "EC-256",
			"--label", name))
		subject, pem := "CN="+name+",O=Example,C=CH,ST=Zurich", filepath.Join(folder, name+".pem")
		if name == "bob" || name == "carol" {
			softhsmtest.Write(t, pem, ca.IssueCSR(t, softhsmtest.Run(t, n.Plugin, "cert", "csr", uri, "--subject", subject))+
				ca.PEM())
		} else {
			softhsmtest.Write(t, pem, softhsmtest.Run(t, n.Plugin, "cert", "self-sign", uri, "--subject", subject))
		}
		softhsmtest.Run(t, n.Plugin, "cert", "import", uri, pem)
	}
	var images, names []string
	for _, name := range []string{"app", "tools", "other"} {
		for _, signers := range []string{"alice", "bob", "carol", "mallory", "mallory and alice", "nobody"} {
			digest, err := oci.PushImage(t.Context(), repository+"/"+name+":v1", name+signers)
			if err != nil {
				t.Fatal(err)
			}
			image := repository + "/" + name + "@" + digest.String()
			for _, signer := range strings.Split(signers, " and ") {
				if signer != "nobody" {
					softhsmtest.Run(t, n.Program, "sign", "--plugin", "hsm", "--id", "pkcs11:token=signing;object="+signer, image)
				}
			}
			images, names = append(images, image), append(names, signers+" in "+name)
		}
	}
	caFile := filepath.Join(folder, "ca.pem")
	softhsmtest.Write(t, caFile, ca.PEM())

	softhsmtest.Setenv(t, "NOTATION_HSM_TRUST", filepath.Join(folder, "trust.yaml"))
	softhsmtest.Setenv(t, "HOME", folder)
	export := func(format, name string) string {
		t.Helper()
		path := filepath.Join(folder, name)
		softhsmtest.Run(t, n.Plugin, "trust", "export", "--format", format, "--to", path)
		return path
	}
	expect := func(when string, good ...string) {
		t.Helper()
		softhsmtest.Setenv(t, "NOTATION_CONFIG", export("notation", "notation"))
		answers := map[string][]bool{}
		for _, image := range images {
			_, _, err := softhsmtest.Try(t, "", n.Program, "verify", image)
			answers["notation"] = append(answers["notation"], err == nil)
		}
		answers["ratify"] = askRatify(t, ratify, export("ratify", "ratify.yaml"), images)
		if _, _, err := softhsmtest.Try(t, "", n.Plugin, "trust", "export", "--format", "kyverno"); err == nil {
			for _, list := range []string{"containers", "initContainers", "ephemeralContainers", "volumes"} {
				answers["kyverno "+list] = askKyverno(t, kyverno, export("kyverno", "kyverno.yaml"), list, images)
			}
		} else if when != "a subject" {
			t.Errorf("%s: %v", when, err)
		}
		for who, list := range answers {
			for i, answer := range list {
				if wanted := slices.Contains(good, names[i]); answer != wanted {
					t.Errorf("%s: the answer of %s for %s is %v", when, who, names[i], answer)
				}
			}
		}
	}
	softhsmtest.Run(t, n.Plugin, "trust", "init")
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "alice", "--scope", repository+"/app", "--cert",
		filepath.Join(folder, "alice.pem"))
	expect("one signer", "alice in app", "mallory and alice in app")
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "team", "--scope", repository+"/app", "--scope", repository+
		"/tools",
		"--cert", caFile)
	expect("a CA as well", "alice in app", "mallory and alice in app", "bob in app", "carol in app", "bob in tools",
		"carol in tools")
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "alice", "--scope", "*")
	expect("one for the rest", "alice in app", "mallory and alice in app", "bob in app", "carol in app", "bob in tools",
		"carol in tools", "alice in other", "mallory and alice in other")
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "remove", "team")
	softhsmtest.Run(t, n.Plugin, "trust", "signer", "add", "bob", "--scope", repository+"/tools", "--cert",
		filepath.Join(folder, "bob.pem"))
	expect("a subject", "alice in app", "mallory and alice in app", "bob in tools", "alice in other",
		"mallory and alice in other")
}

// askKyverno asks about a Pod with each of the images, in one of the lists that a Pod has. They have a tag and a
// digest, as Kyverno leaves them.
func askKyverno(t testing.TB, kyverno, policy, list string, images []string) []bool {
	t.Helper()
	var pods strings.Builder
	for i, image := range images {
		image = fmt.Sprintf("%q", strings.Replace(image, "@", ":v1@", 1))
		if list == "volumes" {
			image = "{reference: " + image + "}"
		}
		fmt.Fprintf(&pods,
			"---\napiVersion: v1\nkind: Pod\nmetadata: {name: pod-%d, namespace: default}\nspec: {%s: [{name: c, image: %s}]}\n",
			i, list, image)
	}
	path := filepath.Join(t.TempDir(), "pods.yaml")
	softhsmtest.Write(t, path, pods.String())
	// It ends with 1 when a Pod is refused; the table says which.
	stdout, stderr, _ := softhsmtest.Try(t, "", kyverno, "apply", policy, "--resource", path, "--registry",
		"--remove-color", "--table", "--detailed-results")
	answers := map[string]string{}
	for line := range strings.Lines(stdout) {
		if columns := strings.Split(line, "│"); len(columns) > 5 {
			answers[strings.TrimSpace(columns[4])] = strings.TrimSpace(columns[5])
		}
	}
	var decided []bool
	for i := range images {
		answer := answers[fmt.Sprintf("default/Pod/pod-%d", i)]
		if answer != "Pass" && answer != "Fail" {
			t.Errorf("Kyverno's answer is %q\n%s%s", answer, stdout, stderr)
		}
		decided = append(decided, answer == "Pass")
	}
	return decided
}

func askRatify(t testing.TB, ratify, resources string, images []string) []bool {
	t.Helper()
	var answers []bool
	for line := range strings.Lines(softhsmtest.Run(t, ratify, append([]string{resources}, images...)...)) {
		answers = append(answers, strings.TrimSpace(line) == "true")
	}
	if len(answers) != len(images) {
		t.Errorf("Ratify has %d answers for %d images", len(answers), len(images))
	}
	return answers
}

// published returns the folder of a module as pinned in tools/kubernetes.
func published(t testing.TB, module string) string {
	t.Helper()
	output, err := softhsmtest.Go(filepath.Join(softhsmtest.Root(), "tools", "kubernetes"), "mod", "download", "-json",
		module).Output()
	var found struct{ Dir, Error string }
	if json.Unmarshal(output, &found) != nil || found.Dir == "" {
		t.Fatalf("downloading %s: %v\n%s", module, err, output)
	}
	return found.Dir
}

// clusterProgram returns a program that tools/kubernetes/build.sh built, or skips the test: building takes too long for
// 'make test'.
func clusterProgram(t testing.TB, name string) string {
	t.Helper()
	if os.Getenv("KUBERNETES") == "" {
		t.Skip("building Kubernetes, Kyverno and Ratify takes half an hour: run 'make kubernetes'")
	}
	path := filepath.Join(softhsmtest.Root(), "bin", "tools", "kubernetes", name)
	if _, err := os.Stat(path); err != nil {
		t.Fatalf("%v: run 'make kubernetes', which builds it", err)
	}
	return path
}

// definitions are the schemas of resources by kind and version.
type definitions map[string]*openapi3.Schema

// openDefinitions reads the resource definitions of Kyverno, Gatekeeper and Ratify. Fields that they don't name are
// errors, as with kubectl's strict validation.
func openDefinitions(t testing.TB) definitions {
	t.Helper()
	all := definitions{}
	for module, folder := range map[string]string{
		"github.com/kyverno/kyverno":                 "config/crds/policies.kyverno.io",
		"github.com/open-policy-agent/gatekeeper/v3": "charts/gatekeeper/crds",
		"github.com/ratify-project/ratify":           "config/crd/bases",
	} {
		files, err := filepath.Glob(filepath.Join(published(t, module), folder, "*.yaml"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no definitions: %v", module, err)
		}
		for _, file := range files {
			for _, document := range softhsmtest.Documents(t, file) {
				data, err := json.Marshal(document["spec"])
				if err != nil {
					t.Fatal(err)
				}
				var definition struct {
					Group    string
					Names    struct{ Kind string }
					Versions []struct {
						Name   string
						Schema struct{ OpenAPIV3Schema map[string]any }
					}
				}
				if err := json.Unmarshal(data, &definition); err != nil {
					t.Fatal(err)
				}
				for _, version := range definition.Versions {
					strict(version.Schema.OpenAPIV3Schema)
					data, err := json.Marshal(version.Schema.OpenAPIV3Schema)
					if err != nil {
						t.Fatal(err)
					}
					schema := &openapi3.Schema{}
					if err := schema.UnmarshalJSON(data); err != nil {
						t.Fatal(err)
					}
					all[definition.Group+"/"+version.Name+" "+definition.Names.Kind] = schema
				}
			}
		}
	}
	return all
}

// strict forbids, in a schema and all that is in it, the fields that it does not name, unless it says that there are
// others.
func strict(schema any) {
	switch schema := schema.(type) {
	case map[string]any:
		_, names := schema["properties"].(map[string]any)
		if _, more := schema["additionalProperties"]; names && !more &&
			schema["x-kubernetes-preserve-unknown-fields"] != true {
			schema["additionalProperties"] = false
		}
		for _, part := range schema {
			strict(part)
		}
	case []any:
		for _, part := range schema {
			strict(part)
		}
	}
}

func (d definitions) check(resource map[string]any) error {
	schema, ok := d[fmt.Sprintf("%v %v", resource["apiVersion"], resource["kind"])]
	if !ok {
		return fmt.Errorf("nobody defines %v %v", resource["apiVersion"], resource["kind"])
	}
	data, err := json.Marshal(resource) // the types that JSON has
	if err != nil {
		return err
	}
	var value any
	if err := json.Unmarshal(data, &value); err != nil {
		return err
	}
	return schema.VisitJSON(value)
}
