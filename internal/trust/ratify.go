package trust

import (
	_ "embed"
	"slices"
	"strings"

	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const ratifyHeader = `# Who may sign the images of this cluster: the trust manifest, as
# 'notation-hsm trust export --format ratify' writes it. Change the manifest, not this file.
#
# Gatekeeper and Ratify cache for 3 minutes and 10 seconds that an image passed: a revocation, and the deletion of a
# signature, take effect that much later. With Helm, install Gatekeeper with
#   --set externaldataProviderResponseCacheTTL=0s
# and Ratify with
#   --set provider.cache.enabled=false --set oras.cache.enabled=false
# What refuses a Pod is a constraint of kind SignedImages, whose template is below.
`

// ratifyRego decides for Gatekeeper about a Pod, from Ratify's answers about its images.
//
//go:embed ratify.rego
var ratifyRego string

const (
	ratifyVersion     = "config.ratify.deislabs.io/v1beta1"
	notationSignature = "application/vnd.cncf.notary.signature"
)

// ratifyVerifier is the part that is needed here of the spec of Ratify's Verifier.
type ratifyVerifier struct {
	Name          string `json:"name"`
	Type          string `json:"type"`
	ArtifactTypes string `json:"artifactTypes"`
	Parameters    struct {
		// type -> trust store -> key management providers
		Stores map[string]map[string][]string `json:"verificationCertStores"`
		Policy trustpolicy.Document           `json:"trustPolicyDoc"`
	} `json:"parameters"`
}

// ratifyTyped is the spec of Ratify's KeyManagementProvider and Policy.
type ratifyTyped struct {
	Type       string         `json:"type"`
	Parameters map[string]any `json:"parameters"`
}

// ratifyTemplate is the spec of Gatekeeper's ConstraintTemplate: the kind that constraints have, and what they demand.
type ratifyTemplate struct {
	CRD struct {
		Spec struct {
			Names struct {
				Kind string `json:"kind"`
			} `json:"names"`
		} `json:"spec"`
	} `json:"crd"`
	Targets []ratifyTarget `json:"targets"`
}

type ratifyTarget struct {
	Target string `json:"target"`
	Rego   string `json:"rego"`
}

// Ratify returns the manifest as resources of Ratify 1, as YAML: the template of Gatekeeper's constraint, a
// KeyManagementProvider for each certificate, the Verifier with the trust policy that Notation would get, and the
// Policy which makes one good signature necessary and enough. The names of the Verifier and the Policy are Ratify's
// own, so that they replace those of its installation: of two verifiers for Notation Ratify would ask either.
func Ratify(manifest string) ([]byte, error) {
	m, _, err := forCluster(manifest)
	if err != nil {
		return nil, err
	}
	if len(m.Approvals) > 0 {
		return nil, failure.New(failure.Unsupported, "signatures in %q need approvals: Ratify can check neither who agreed "+
			"nor that the broker's log has the signature", m.Approvals[0].Scope).
			WithHint("verify on the nodes, with hsm-image install-verifier; or export a manifest without approvals: " +
				"--manifest FILE")
	}
	var verifier ratifyVerifier
	verifier.Name, verifier.Type, verifier.ArtifactTypes = "notation", "notation", notationSignature
	verifier.Parameters.Policy.Version = documentVersion
	if verifier.Parameters.Policy.TrustPolicies, err = m.statements(); err != nil {
		return nil, err
	}
	if err := verifier.Parameters.Policy.Validate(); err != nil {
		return nil, failure.New(failure.Invalid, "Notation refuses the trust policy: %w", err).
			WithHint("change the signers that it names")
	}
	var template ratifyTemplate
	template.CRD.Spec.Names.Kind = "SignedImages"
	template.Targets = []ratifyTarget{{Target: "admission.k8s.gatekeeper.sh", Rego: ratifyRego}}
	objects := []object{{APIVersion: "templates.gatekeeper.sh/v1", Kind: "ConstraintTemplate",
		Metadata: named("signedimages"), Spec: template}} // Gatekeeper demands the kind, in lower case, as the name
	stores := map[string][]string{}
	for i, s := range m.Signers {
		provider := ratifyProvider(s)
		stores[storeName(s)] = []string{provider}
		if slices.ContainsFunc(m.Signers[:i], func(other Signer) bool { return ratifyProvider(other) == provider }) {
			continue
		}
		meta := named(provider)
		meta.Annotations = map[string]string{"notation-hsm/subject": s.Trusts}
		objects = append(objects, object{APIVersion: ratifyVersion, Kind: "KeyManagementProvider", Metadata: meta,
			Spec: ratifyTyped{Type: "inline", Parameters: map[string]any{"contentType": "certificate", "value": s.Certificate}}})
	}
	verifier.Parameters.Stores = map[string]map[string][]string{"ca": stores}
	// The Policy comes before the Verifier: then no moment takes more than the old trust or the new.
	return encode(ratifyHeader, append(objects,
		object{APIVersion: ratifyVersion, Kind: "Policy", Metadata: named("ratify-policy"),
			Spec: ratifyTyped{Type: "config-policy", Parameters: map[string]any{
				"artifactVerificationPolicies": map[string]string{notationSignature: "any", "default": "all"},
			}}},
		object{APIVersion: ratifyVersion, Kind: "Verifier", Metadata: named("verifier-notation"), Spec: verifier})...)
}

// ratifyProvider names a certificate, so that the name stands for no other later. A signer's name may be none that
// Kubernetes takes.
func ratifyProvider(s Signer) string {
	return "notation-hsm-" + strings.TrimPrefix(s.Fingerprint, "sha256:")
}
