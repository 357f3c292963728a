// Package broker tests, end to end, keys that are used through hsm-broker.
package broker

import (
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
	"github.com/notation-hsm/notation-hsm/softhsm-test/oci"
)

// TestSign signs an image through the agent and verifies it, by the key's URI and by its name at the agent, in both
// envelopes. The client has no PIN and no module.
func TestSign(t *testing.T) {
	softhsmtest.Parallel(t)
	token := softhsmtest.NewToken(t, "signing")
	n := softhsmtest.NewNotation(t, token)
	registry := oci.StartRegistry(t)
	for _, spec := range []string{"RSA-2048", "EC-256"} {
		uri, pem := softhsmtest.NewKey(t, token, n.Plugin, spec, "release-"+spec)
		n.Trust(t, pem)
		t.Run(spec, func(t *testing.T) {
			softhsmtest.StartAgent(t, token).Use(t)
			for _, id := range []string{uri, "broker:release-" + spec} {
				for _, format := range []string{"jws", "cose"} {
					digest, err := oci.PushImage(t.Context(), registry+"/app:v1", id+format)
					if err != nil {
						t.Fatal(err)
					}
					image := registry + "/app@" + digest.String()
					softhsmtest.Run(t, n.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id", id,
						"--signature-format", format, "--user-metadata", "io.example.build=7", "--expiry", "24h", image)
					softhsmtest.Run(t, n.Program, "verify", "--insecure-registry", image)
				}
			}
		})
	}
}
