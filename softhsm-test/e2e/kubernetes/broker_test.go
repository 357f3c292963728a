package kubernetes

import (
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestBrokerManifests has an API server check the manifests of a broker, with all fields that it does not know as
// errors, and its admission of Pods that the namespace restricts.
func TestBrokerManifests(t *testing.T) {
	c := startCluster(t)
	c.run(t, "", "create", "namespace", "hsm-broker")
	var path string
	for _, name := range []string{"broker.yaml", "replicas.yaml"} {
		path = filepath.Join(softhsmtest.Root(), "deploy", "broker", "kubernetes", name)
		out, warnings, err := c.try(t, "", "apply", "--dry-run=server", "--validate=strict", "-f", path)
		if err != nil {
			t.Fatalf("%s: %v\n%s%s", name, err, out, warnings)
		}
		if strings.Contains(warnings, "would violate") || !strings.Contains(out, "statefulset.apps/hsm-broker") {
			t.Errorf("%s is not admitted as it is:\n%s%s", name, out, warnings)
		}
	}
	broken := strings.Replace(softhsmtest.Read(t, path), "serviceName:", "servicename:", 1)
	if out, _, err := c.try(t, broken, "apply", "--dry-run=server", "--validate=strict", "-f", "-"); err == nil {
		t.Errorf("an unknown field is taken:\n%s", out)
	}
}
