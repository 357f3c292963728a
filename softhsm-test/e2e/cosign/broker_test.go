package cosign

import (
	"testing"

	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// TestBroker signs images and attestations through the agent, which reads what they are for. The plugin has no PIN and
// no module. A file, which can be anything, is not signed, and a format that the agent was not started with neither.
func TestBroker(t *testing.T) {
	softhsmtest.Parallel(t)
	u := newUser(t)
	predicate, blob := u.file("predicate.json"), u.file("blob")
	softhsmtest.Write(t, predicate, `{"builder": {"id": "https://example.com/builder"}, "size": 2.50}`)
	softhsmtest.Write(t, blob, "hello\n")
	for _, spec := range []string{"RSA-2048", "EC-256", "EC-384"} {
		t.Run(spec, func(t *testing.T) {
			_, public := u.key(t, spec, "release-"+spec)
			agent := softhsmtest.StartAgent(t, u.token, "--formats", "notation,cosign,dsse")
			agent.Use(t)
			key := "hsm://broker:release-" + spec
			for _, envelope := range []struct {
				flag string
				sign func(*testing.T, string, ...string) (string, error)
			}{{"--new-bundle-format=true", u.sign}, {"--new-bundle-format=false", u.signOld}} {
				image := u.image(t, spec+envelope.flag)
				stderr, err := envelope.sign(t, key, "sign", "--annotations", "build=7", image)
				if err != nil {
					t.Errorf("%v\n%s", err, stderr)
				}
				u.verifies(t, key, "verify", envelope.flag, "--annotations", "build=7", image)
				u.verifies(t, public, append([]string{"verify", envelope.flag, image}, digestOf(spec)...)...)
				stderr, err = envelope.sign(t, key, "attest", "--predicate", predicate, "--type", "slsaprovenance02", image)
				if err != nil {
					t.Errorf("%v\n%s", err, stderr)
				}
				u.verifies(t, key, "verify-attestation", envelope.flag, "--type", "slsaprovenance02", image)
			}
			stderr, err := u.sign(t, key, "sign-blob", "--bundle", u.file("bundle"), blob)
			refused(t, stderr, err, "cannot read what is to be signed")
			stderr, err = u.sign(t, "hsm://broker:other", "sign", u.image(t, spec))
			refused(t, stderr, err, `there is no key "other"`)
			agent.Stop()
			stderr, err = u.sign(t, key, "sign", u.image(t, spec))
			refused(t, stderr, err, "cannot reach the broker at unix:"+agent.Socket)
		})
	}
	t.Run("formats", func(t *testing.T) {
		softhsmtest.StartAgent(t, u.token, "--formats", "notation,cosign").Use(t)
		stderr, err := u.sign(t, "hsm://broker:release-EC-256", "sign", u.image(t, "image"))
		refused(t, stderr, err, "does not accept the format dsse", "--formats")
	})
}
