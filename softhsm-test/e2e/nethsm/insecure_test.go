package nethsm

import (
	"context"
	"fmt"
	"strings"
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestNetHSMInsecure signs with the real notation and a NetHSM whose certificate is not verified. That is refused, with
// a message that notation shows, until it is set for this key; and even then no PIN for tokens in general is sent.
func TestNetHSMInsecure(t *testing.T) {
	softhsmtest.Parallel(t)
	h, n := NewNetHSM(t)
	if h.Server == nil {
		t.Skip("a real NetHSM tells nobody its requests")
	}
	registry := oci.StartRegistry(t)
	uri, pem := softhsmtest.NewKey(t, h.Token, n.Plugin, "EC-256", "release")
	n.Trust(t, pem)
	digest, err := oci.PushImage(context.Background(), registry+"/app:v1", "app")
	if err != nil {
		t.Fatal(err)
	}
	image := fmt.Sprintf("%s/app@%s", registry, digest)
	sign := func(arguments ...string) (string, error) {
		h.Server.ResetRequests()
		stdout, stderr, err := softhsmtest.Try(t, "", n.Program,
			append([]string{"sign", "--insecure-registry", "--plugin", "hsm", "--id", uri, image}, arguments...)...)
		return stdout + stderr, err
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_FINGERPRINTS", "")
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_CA_FILE", "")
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_INSECURE", "true")
	output, err := sign()
	if err == nil || !strings.Contains(output, "NOT verified") || !strings.Contains(output, "nethsm-insecure=true") ||
		len(h.Server.Requests()) > 0 {
		t.Errorf("by the variable alone: %v: %s: %+v", err, output, h.Server.Requests())
	}
	output, err = sign("--plugin-config", "nethsm-insecure=true")
	if err == nil || !strings.Contains(output, "not sent to it") ||
		!strings.Contains(output, "NOTATION_HSM_NETHSM_PIN_SOURCE") {
		t.Errorf("with the PIN of any token: %v: %s", err, output)
	}
	for _, r := range h.Server.Requests() {
		if r.User != "" {
			t.Errorf("credentials were sent: %+v", r)
		}
	}
	softhsmtest.Setenv(t, "NOTATION_HSM_NETHSM_PIN_SOURCE", "env:TEST_OPERATOR")
	if output, err = sign("--plugin-config", "nethsm-insecure=true"); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
}
