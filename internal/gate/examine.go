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
)

// examine judges an image by the signatures of the first source that has one that counts. A signature counts for what
// it says it was made for, wherever it was found. The sources share what time there is, so that one that does not
// answer leaves some to the next.
func (g *Gate) examine(ctx context.Context, repository string, descriptor ocispec.Descriptor,
	sources ...source) Result {
	result := Result{Digest: descriptor.Digest.String()}
	reference := repository + "@" + result.Digest
	statement, err := g.policy.GetApplicableTrustPolicy(reference)
	if err != nil {
		return result.refuse(fmt.Sprintf("no statement of the trust policy is for %s", repository))
	}
	result.Policy, result.Level = statement.Name, statement.SignatureVerification.VerificationLevel
	skip, _, err := g.verifier.SkipVerify(ctx, notation.VerifierVerifyOptions{ArtifactReference: reference})
	if err != nil {
		return result.refuse(err.Error())
	}
	var reasons []string
	for i, s := range sources {
		if skip {
			result.Verdict, result.Reason = Pass, "the trust policy skips verification"
			return result
		}
		ctx, cancel := share(ctx, len(sources)-i)
		e := &examination{source: s, gate: g, statement: statement, reference: reference, descriptor: descriptor}
		outcome, err := e.firstGood(ctx)
		cancel()
		result.Refused = append(result.Refused, e.refused...)
		if err == nil {
			signature := e.describe(outcome)
			result.Verdict, result.Signature, result.Warnings = Pass, &signature, warnings(outcome)
			return result
		}
		reason := err.Error()
		if len(sources) > 1 {
			reason = s.name + ": " + reason
		}
		reasons = append(reasons, reason)
	}
	if len(sources) == 0 {
		reasons = []string{"no registry is configured for it"}
	}
	return result.refuse(strings.Join(reasons, "; "))
}

// share gives one of several that come after each other its part of the time that is left.
func share(ctx context.Context, parties int) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok || parties == 1 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(deadline)/time.Duration(parties))
}

// examination is one go through the signatures of an image in a source.
type examination struct {
	source     source
	gate       *Gate
	statement  *trustpolicy.TrustPolicy
	reference  string // the repository and the digest
	descriptor ocispec.Descriptor
	current    digest.Digest // the manifest of the signature that is looked at
	refused    []Signature
}

// firstGood looks at an image's signatures one by one, newest first, until one counts. One that cannot be read is
// refused as one that does not verify is: it may stand before a good one.
func (e *examination) firstGood(ctx context.Context) (*notation.VerificationOutcome, error) {
	found, err := e.source.list(ctx, e.descriptor)
	if err != nil {
		return nil, fmt.Errorf("cannot list its signatures: %w", err)
	}
	for _, manifest := range found.newest() {
		e.current = manifest.Digest
		outcome, err := e.verify(ctx, manifest)
		if err == nil {
			return outcome, nil
		}
		if ctx.Err() != nil { // not the signature's fault
			return nil, err
		}
		var signature Signature
		if outcome == nil {
			signature = Signature{Digest: e.current.String(), Reason: oneLine(err.Error())}
		} else {
			signature = e.describe(outcome)
			signature.Reason = oneLine(e.why(outcome, err))
		}
		e.refused = append(e.refused, signature)
	}
	return nil, errors.New(e.reason(found))
}

// verify fetches a signature and has Notation verify it. There is an outcome if it came to that.
func (e *examination) verify(ctx context.Context, manifest ocispec.Descriptor) (*notation.VerificationOutcome, error) {
	mediaType, envelope, err := e.source.fetchSignature(ctx, manifest)
	if err == nil {
		err = checkEnvelope(mediaType, envelope)
	}
	if err != nil {
		return nil, err
	}
	return e.gate.verifier.Verify(withTrust(ctx, e.trusts), e.descriptor, envelope,
		notation.VerifierVerifyOptions{ArtifactReference: e.reference, SignatureMediaType: mediaType})
}

// why says why a signature does not count. Notation says no more than "content descriptor mismatch" of one that was
// made for something else.
func (e *examination) why(outcome *notation.VerificationOutcome, err error) string {
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

// reason says why none of the signatures of a source counts.
func (e *examination) reason(found listed) string {
	rest := ""
	if found.more() {
		rest = fmt.Sprintf("; there are more than %d, of which only the newest are looked at", len(e.refused))
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
	return fmt.Sprintf("none of %d signatures counts%s: %s", len(list), rest, strings.Join(slices.Compact(list), "; "))
}
