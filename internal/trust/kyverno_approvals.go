package trust

import (
	"crypto/x509"
	"fmt"
	"strconv"
	"strings"

	"github.com/notation-hsm/notation-hsm/internal/certs"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const kyvernoApprovalsHeader = `#
# The manifest needs approvals, and Kyverno cannot verify them: neither who agreed, nor their signatures, groups and
# quorums, nor the broker's log, its witnesses and the age of a signature. In their place, this policy needs a bundle of
# approvals of the image that the attestor signed with Notation. So it trusts the attestor to sign only what
# 'hsm-image approvals verify' has accepted. Images need no more approvals than that once the attestor has signed. What
# verifies approvals itself is 'hsm-image verify' and containerd's gate, on the nodes.
`

// bundleType is the media type of a bundle of approvals, as package proof has it.
const bundleType = "application/vnd.notation-hsm.approvals.v1+json"

// kyvernoAttestorName is a name that no signer can have.
const kyvernoAttestorName = "Attestor"

// attestor returns the certificate of who signs bundles of approvals, or nil if signatures need none.
func (m *Manifest) attestor(file string) (*x509.Certificate, error) {
	switch {
	case file == "" && len(m.Approvals) == 0:
		return nil, nil
	case file == "":
		return nil, failure.New(failure.Unsupported, "signatures in %q need approvals: Kyverno can check neither who agreed "+
			"nor that the broker's log has the signature", m.Approvals[0].Scope).
			WithHint("verify on the nodes, with hsm-image install-verifier; or trust someone who verifies approvals and signs " +
				"them for Kyverno: --approvals-attestor CERT")
	case len(m.Approvals) == 0:
		return nil, failure.New(failure.Invalid, "there is an attestor of approvals, and no signature needs approvals").
			WithHint("remove --approvals-attestor; or add approvals with: notation-hsm trust approvals add SCOPE")
	}
	c, err := FromFile(file, "")
	if err != nil {
		return nil, err
	}
	if c.kind != SelfSigned && c.subject != "" {
		return nil, failure.New(failure.Unsupported,
			"the attestor has the subject %q under the CA %q, and Kyverno accepts every subject under a CA", c.subject,
			c.trusted.Subject).
			WithHint("use a self-signed certificate, or that of an issuing CA which certifies the attestor alone")
	}
	for _, s := range m.Signers {
		if s.cert.Equal(c.trusted) {
			return nil, failure.New(failure.Invalid, "the attestor of approvals is the signer %q", s.Name).
				WithHint("use a key of its own, which the holders of the signing keys cannot use")
		}
	}
	return c.trusted, nil
}

// demandApprovals adds to the policy that images in the scopes of approvals need a bundle that the attestor signed.
func (s *kyvernoSpec) demandApprovals(approvals []Approvals, attestor *x509.Certificate) {
	trusted := kyvernoAttestor{Name: kyvernoAttestorName}
	trusted.Notary.Certs.Value = string(certs.Encode([]*x509.Certificate{attestor}))
	s.Attestors = append(s.Attestors, trusted)
	s.Attestations = []any{map[string]any{"name": "approvals", "referrer": map[string]string{"type": bundleType}}}
	everywhere := false
	var names []string
	for _, a := range approvals {
		everywhere = everywhere || a.Scope == anyone
		names = append(names, strconv.Quote(kyvernoName(a.Scope)))
	}
	needed := fmt.Sprintf("variables.images.filter(image,\n  %s in [\n  %s\n])", kyvernoRepository,
		strings.Join(names, ",\n  "))
	if everywhere { // other scopes have approvals of their own, not none
		needed = "variables.images"
	}
	s.Variables = append(s.Variables, expression{"needing", needed}, expression{"unapproved", kyvernoUnapproved})
	s.Validations = append(s.Validations, validation{"size(variables.unapproved) == 0",
		`"no bundle of approvals that the attestor signed: " + variables.unapproved.join(", ")`})
}

// kyvernoUnapproved is CEL for the images without a bundle of approvals that the attestor signed. A registry can list
// the bundle of another image, so the statement in it has to name the digest.
const kyvernoUnapproved = `variables.needing.filter(image,
  !(image.matches("@sha256:[0-9a-f]{64}$") &&
    verifyAttestationSignatures(image, attestations.approvals, [attestors["` + kyvernoAttestorName + `"]]) > 0 &&
    json.unmarshal(string(base64.decode(extractPayload(image, attestations.approvals).statement)))` +
	`.predicate.targets.exists(
      target, target.digest == image.substring(image.lastIndexOf("@") + 1))))`
