package gate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/notaryproject/notation-go"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/notation-hsm/notation-hsm/internal/proof"
)

// examine verifies the signatures of an image in each source, until one is valid. repository is the scope that is
// looked up in the trust policy; a signature is valid for the digest in it, in whichever source it was found. If the
// image has a tag, the signer must be one who may sign it. The
// sources share the time until the deadline, so that one that does not answer leaves time for the next.
func (g *Gate) examine(ctx context.Context, repository string, descriptor ocispec.Descriptor, tag *resolved,
	sources ...source) Decision {
	decision := Decision{Digest: descriptor.Digest.String()}
	tag.note(&decision)
	reference := repository + "@" + decision.Digest
	statement, err := g.policy.GetApplicableTrustPolicy(reference)
	if err != nil {
		return decision.refuse(fmt.Sprintf("no statement of the trust policy is for %s", repository))
	}
	decision.Policy, decision.Level = statement.Name, statement.SignatureVerification.VerificationLevel
	demands, demandsErr := g.demands.of(repository)
	skip, _, err := g.verifier.SkipVerify(ctx, notation.VerifierVerifyOptions{ArtifactReference: reference})
	switch {
	case err != nil:
		return decision.refuse(err.Error())
	case demandsErr != nil:
		return decision.refuse(demandsErr.Error())
	case len(sources) == 0:
		return decision.refuse(errNoRegistry.Error())
	case len(demands) > 0 && !authentic(statement):
		return decision.refuse(fmt.Sprintf("%s, and statement %q of the trust policy accepts images without a trusted signer",
			demandsApprovals(repository), statement.Name))
	case skip:
		decision.Verdict, decision.Reason = Pass, "the trust policy skips verification"
		return decision
	}
	var reasons []string
	for i, s := range sources {
		ctx, cancel := shareDeadline(ctx, len(sources)-i)
		e := &examination{source: s, gate: g, statement: statement, reference: reference, descriptor: descriptor, tag: tag,
			repository: repository, demands: demands}
		outcome, err := e.findValid(ctx)
		cancel()
		decision.Refused = append(decision.Refused, e.refused...)
		if err == nil {
			signature := e.describe(outcome)
			decision.Verdict, decision.Signature, decision.Approvals = Pass, &signature, e.approvals
			decision.Warnings = append(decision.Warnings, warnings(outcome)...)
			return decision
		}
		reason := err.Error()
		if len(sources) > 1 {
			reason = s.name + ": " + reason
		}
		reasons = append(reasons, reason)
	}
	return decision.refuse(strings.Join(reasons, "; "))
}

var errNoRegistry = errors.New("no registry is configured for it")

// shareDeadline returns a context for the next of several steps, which ends after an equal share of the time that is
// left.
func shareDeadline(ctx context.Context, steps int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || steps == 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/time.Duration(steps))
}

// examination is the verification of an image's signatures in one source.
type examination struct {
	source     source
	gate       *Gate
	statement  *trustpolicy.TrustPolicy
	repository string // the scope
	reference  string // REPOSITORY@DIGEST
	descriptor ocispec.Descriptor
	tag        *resolved     // nil if anyone whom the trust policy accepts may sign
	current    digest.Digest // of the manifest of the signature that is verified now
	refused    []Signature
	demands    []*proof.Demand  // of approvals; a signature has to meet all with one bundle
	bundles    []bundleManifest // of the image, newest first
	fetched    fetched
	ahead      *bundleAhead // the newest bundle, which is being fetched
	approvals  *Approvals   // of the valid signature
}

// findValid verifies the signatures of the image one by one, newest first, until one is valid, and returns its outcome.
// A signature that cannot be read is refused like an invalid one, and the next is verified. The error says why there is
// no valid signature.
func (e *examination) findValid(ctx context.Context) (*notation.VerificationOutcome, error) {
	found, err := e.source.list(ctx, e.descriptor, len(e.demands) > 0)
	if err != nil {
		return nil, fmt.Errorf("cannot list its signatures: %w", err)
	}
	e.bundles = found.bundles
	if len(e.bundles) > 0 {
		e.ahead, e.fetched.all = e.source.fetchAhead(ctx, e.bundles[0].Descriptor), 1
	}
	for _, manifest := range found.newest() {
		e.current = manifest.Digest
		outcome, err := e.verify(ctx, manifest)
		if err == nil {
			return outcome, nil
		}
		if ctx.Err() != nil { // which says nothing about the signature
			return nil, err
		}
		var signature Signature
		if outcome == nil {
			signature = Signature{Digest: e.current.String(), Reason: sanitize(err.Error())}
		} else {
			signature = e.describe(outcome)
			signature.Reason = sanitize(e.explainRefusal(outcome, err))
		}
		e.refused = append(e.refused, signature)
	}
	return nil, errors.New(e.summarize(found))
}

// verify fetches a signature and verifies it with Notation's library. The outcome is nil if the signature cannot be
// read or exceeds the limits.
func (e *examination) verify(ctx context.Context, manifest ocispec.Descriptor) (*notation.VerificationOutcome, error) {
	mediaType, envelope, err := e.source.fetchSignature(ctx, manifest)
	if err != nil {
		return nil, err
	}
	return e.verifyEnvelope(ctx, mediaType, envelope)
}

// verifyEnvelope checks the limits of an envelope and verifies it.
func (e *examination) verifyEnvelope(ctx context.Context, mediaType string, envelope []byte) (
	*notation.VerificationOutcome, error) {
	if err := CheckEnvelope(mediaType, envelope); err != nil {
		return nil, err
	}
	outcome, err := e.gate.verifier.Verify(withTrust(ctx, e.trusts), e.descriptor, envelope,
		notation.VerifierVerifyOptions{ArtifactReference: e.reference, SignatureMediaType: mediaType})
	if err == nil {
		err = e.tag.allows(outcome.EnvelopeContent.SignerInfo.CertificateChain)
	}
	if err == nil && len(e.demands) > 0 {
		err = e.checkApprovals(ctx, mediaType, envelope, outcome.EnvelopeContent)
	}
	return outcome, err
}

// explainRefusal returns why a signature is refused. For a signature of another image, Notation's error has no more
// than "content descriptor mismatch".
func (e *examination) explainRefusal(outcome *notation.VerificationOutcome, err error) string {
	var lacking *unapproved
	if errors.As(err, &lacking) { // whose text is of a bundle
		return err.Error()
	}
	if refusal := e.gate.plugins.refusal(outcome); refusal != "" {
		return refusal
	}
	if outcome.EnvelopeContent == nil || !strings.Contains(err.Error(), "descriptor mismatch") {
		return err.Error()
	}
	var payload struct {
		TargetArtifact ocispec.Descriptor `json:"targetArtifact"`
	}
	if json.Unmarshal(outcome.EnvelopeContent.Payload.Content, &payload) != nil {
		return err.Error()
	}
	made := payload.TargetArtifact
	return fmt.Sprintf("it was made for something else, %s of %d bytes", made.Digest, made.Size)
}

// summarize returns why a source has no valid signature.
func (e *examination) summarize(found listing) string {
	rest := ""
	if found.hasMore() {
		rest = fmt.Sprintf("; there are more than %d, and only the newest are verified", len(e.refused))
	}
	switch len(e.refused) {
	case 0:
		return "it has no signature" + rest
	case 1:
		return e.refused[0].String() + rest
	}
	list := make([]string, len(e.refused))
	for i, signature := range e.refused {
		list[i] = signature.String()
	}
	slices.Sort(list)
	return fmt.Sprintf("none of %d signatures is valid%s: %s", len(list), rest, strings.Join(slices.Compact(list), "; "))
}
