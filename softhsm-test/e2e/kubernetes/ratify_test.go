package kubernetes

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestClusterRatify asks Gatekeeper's and Ratify's own servers at a real API server, with the resources as they are
// exported, the constraint beside them, and what the Helm charts of both install as the page tells to.
func TestClusterRatify(t *testing.T) {
	program := clusterProgram(t, "ratify")
	s, c := newSignedImages(t), startCluster(t)
	c.run(t, "", "apply", "--server-side", "-f",
		filepath.Join(published(t, "github.com/ratify-project/ratify"), "config", "crd", "bases"))
	softhsmtest.Setenv(t, "KUBECONFIG", c.config)
	softhsmtest.Setenv(t, "RATIFY_NAMESPACE", "gatekeeper-system")
	softhsmtest.Setenv(t, "RATIFY_NAME", "ratify")
	addresses, config := softhsmtest.FreeAddresses(t, 2), filepath.Join(s.folder, "ratify.json")
	softhsmtest.Write(t, config, `{"executor": {"verificationRequestTimeout": 13900, "mutationRequestTimeout": 3950}}`)
	ratify := softhsmtest.Start(t, program, "serve", "--http", addresses[0], "-c", config, "--enable-crd-manager",
		"--cert-dir", c.certificate(t), "--health-port", addresses[1], "--cache-enabled=false")
	logAtFailure(t, ratify)
	c.run(t, `apiVersion: config.ratify.deislabs.io/v1beta1
kind: Store
metadata: {name: store-oras}
spec: {name: oras, version: 1.0.0, parameters: {useHttp: true}}
`, "apply", "-f", "-")
	startGatekeeper(t, c, s, addresses[0])
	checkAdmission(t, c, s, func() { ratify.Signal(t, syscall.SIGSTOP) }, func() { ratify.Signal(t, syscall.SIGCONT) })
}

// TestClusterAnswers holds Gatekeeper with the exported template against answers that Ratify does not give when it
// verified an image. In its place, a server answers in its form what notation says, and then something else.
func TestClusterAnswers(t *testing.T) {
	clusterProgram(t, "gatekeeper")
	s, c := newSignedImages(t), startCluster(t)
	verifier := startStandIn(t, c, s)
	gatekeeper := startGatekeeper(t, c, s, verifier.address)
	checkAdmission(t, c, s, func() { verifier.pause.Lock() }, func() { verifier.pause.Unlock() })

	// None, one that says something else, and one about another image.
	good := pod("bad", s.pinned(s.second), "", "")
	for _, answer := range []string{
		`"items": []`, `"items": [{"key": %q, "value": {}}]`, `"items": [{"key": %q, "value": {"isSuccess": "true"}}]`,
		`"items": [{"key": %q, "value": true}]`, `"items": [{"key": %q, "error": "failed"}]`,
		`"items": [{"key": "other", "value": {"isSuccess": true}}]`, `"systemError": "failed"`,
	} {
		verifier.answer.Store(&answer)
		if _, stderr, err := c.try(t, good, "create", "-f", "-"); err == nil || !strings.Contains(stderr, refusedUnsigned) {
			t.Errorf("with the answer %s: %v\n%s", answer, err, stderr)
		}
	}
	verifier.answer.Store(nil)
	c.run(t, good, "create", "-f", "-")

	// The tag stays when Gatekeeper does not ask for the digest, and is refused then: what runs could be another image.
	c.run(t, "", "delete", "mutatingwebhookconfigurations", "gatekeeper-mutating-webhook-configuration")
	waitFor(t, "the tag to be refused", gatekeeper, func() bool {
		_, stderr, err := c.try(t, pod("probe", s.second, "", ""), "create", "--dry-run=server", "-f", "-")
		return err != nil && strings.Contains(stderr, refusedTag)
	})
}

// startGatekeeper starts Gatekeeper's server with the exported resources, the constraint, and the Assigns of Ratify's
// chart, and waits until a Pod is refused and another admitted. ratify is the address of who answers for Ratify.
func startGatekeeper(t testing.TB, c *cluster, s *signedImages, ratify string) *softhsmtest.Service {
	t.Helper()
	gatekeeperModule, ratifyModule := published(t, "github.com/open-policy-agent/gatekeeper/v3"),
		published(t, "github.com/ratify-project/ratify")
	c.run(t, "", "apply", "--server-side", "-f", filepath.Join(gatekeeperModule, "charts", "gatekeeper", "crds"))
	c.run(t, "", "apply", "--server-side", "-f", filepath.Join(ratifyModule, "config", "crd", "bases"))
	c.run(t, "", "create", "namespace", "gatekeeper-system")
	softhsmtest.Setenv(t, "KUBECONFIG", c.config)
	softhsmtest.Setenv(t, "POD_NAMESPACE", "gatekeeper-system")
	addresses := softhsmtest.FreeAddresses(t, 3)
	_, port, _ := strings.Cut(addresses[0], ":")
	gatekeeper := softhsmtest.Start(t, clusterProgram(t, "gatekeeper"), "--host", "127.0.0.1", "--port", port,
		"--cert-dir", c.certificate(t), "--disable-cert-rotation",
		"--health-addr", addresses[1], "--prometheus-port", strings.Split(addresses[2], ":")[1],
		"--exempt-namespace=gatekeeper-system",
		"--debug-use-fake-pod", "--logtostderr", "--disable-opa-builtin={http.send}",
		"--external-data-provider-response-cache-ttl=0s") // as the export demands
	logAtFailure(t, gatekeeper)

	bundle := base64.StdEncoding.EncodeToString([]byte(c.ca.PEM()))
	hook := func(path string) string {
		return fmt.Sprintf(`{url: "https://%s%s", caBundle: %s}`, addresses[0], path, bundle)
	}
	rules := `admissionReviewVersions: [v1], matchPolicy: Exact, sideEffects: None,
  namespaceSelector: {matchExpressions: [
    {key: kubernetes.io/metadata.name, operator: NotIn, values: [gatekeeper-system]}]},
  rules: [{apiGroups: ['*'], apiVersions: ['*'], operations: [CREATE, UPDATE],
    resources: ['*', pods/ephemeralcontainers]}]`
	provider := func(name, path string, timeout int) string {
		return fmt.Sprintf(`---
apiVersion: externaldata.gatekeeper.sh/v1beta1
kind: Provider
metadata: {name: %s}
spec: {url: "https://%s/ratify/gatekeeper/v1/%s", timeout: %d, caBundle: %s}
`, name, ratify, path, timeout, bundle)
	}
	c.run(t, provider("ratify-provider", "verify", 14)+provider("ratify-mutation-provider", "mutate", 4), "apply", "-f",
		"-")
	c.run(t, "", "apply", "-f", mutations(t, ratifyModule))

	resources := s.export(t, "ratify")
	c.run(t, "", "apply", "-f", resources)
	constraint := filepath.Join(softhsmtest.Root(), "deploy", "kubernetes", "ratify-constraint.yaml")
	waitFor(t, "Gatekeeper to take the template", gatekeeper, func() bool {
		_, _, err := c.try(t, "", "apply", "-f", constraint)
		return err == nil
	})
	c.run(t, fmt.Sprintf(`apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: gatekeeper-mutating-webhook-configuration}
webhooks:
- {name: mutation.gatekeeper.sh, timeoutSeconds: 5, failurePolicy: Ignore, clientConfig: %s, %s}
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: gatekeeper-validating-webhook-configuration}
webhooks:
- {name: validation.gatekeeper.sh, timeoutSeconds: 15, failurePolicy: Fail, clientConfig: %s, %s}
`, hook("/v1/mutate"), rules, hook("/v1/admit"), rules), "apply", "-f", "-")
	for _, what := range []struct{ image, refusal string }{{s.pinned(s.unsigned), refusedUnsigned}, {s.app, ""},
		{s.pinned(s.app), ""}} {
		waitFor(t, "Gatekeeper's answer for "+what.image, gatekeeper, func() bool {
			_, stderr, err := c.try(t, pod("probe", what.image, "", ""), "create", "--dry-run=server", "-f", "-")
			return err == nil && what.refusal == "" || err != nil && what.refusal != "" && strings.Contains(stderr,
				what.refusal)
		})
	}
	return gatekeeper
}

// A standIn answers Gatekeeper in the place of Ratify, in the form that its answers have.
type standIn struct {
	address string
	pause   sync.Mutex             // locked while it hangs
	answer  atomic.Pointer[string] // in the place of the true one, when set; it may have the key
}

func startStandIn(t testing.TB, c *cluster, s *signedImages) *standIn {
	t.Helper()
	softhsmtest.Run(t, s.plugin, "trust", "export", "--to", filepath.Join(s.folder, "notation"))
	softhsmtest.Setenv(t, "NOTATION_CONFIG", filepath.Join(s.folder, "notation"))
	v := &standIn{}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v.pause.Lock()
		v.pause.Unlock() //nolint:staticcheck // it waits
		var request struct{ Request struct{ Keys []string } }
		if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
			t.Error(err)
		}
		var items []string
		for _, image := range request.Request.Keys {
			items = append(items, v.item(t, s, r.URL.Path, image))
		}
		answer := `"items": [` + strings.Join(items, ", ") + `]`
		if other := v.answer.Load(); other != nil && strings.HasSuffix(r.URL.Path, "/verify") {
			answer = strings.Replace(*other, "%q", strconv.Quote(request.Request.Keys[0]), 1)
		}
		fmt.Fprintf(w,
			`{"apiVersion": "externaldata.gatekeeper.sh/v1beta1", "kind": "ProviderResponse", `+
				`"response": {"idempotent": true, %s}}`, answer)
	}))
	dir := c.certificate(t)
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"))
	if err != nil {
		t.Fatal(err)
	}
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS13}
	server.StartTLS()
	t.Cleanup(server.Close)
	v.address = server.Listener.Addr().String()
	return v
}

// item is the answer about an image: its reference by digest, or whether notation verifies it.
func (v *standIn) item(t testing.TB, s *signedImages, path, image string) string {
	if strings.HasSuffix(path, "/mutate") {
		if strings.Contains(image, "@") {
			return fmt.Sprintf(`{"key": %q, "value": %[1]q}`, image)
		}
		repository, err := oci.Open(image)
		if err != nil {
			return fmt.Sprintf(`{"key": %q, "error": %q}`, image, err)
		}
		resolved, err := repository.Resolve(t.Context(), repository.Reference.Reference)
		if err != nil {
			return fmt.Sprintf(`{"key": %q, "error": %q}`, image, err)
		}
		return fmt.Sprintf(`{"key": %q, "value": %q}`, image,
			repository.Reference.Registry+"/"+repository.Reference.Repository+"@"+resolved.Digest.String())
	}
	_, _, err := softhsmtest.Try(t, "", s.notation, "verify", "--insecure-registry", image)
	return fmt.Sprintf(`{"key": %q, "value": {"isSuccess": %t}}`, image, err == nil)
}

// mutations returns a file with the Assigns of Ratify's Helm chart, which replace tags with digests.
func mutations(t testing.TB, module string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(module, "charts", "ratify", "templates", "assign.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var kept []string
	for line := range strings.Lines(strings.NewReplacer(
		`{{ include "ratify.assignGKVersion" . }}`, "apiVersion: mutations.gatekeeper.sh/v1",
		`{{ include "ratify.assignExcludedNamespaces" . | nindent 6 }}`, "[gatekeeper-system, kube-system]",
	).Replace(string(data))) {
		if !strings.Contains(line, "{{") { // the value that turns all of it on
			kept = append(kept, line)
		}
	}
	path := filepath.Join(t.TempDir(), "assign.yaml")
	softhsmtest.Write(t, path, strings.Join(kept, ""))
	return path
}
