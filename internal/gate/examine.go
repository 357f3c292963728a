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
	"github.com/notaryproject/notation-go/registry"
	"github.com/notaryproject/notation-go/verifier/trustpolicy"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
)

// A source is a place that an image's signatures may be in: a registry, a mirror of it, or an OCI layout.
type source struct {
	name       string
	repository registry.Repository
	manifests  content.Fetcher
	close      func() // nil if there is nothing to close
}

// examine judges an image by the signatures of the first source that has one that counts. A signature counts for what it says it was
// made for, wherever it was found. The sources share what time there is, so that one that does not answer leaves some to the next.
func (g *Gate) examine(ctx context.Context, repository string, descriptor ocispec.Descriptor, sources ...source) Result {
	result := Result{Digest: descriptor.Digest.String()}
	reference := repository + "@" + result.Digest
	statement, err := g.policy.GetApplicableTrustPolicy(reference)
	if err != nil {
		return result.refuse(fmt.Sprintf("no statement of the trust policy is for %s", repository))
	}
	result.Policy, result.Level = statement.Name, statement.SignatureVerification.VerificationLevel
	var reasons []string
	for i, s := range sources {
		ctx, cancel := share(ctx, len(sources)-i)
		e := &examination{Repository: s.repository, verifier: g.verifier, statement: statement, descriptor: descriptor}
		_, outcomes, err := notation.Verify(ctx, e, e, notation.VerifyOptions{ArtifactReference: reference, MaxSignatureAttempts: maxSignatures})
		cancel()
		result.Refused = append(result.Refused, e.refused...)
		switch {
		case err == nil && e.skipped:
			result.Verdict, result.Reason = Pass, "the trust policy skips verification"
			return result
		case err == nil && len(outcomes) == 1:
			signature := e.describe(outcomes[0])
			result.Verdict, result.Signature, result.Warnings = Pass, &signature, warnings(outcomes[0])
			return result
		case err == nil:
			err = errors.New("the Notation library has no outcome")
		}
		reason := e.reason(err)
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

// examination is one go through the signatures of an image. It stands between Notation's loop and both the registry and the verifier,
// and notes what that loop does not return: what became of each signature.
type examination struct {
	registry.Repository
	verifier   notationVerifier
	statement  *trustpolicy.TrustPolicy
	descriptor ocispec.Descriptor
	skipped    bool
	signatures int           // how many there are
	current    digest.Digest // the manifest of the one that is looked at
	refused    []Signature
}

// Resolve returns the image that is examined, which is known by its digest before anything is asked.
func (e *examination) Resolve(context.Context, string) (ocispec.Descriptor, error) {
	return e.descriptor, nil
}

func (e *examination) ListSignatures(ctx context.Context, descriptor ocispec.Descriptor, fn func([]ocispec.Descriptor) error) error {
	return e.Repository.ListSignatures(ctx, descriptor, func(found []ocispec.Descriptor) error {
		e.signatures += len(found)
		return fn(found)
	})
}

// ahead is a repository whose list of an image's signatures is on its way before it is asked for, once.
type ahead struct {
	registry.Repository
	answer chan listed
}

type listed struct {
	found []ocispec.Descriptor
	err   error
}

var errEnough = errors.New("enough")

// listAhead asks for the signatures of a digest beside the question whether there is such an image: that is one wait less of five.
func listAhead(ctx context.Context, repository registry.Repository, sum digest.Digest) registry.Repository {
	a := &ahead{repository, make(chan listed, 1)}
	go func() {
		var l listed
		if err := caught(func() {
			l.err = repository.ListSignatures(ctx, ocispec.Descriptor{Digest: sum}, func(page []ocispec.Descriptor) error {
				if l.found = append(l.found, page...); len(l.found) >= maxSignatures {
					return errEnough
				}
				return nil
			})
		}); err != nil {
			l.err = err
		}
		a.answer <- l
	}()
	return a
}

func (a *ahead) ListSignatures(ctx context.Context, _ ocispec.Descriptor, fn func([]ocispec.Descriptor) error) error {
	select {
	case l := <-a.answer:
		if l.err != nil && !errors.Is(l.err, errEnough) {
			return l.err
		}
		return fn(l.found)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *examination) FetchSignatureBlob(ctx context.Context, manifest ocispec.Descriptor) ([]byte, ocispec.Descriptor, error) {
	e.current = manifest.Digest
	return e.Repository.FetchSignatureBlob(ctx, manifest)
}

func (e *examination) SkipVerify(ctx context.Context, options notation.VerifierVerifyOptions) (bool, *trustpolicy.VerificationLevel, error) {
	skip, level, err := e.verifier.SkipVerify(ctx, options)
	e.skipped = skip && err == nil
	return skip, level, err
}

func (e *examination) Verify(ctx context.Context, descriptor ocispec.Descriptor, blob []byte, options notation.VerifierVerifyOptions) (*notation.VerificationOutcome, error) {
	outcome, err := e.verifier.Verify(ctx, descriptor, blob, options)
	if err != nil && outcome != nil {
		signature := e.describe(outcome)
		signature.Reason = oneLine(why(outcome, err))
		e.refused = append(e.refused, signature)
	}
	return outcome, err
}

// why says why a signature does not count. Notation says no more than "content descriptor mismatch" of one that was made for
// something else.
func why(outcome *notation.VerificationOutcome, err error) string {
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
func (e *examination) reason(err error) string {
	var failed notation.VerificationFailedError
	switch {
	case e.signatures == 0 && errors.As(err, new(notation.SignatureRetrievalFailedError)):
		return "it has no signature"
	case len(e.refused) == 0 || !errors.As(err, &failed) || failed.Msg != "":
		return err.Error() // such as one that can't be fetched, or more than there may be
	case len(e.refused) == 1:
		return e.refused[0].String()
	}
	list := make([]string, len(e.refused))
	for i, signature := range e.refused {
		list[i] = signature.String()
	}
	slices.Sort(list)
	return fmt.Sprintf("none of %d signatures counts: %s", len(list), strings.Join(slices.Compact(list), "; "))
}
