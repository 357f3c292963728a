package tufstore

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// Proposal is a change that waits for the publisher: the signed files of it, as someone pushed them.
type Proposal struct {
	Tag     string
	Digest  digest.Digest     // of the manifest; "" if it could not be read
	Files   map[string][]byte // by name; nil if Refused
	Refused error             // why what is under the tag is not a proposal; nil if it is one
}

// proposalTag returns the tag of a proposal with these files.
func (f files) proposalTag() string {
	hash := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(f)) {
		fmt.Fprintf(hash, "%s  %s\n", f[name].Digest.Encoded(), name)
	}
	return proposalPrefix + hex.EncodeToString(hash.Sum(nil))[:32]
}

// isProposal reports whether a tag has the form of a proposal's.
func isProposal(tag string) bool {
	sum, ok := strings.CutPrefix(tag, proposalPrefix)
	return ok && len(sum) == 32 && strings.Trim(sum, "0123456789abcdef") == ""
}

// Propose pushes files for the publisher. The same files are the same proposal, which is pushed once.
func (s *Store) Propose(ctx context.Context, added map[string][]byte) (*Proposal, error) {
	f, blobs, total := files{}, map[digest.Digest][]byte{}, 0
	err := check(added)
	for name, data := range added {
		f[name] = describe(name, data)
		blobs[f[name].Digest] = data
		total += len(data)
	}
	if err == nil && (len(added) > maxProposed || total > maxProposal) {
		err = fmt.Errorf("it has %d files of %d bytes, more than %d files or %d bytes", len(added), total, maxProposed,
			maxProposal)
	}
	var manifest []byte
	if err == nil {
		manifest, err = f.encode(proposedType)
	}
	if err != nil {
		return nil, failure.New(failure.Invalid, "cannot propose a change of the metadata of %s: %w", s.name, err).
			WithHint("propose fewer changes at once")
	}
	p := &Proposal{Tag: f.proposalTag(), Digest: sum(manifest), Files: maps.Clone(added)}
	if existing, err := s.repository.Manifests().Resolve(ctx, p.Tag); err == nil && existing.Digest == p.Digest {
		return p, nil // an interrupted attempt has pushed it, and the tag may be immutable
	}
	if err := s.push(ctx, blobs, manifest, p.Tag); err != nil {
		return nil, fail(err, "cannot propose a change of the metadata of %s: %w", s.name, err)
	}
	return p, nil
}

// Waiting reports whether proposals wait. It lists tags, and reads no manifest but that of withdrawn proposals.
func (s *Store) Waiting(ctx context.Context) (bool, error) {
	tags, err := s.waiting(ctx)
	if err != nil {
		return false, fail(err, "cannot list the proposals in %s: %w", s.name, err)
	}
	return len(tags) > 0, nil
}

// Proposals returns the proposals that wait, sorted by their tags, without those that were withdrawn. It fails when
// there are more than maxProposals of them, or when they are too long together.
//
// A publisher publishes a proposal before it withdraws it. So who wants to know of all changes calls Proposals first,
// and Published after it: in the other order, a change that is published in between is in neither.
func (s *Store) Proposals(ctx context.Context) ([]*Proposal, error) {
	tags, err := s.waiting(ctx)
	if err != nil {
		return nil, fail(err, "cannot list the proposals in %s: %w", s.name, err)
	}
	if len(tags) > maxProposals {
		return nil, failure.New(failure.Invalid, "%s has more than %d proposals", s.name, maxProposals).
			WithHint("publish with 'hsm-image tag refresh', or delete tags that begin with " + proposalPrefix + ", oldest first")
	}
	var proposals []*Proposal
	left := int64(maxPending)
	for _, tag := range tags {
		p, err := s.proposal(ctx, tag, &left)
		switch {
		case err == nil:
			proposals = append(proposals, p)
		case registry.Kind(err) != failure.NotFound: // such one was withdrawn meanwhile
			return nil, fail(err, "cannot read the proposal %s in %s: %w", tag, s.name, err)
		}
	}
	return proposals, nil
}

// proposal reads the proposal under a tag. It fails with an error of the kind NotFound if the proposal was withdrawn
// meanwhile. left is the number of bytes that the files may have.
func (s *Store) proposal(ctx context.Context, tag string, left *int64) (*Proposal, error) {
	p := &Proposal{Tag: tag}
	data, d, err := s.manifest(ctx, tag)
	var f files
	if err == nil {
		p.Digest = d
		f, err = decodeProposal(data, tag)
	}
	if err != nil {
		return p, p.refuse(err)
	}
	p.Files = make(map[string][]byte, len(f))
	for name, d := range f {
		if *left -= d.Size; *left < 0 {
			return nil, fmt.Errorf("all proposals have more than %d bytes", maxPending)
		}
		if data, ok := s.known[d.Digest]; ok && int64(len(data)) == d.Size {
			p.Files[name] = data
			continue
		}
		if p.Files[name], err = s.read(ctx, d, maxFile); err != nil {
			return p, p.refuse(err)
		}
	}
	return p, nil
}

// refuse keeps err as the reason why the proposal is none, or returns it if it says nothing about the proposal.
func (p *Proposal) refuse(err error) error {
	if registry.Kind(err) != failure.Invalid || registry.Exhausted(err) {
		return err
	}
	p.Files, p.Refused = nil, err
	return nil
}

// decodeProposal returns the files of a proposal. It fails unless the tag is the one of these files.
func decodeProposal(manifest []byte, tag string) (files, error) {
	f, err := decode(manifest, proposedType)
	if err != nil {
		return nil, err
	}
	var total int64
	for _, d := range f {
		total += d.Size
	}
	switch {
	case f.proposalTag() != tag:
		return nil, errors.New("its files are not those of its tag")
	case len(f) > maxProposed || total > maxProposal:
		return nil, fmt.Errorf("it has %d files of %d bytes, more than %d files or %d bytes", len(f), total, maxProposed,
			maxProposal)
	}
	return f, nil
}

// errEnough ends a listing of tags.
var errEnough = errors.New("enough")

// beforeTag sorts directly before Tag.
const beforeTag = "tuf-metadat"

// waiting returns the tags of the proposals that were not withdrawn, sorted.
func (s *Store) waiting(ctx context.Context) ([]string, error) {
	tags, listed, err := s.proposalTags(ctx)
	if err != nil || !listed {
		return tags, err
	}
	withdrawn, err := s.withdrawn(ctx)
	return slices.DeleteFunc(tags, func(tag string) bool { return withdrawn[tag] }), err
}

// proposalTags returns the tags of proposals, sorted, and whether there is a list of those that were withdrawn. It
// returns one more than there may be, if there are more.
//
// The registry is asked for the tags after beforeTag. Some registries ignore that, or have another order. A list is
// read to its end unless it begins with Tag and is sorted, which shows that the registry did as asked: then no proposal
// follows the first tag that sorts after all of them.
func (s *Store) proposalTags(ctx context.Context) (tags []string, withdrawn bool, err error) {
	found := map[string]bool{}
	last, sorted := "", false
	err = registry.Tags(ctx, s.repository, beforeTag, func(page []string) error {
		for _, tag := range page {
			if last == "" {
				sorted = tag == Tag
			}
			sorted = sorted && tag > last
			last = tag
			if isProposal(tag) {
				found[tag] = true
			}
			withdrawn = withdrawn || tag == withdrawnTag
			if len(found) > maxProposals+maxWithdrawn {
				return errEnough
			}
		}
		if sorted && last > proposalPrefix+"g" { // after all hexadecimal digits
			return errEnough
		}
		return nil
	})
	if err != nil && !errors.Is(err, errEnough) && registry.Kind(err) != failure.NotFound { // a new repository
		return nil, false, err
	}
	return slices.Sorted(maps.Keys(found)), withdrawn, nil
}
