package trust

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/notaryproject/notation-go/verifier/trustpolicy"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

const kyvernoHeader = `# Who may sign the images of this cluster: the trust manifest, as
# 'notation-hsm trust export --format kyverno' writes it. Change the manifest, not this file.
#
# Kyverno caches for an hour that an image passed: a revocation, and the deletion of a signature, take effect that much
# later. No policy can change this. Start Kyverno's admission controller with --imageVerifyCacheEnabled=false. With
# Helm:
#   --set-string admissionController.container.extraArgs.imageVerifyCacheEnabled=false
`

// kyvernoSpec is the part that is used of Kyverno's ImageValidatingPolicy, policies.kyverno.io/v1.
type kyvernoSpec struct {
	ValidationActions        []string          `json:"validationActions"`
	FailurePolicy            string            `json:"failurePolicy"`
	WebhookConfiguration     map[string]int    `json:"webhookConfiguration"`
	Evaluation               any               `json:"evaluation"`
	MatchConstraints         any               `json:"matchConstraints"`
	MatchConditions          []expression      `json:"matchConditions"`
	MatchImageReferences     any               `json:"matchImageReferences"`
	Images                   []expression      `json:"images"` // besides those of containers
	ValidationConfigurations map[string]bool   `json:"validationConfigurations"`
	Attestors                []kyvernoAttestor `json:"attestors"`
	Attestations             []any             `json:"attestations,omitempty"`
	Variables                []expression      `json:"variables"`
	Validations              []validation      `json:"validations"`
}

type expression struct {
	Name       string `json:"name"`
	Expression string `json:"expression"` // CEL
}

type validation struct {
	Expression        string `json:"expression"`
	MessageExpression string `json:"messageExpression"`
}

type kyvernoAttestor struct {
	Name   string        `json:"name"`
	Notary kyvernoNotary `json:"notary"`
}

type kyvernoNotary struct {
	Certs struct {
		Value string `json:"value"` // PEM
	} `json:"certs"`
}

// Kyverno returns the manifest as one ImageValidatingPolicy in YAML. Kyverno verifies with Notation's level strict and
// accepts any subject under a certificate; it fails with Unsupported for a manifest that needs more. Kyverno admits an
// image that no policy matches, which Notation does not, so the policy matches all images.
//
// Kyverno cannot verify approvals. For a manifest that needs some, the file attestor has the certificate of who
// verifies them in its place, and signs bundles of approvals as attestations; without it, Kyverno fails with
// Unsupported.
func Kyverno(manifest, attestor string) ([]byte, error) {
	m, groups, err := forCluster(manifest)
	if err != nil {
		return nil, err
	}
	trusted, err := m.attestor(attestor)
	if err != nil {
		return nil, err
	}
	for _, g := range groups {
		if err := checkKyverno(g); err != nil {
			return nil, err
		}
	}
	var others group // signers of the repositories that no other scope names
	repositories := groups
	if groups[0].scope == anyone { // it sorts before any name
		others, repositories = groups[0], groups[1:]
	}
	spec := kyvernoSpec{
		ValidationActions: []string{"Deny"}, FailurePolicy: "Fail",
		WebhookConfiguration: map[string]int{"timeoutSeconds": 30}, // the longest that Kubernetes waits
		// A background scan reads pods/ephemeralcontainers, which Kyverno's chart does not permit: the policy would not be
		// ready.
		Evaluation: map[string]any{"background": map[string]bool{"enabled": false}},
		// What runs is a Pod, whoever makes it.
		MatchConstraints: map[string]any{"resourceRules": []any{map[string]any{
			"apiGroups": []string{""}, "apiVersions": []string{"v1"}, "operations": []string{"CREATE", "UPDATE"},
			"resources": []string{"pods", "pods/ephemeralcontainers"},
		}}},
		// A change that brings no image is let through, so that a running Pod can be labelled and removed after a certificate
		// has expired.
		MatchConditions: []expression{
			{"images-are-new", "oldObject == null || !has(oldObject.spec) ||\n" + podImages("object") + " !=\n" +
				podImages("oldObject")}},
		MatchImageReferences:     []map[string]string{{"glob": "*"}},
		Images:                   []expression{{"volumes", volumeImages("(object != null ? object : oldObject)")}},
		ValidationConfigurations: map[string]bool{"mutateDigest": true, "verifyDigest": true, "required": true},
		Variables: []expression{
			{"images", "images.containers + images.initContainers + images.ephemeralContainers + images.volumes"},
			{"others", kyvernoAttestors(others)},
			{"signers", kyvernoMap(repositories)},
			{"refused", kyvernoRefused},
		},
		Validations: []validation{{"size(variables.refused) == 0",
			`"no signature of a signer trusted for it: " + variables.refused.join(", ")`}},
	}
	for _, s := range m.Signers {
		attestor := kyvernoAttestor{Name: s.Name}
		attestor.Notary.Certs.Value = s.Certificate
		spec.Attestors = append(spec.Attestors, attestor)
	}
	header := kyvernoHeader
	if trusted != nil {
		spec.demandApprovals(m.Approvals, trusted)
		header += kyvernoApprovalsHeader
	}
	return encode(header, object{APIVersion: "policies.kyverno.io/v1", Kind: "ImageValidatingPolicy",
		Metadata: named("notation-hsm"), Spec: spec})
}

// checkKyverno fails for signers of a scope that Kyverno would not verify as Notation does.
func checkKyverno(g group) error {
	const other = "use --format ratify, which supports it"
	if level := g.signers[0].Level; level != trustpolicy.LevelStrict.Name {
		return failure.New(failure.Unsupported,
			"signer %q of the scope %q has the level %s, and Kyverno supports strict only",
			g.signers[0].Name, g.scope, level).
			WithHint(other + "; or set the level to strict")
	}
	for _, s := range g.signers {
		if s.Kind == CA && !allowed(g.signers, s, nil) {
			return failure.New(failure.Unsupported,
				"signer %q of the scope %q has the subject %q under the CA %q, and Kyverno accepts every subject under a CA",
				s.Name, g.scope, s.Subject, s.Trusts).
				WithHint(other +
					"; or trust an issuing CA that certifies this signer alone, without --subject")
		}
	}
	return nil
}

// kyvernoRefused is CEL for the images that have no signature of those who may sign in their repository.
// parseImageReference completes a name as Kubernetes does, and calls Docker Hub index.docker.io; the rest of the
// expression gives the registry its one name. A port that begins with a zero has none, and is refused.
const kyvernoRefused = `variables.images.filter(image, image.matches("^[^/@]*:0[0-9]*/") || verifyImageSignatures(image,
  variables.signers[?` + kyvernoRepository + `].orValue(variables.others)) == 0)`

// kyvernoRepository is CEL for the name of an image's repository.
const kyvernoRepository = `("/" + parseImageReference(image).registry().lowerAscii() + "/")` +
	`.replace(":443/", "/").replace(":80/", "/")
    .replace("/registry-1.docker.io/", "/index.docker.io/").substring(1)` +
	` + parseImageReference(image).repository()`

// kyvernoMap is CEL for a map from repositories to those who may sign there.
func kyvernoMap(groups []group) string {
	if len(groups) == 0 {
		return "{}"
	}
	var lines []string
	for _, g := range groups {
		lines = append(lines, fmt.Sprintf("  %s: %s", strconv.Quote(kyvernoName(g.scope)), kyvernoAttestors(g)))
	}
	return "{\n" + strings.Join(lines, ",\n") + "\n}"
}

// kyvernoName returns the name that kyvernoRepository has for a scope.
func kyvernoName(scope string) string {
	if repository, ok := strings.CutPrefix(scope, "docker.io/"); ok {
		return "index.docker.io/" + repository
	}
	return scope
}

func kyvernoAttestors(g group) string {
	var list []string
	for _, s := range g.signers {
		list = append(list, fmt.Sprintf("attestors[%s]", strconv.Quote(s.Name)))
	}
	return "[" + strings.Join(list, ", ") + "]"
}

// podImages is CEL for all images of a Pod.
func podImages(pod string) string {
	var lists []string
	for _, list := range []string{"containers", "initContainers", "ephemeralContainers"} {
		lists = append(lists, fmt.Sprintf("%s.spec.?%s.orValue([]).map(c, c.image)", pod, list))
	}
	return "  " + strings.Join(append(lists, volumeImages(pod)), " +\n  ")
}

// volumeImages is CEL for the images that a Pod mounts as volumes. Kyverno extracts only those of containers by itself.
func volumeImages(pod string) string {
	return pod + ".spec.?volumes.orValue([]).filter(v, has(v.image)).map(v, v.image.reference)"
}
