package approvals

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"strings"
	"testing"

	"github.com/notation-hsm/notation-hsm/internal/translog"
	softhsmtest "github.com/notation-hsm/notation-hsm/softhsm-test"
)

// attachPolicy has a rule with two people.
const attachPolicy = `version: 1
groups:
  release-managers: [erin, frank]
keys:
  release:
    key: pkcs11:token=prod;object=release
    formats: [notation]
    use:
    - name: release
      when: caller.issuer == "ISSUER" && artifact.repository == "REGISTRY/app"
      approvals: [{group: release-managers, quorum: 2, kinds: [ssh]}]
      same: [repository, ref]
    modify: [{name: managers, approvals: [{group: release-managers, quorum: 1}]}]
`

// TestAttach puts the approvals of an image beside it, and audits the repository: a signature with the PIN alone has no
// approvals, and is not in the log.
func TestAttach(t *testing.T) {
	softhsmtest.Parallel(t)
	s := start(t, options{policy: attachPolicy, people: []person{{name: "erin", kind: "ssh"}, {name: "frank",
		kind: "ssh"}}})
	program := softhsmtest.Build(t, "hsm-image")
	const ref = "refs/tags/v1"
	name, digest := s.image("app", "release")
	image := name + "@" + digest
	made := s.create(ref, image)
	s.runAs("erin", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	s.runAs("frank", 0, digest, "approve", made.ID, "--yes", "--plain-http")
	s.signs(ref, image)

	s.ends(0, "attached: the approvals", s.job(ref), program, "approvals", "attach", "--plain-http", image)
	s.ends(0, "has already: the approvals", s.job(ref), program, "approvals", "attach", "--plain-http",
		"--request", made.ID, image)
	shown := s.ends(0, "request "+made.ID, nil, program, "approvals", "show", "--plain-http", image)
	if strings.Count(shown, "  approved ") != 2 || !strings.Contains(shown, ", ssh") ||
		!strings.Contains(shown, "not verified") {
		t.Errorf("show prints\n%s", shown)
	}

	audit := []string{"audit", "--plain-http", "--log", s.URL + "/v1/log", "--ca", s.CA, "--key", s.logKey(), name}
	s.ends(0, "signatures       1", nil, program, audit...)
	softhsmtest.Run(t, s.notation.Program, "sign", "--insecure-registry", "--plugin", "hsm", "--id",
		"pkcs11:token=prod;object=release", image)
	s.ends(1, "incidents        1", nil, program, audit...)
}

// logKey returns the line of the log's public key.
func (s *site) logKey() string {
	s.t.Helper()
	data, err := os.ReadFile(s.LogFlags()[1])
	if err != nil {
		s.t.Fatal(err)
	}
	block, _ := pem.Decode(data)
	public, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := translog.NewVerifier(softhsmtest.LogOrigin, public)
	if err != nil {
		s.t.Fatal(err)
	}
	return v.String()
}
