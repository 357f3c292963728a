package tufstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry/remote/auth"
	"oras.land/oras-go/v2/registry/remote/errcode"

	"github.com/notation-hsm/notation-hsm/internal/bound"
	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// Withdraw deletes a proposal, by its tag or else by the digest of its manifest. It does not fail if the proposal is
// gone. If the registry does not delete it, Withdraw notes in the registry that it was withdrawn, so that Proposals no
// longer returns it, and fails with Unsupported or Denied.
//
// What is not a proposal is never deleted, since its tag may lead to the manifest of an image. It is noted in the same
// way, and Withdraw fails with Invalid.
func (s *Store) Withdraw(ctx context.Context, p *Proposal) error {
	if !isProposal(p.Tag) {
		return failure.New(failure.Invalid, "cannot withdraw %.150q of %s: it is not a proposal", p.Tag, s.name)
	}
	err := p.Refused
	if err == nil {
		err = s.deleteProposal(ctx, p)
	}
	if err == nil {
		return nil
	}
	failed := fail(err, "cannot delete the proposal %s of %s: %w", p.Tag, s.name, err)
	switch {
	case p.Refused != nil:
		failed = failed.WithHint("find out who has pushed the tag, and delete it in the registry")
	case failed.Kind == failure.Unsupported || failed.Kind == failure.Invalid:
		failed.Kind = failure.Unsupported
		fallthrough
	case failed.Kind == failure.Denied:
		failed = failed.WithHint("let the publisher delete tags that begin with " + proposalPrefix +
			", or delete them by hand")
	default:
		return failed
	}
	if err := s.note(ctx, p.Tag); err != nil {
		return fail(err, "cannot note that the proposal %s of %s was withdrawn: %w", p.Tag, s.name, err)
	}
	return failed
}

// deleteProposal deletes a proposal. It fails if it is still there.
func (s *Store) deleteProposal(ctx context.Context, p *Proposal) error {
	err := s.delete(ctx, p.Tag)
	if err == nil {
		return nil
	}
	if kind := registry.Kind(err); kind == failure.NotFound || kind == failure.Unsupported || kind == failure.Invalid {
		err = s.delete(ctx, p.Digest.String())
	}
	if registry.Kind(err) != failure.NotFound {
		return err
	}
	// Some registries know no deletes, and answer as if there were no such tag.
	_, err = s.repository.Manifests().Resolve(ctx, p.Tag)
	switch {
	case err == nil:
		return errors.New("the registry does not find it to delete it, and has it")
	case registry.Kind(err) == failure.NotFound:
		return nil
	}
	return err
}

// delete deletes a tag, or the manifest of a digest.
func (s *Store) delete(ctx context.Context, reference string) error {
	at := s.repository.Reference
	scheme := "https"
	if s.repository.PlainHTTP {
		scheme = "http"
	}
	ctx = auth.AppendRepositoryScope(ctx, at, auth.ActionDelete)
	request, err := http.NewRequestWithContext(ctx, http.MethodDelete, scheme+"://"+at.Host()+"/v2/"+at.Repository+
		"/manifests/"+reference, http.NoBody)
	if err != nil {
		return err
	}
	response, err := s.repository.Client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusAccepted || response.StatusCode == http.StatusOK ||
		response.StatusCode == http.StatusNoContent {
		return nil
	}
	refused := &errcode.ErrorResponse{Method: request.Method, URL: request.URL, StatusCode: response.StatusCode}
	var body struct{ Errors errcode.Errors }
	if data, err := io.ReadAll(io.LimitReader(response.Body, maxError)); err == nil && json.Unmarshal(data, &body) == nil {
		refused.Errors = body.Errors
	}
	return refused
}

// The list of proposals that were withdrawn and could not be deleted: an annotation of a manifest under a tag, with the
// ends of their tags. The tag sorts between Tag and the tags of proposals, so that it is seen when these are listed.
const (
	withdrawnTag        = "tuf-obsolete"
	withdrawnType       = "application/vnd.notation-hsm.tuf.obsolete.v1+json"
	withdrawnAnnotation = "vnd.notation-hsm.tuf.obsolete"
)

// withdrawn returns the tags of the proposals that were withdrawn. It returns none if what is under the tag is not such
// a list: then old proposals are read again, which is slow and no more.
func (s *Store) withdrawn(ctx context.Context) (map[string]bool, error) {
	data, _, err := s.manifest(ctx, withdrawnTag)
	kind := registry.Kind(err)
	if err != nil && kind != failure.NotFound && kind != failure.Invalid || registry.Exhausted(err) {
		return nil, err
	}
	return decodeWithdrawn(data), nil
}

// decodeWithdrawn returns the tags in a list of proposals that were withdrawn, and none if it is not one.
func decodeWithdrawn(manifest []byte) map[string]bool {
	tags := map[string]bool{}
	var m ocispec.Manifest
	if bound.JSON(manifest, manifestLimits) == nil && json.Unmarshal(manifest, &m) == nil {
		for _, end := range strings.Fields(m.Annotations[withdrawnAnnotation]) {
			tags[proposalPrefix+end] = true
		}
	}
	return tags
}

// note adds a proposal to the list of those that were withdrawn. Only the publisher writes it.
func (s *Store) note(ctx context.Context, tag string) error {
	tags, err := s.withdrawn(ctx)
	if err != nil || tags[tag] {
		return err
	}
	if len(tags) >= maxWithdrawn { // forget those that were deleted by hand
		existing, _, err := s.proposalTags(ctx)
		if err != nil {
			return err
		}
		maps.DeleteFunc(tags, func(tag string, _ bool) bool { return !slices.Contains(existing, tag) })
		if len(tags) >= maxWithdrawn {
			return fmt.Errorf("there are %d that could not be deleted", len(tags))
		}
	}
	tags[tag] = true
	var ends []string
	for tag := range tags {
		ends = append(ends, strings.TrimPrefix(tag, proposalPrefix))
	}
	slices.Sort(ends)
	m := newManifest(withdrawnType)
	m.Layers = []ocispec.Descriptor{m.Config}
	m.Annotations = map[string]string{withdrawnAnnotation: strings.Join(ends, " ")}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return s.push(ctx, nil, data, withdrawnTag)
}
