package kubernetes

import (
	"path/filepath"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestTagManifests has an API server check the manifests of a publisher of tags, with all fields that it does not know
// as errors, and its admission of Pods that the namespace restricts.
func TestTagManifests(t *testing.T) {
	c := startCluster(t)
	c.run(t, "", "create", "namespace", "hsm-tags")
	path := filepath.Join(softhsmtest.Root(), "deploy", "tags", "kubernetes", "cronjob.yaml")
	out, warnings, err := c.try(t, "", "apply", "--dry-run=server", "--validate=strict", "-f", path)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out, warnings)
	}
	if strings.Contains(warnings, "would violate") || !strings.Contains(out, "cronjob.batch/hsm-tags") {
		t.Errorf("the manifests are not admitted as they are:\n%s%s", out, warnings)
	}
	broken := strings.Replace(softhsmtest.Read(t, path), "concurrencyPolicy:", "concurrencypolicy:", 1)
	if out, _, err := c.try(t, broken, "apply", "--dry-run=server", "--validate=strict", "-f", "-"); err == nil {
		t.Errorf("an unknown field is taken:\n%s", out)
	}
}
