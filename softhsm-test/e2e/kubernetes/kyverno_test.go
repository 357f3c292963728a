package kubernetes

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestClusterKyverno asks Kyverno's own server at a real API server, with the webhooks that Kyverno registers and the
// policy as it is exported.
func TestClusterKyverno(t *testing.T) {
	program := clusterProgram(t, "kyverno")
	s, c := newSignedImages(t), startCluster(t)
	for _, folder := range []string{"kyverno", "policies.kyverno.io", "policyreport", "reports"} {
		c.run(t, "", "apply", "--server-side", "-f",
			filepath.Join(published(t, "github.com/kyverno/kyverno"), "config", "crds", folder))
	}
	// The configuration is that of Kyverno's Helm chart.
	c.run(t, `apiVersion: v1
kind: Namespace
metadata: {name: kyverno}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kyverno-metrics, namespace: kyverno}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: kyverno, namespace: kyverno}
data:
  excludeGroups: system:nodes
  resourceFilters: '[Event,*,*] [*/*,kube-system,*] [*/*,kube-public,*]
    [*/*,kube-node-lease,*] [Node,*,*] [*/*,kyverno,*]'
  webhooks: '{"namespaceSelector": {"matchExpressions": [{"key": "kubernetes.io/metadata.name",
    "operator": "NotIn", "values": ["kube-system", "kyverno"]}]}}'
`, "create", "-f", "-")
	for _, pair := range []string{"NAMESPACE=kyverno", "SERVICEACCOUNT_NAME=kyverno-admission-controller",
		"DEPLOYMENT=kyverno-admission-controller",
		"POD_NAME=kyverno-admission-controller-0", "ROLE_NAME=kyverno:admission-controller", "SVC=kyverno-svc"} {
		name, value, _ := strings.Cut(pair, "=")
		softhsmtest.Setenv(t, "KYVERNO_"+name, value)
	}
	softhsmtest.Setenv(t, "INIT_CONFIG", "kyverno")
	softhsmtest.Setenv(t, "METRICS_CONFIG", "kyverno-metrics")
	address := softhsmtest.FreeAddresses(t, 1)[0]
	kyverno := softhsmtest.Start(t, program, "--kubeconfig", c.config, "--serverIP", address, "--webhookServerHost",
		"127.0.0.1", "--webhookServerPort", address[strings.LastIndex(address, ":")+1:], "--caSecretName", "kyverno-ca",
		"--tlsSecretName",
		"kyverno-tls",
		"--backgroundServiceAccountName", "system:serviceaccount:kyverno:kyverno-background-controller",
		"--reportsServiceAccountName", "system:serviceaccount:kyverno:kyverno-reports-controller",
		"--disableMetrics", "--controllerRuntimeMetricsAddress", "0",
		// Kyverno ends when it does not renew its lease, which a slow machine may not let it
		"--leaderElectionRetryPeriod=60s",
		"--imageVerifyCacheEnabled=false") // as the export demands
	logAtFailure(t, kyverno)
	waitFor(t, "Kyverno's webhooks", kyverno, func() bool {
		hooks, _, err := c.try(t, "", "get", "validatingwebhookconfigurations", "kyverno-policy-validating-webhook-cfg",
			"--ignore-not-found")
		return err == nil && hooks != ""
	})

	policy := s.export(t, "kyverno")
	waitFor(t, "Kyverno to take the policy", kyverno, func() bool {
		_, _, err := c.try(t, "", "apply", "-f", policy)
		return err == nil
	})
	// With no permission but the chart's: the reports controller has none here.
	waitFor(t, "the policy to be ready", kyverno, func() bool {
		return c.run(t, "", "get", "imagevalidatingpolicy", "notation-hsm", "-o",
			"jsonpath={.status.conditionStatus.ready}") == "true"
	})
	waitFor(t, "the policy to be enforced", kyverno, func() bool {
		_, stderr, err := c.try(t, pod("probe", s.pinned(s.unsigned), "", ""), "create", "--dry-run=server", "-f", "-")
		return err != nil && strings.Contains(stderr, refusedUnsigned)
	})
	checkAdmission(t, c, s, func() { kyverno.Signal(t, syscall.SIGSTOP) }, func() { kyverno.Signal(t, syscall.SIGCONT) })

	// Audit lets in what Deny refuses.
	unsigned := pod("unsigned", s.pinned(s.unsigned), "", "")
	data, err := os.ReadFile(policy)
	if err != nil {
		t.Fatal(err)
	}
	c.run(t, strings.Replace(string(data), "\n  - Deny\n", "\n  - Audit\n", 1), "apply", "-f", "-")
	waitFor(t, "the policy to audit", kyverno, func() bool {
		_, _, err := c.try(t, unsigned, "create", "--dry-run=server", "-f", "-")
		return err == nil
	})
	c.run(t, "", "apply", "-f", policy)
	waitFor(t, "the policy to deny", kyverno, func() bool {
		_, _, err := c.try(t, unsigned, "create", "--dry-run=server", "-f", "-")
		return err != nil
	})

	// Break glass, as the page says, while Kyverno is down.
	kyverno.Signal(t, syscall.SIGSTOP)
	c.run(t, "", "delete", "validatingwebhookconfigurations", "kyverno-resource-validating-webhook-cfg")
	c.run(t, "", "delete", "mutatingwebhookconfigurations", "kyverno-resource-mutating-webhook-cfg")
	waitFor(t, "the webhooks to be gone", kyverno, func() bool {
		_, _, err := c.try(t, unsigned, "create", "-f", "-")
		return err == nil
	})
}
