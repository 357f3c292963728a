// Package tufstore keeps TUF metadata in a registry, beside the images of a repository.
//
// The published metadata are one manifest under the reserved tag, whose layers are all current files. One publisher
// alone writes it: registries have no conditional writes, so two writers would overwrite each other's changes. Everyone
// else proposes. A proposal is a manifest with the signed files of one change, under a tag made of the digest of these
// files, so that no proposal overwrites another.
//
// Nothing here is verified as TUF requires. Files are what someone pushed who can write to the repository; this package
// checks that they are what the manifest says, under names that metadata may have, and within limits.
package tufstore

import (
	"fmt"
	"regexp"

	"github.com/opencontainers/go-digest"
	"oras.land/oras-go/v2/registry/remote"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/registry"
)

// The tags and media types of the metadata.
const (
	Tag            = "tuf-metadata" // of the published metadata
	ReservedPrefix = "tuf-"         // image tags that begin with it cannot be signed

	proposalPrefix = "tuf-proposal-"
	publishedType  = "application/vnd.notation-hsm.tuf.v1+json"
	proposedType   = "application/vnd.notation-hsm.tuf.proposal.v1+json"
	fileType       = "application/vnd.tuf.metadata+json"

	timestamp = "timestamp.json" // the file that is embedded in the manifest
)

// Limits of what is read, and of what is written.
const (
	maxManifest  = 256 << 10 // bytes of a manifest
	maxFiles     = 2000      // files in a manifest
	maxFile      = 1 << 20   // bytes of a file
	maxName      = 128       // bytes of the name of a file
	maxProposed  = 100       // files in a proposal
	maxProposal  = 16 << 20  // bytes of the files of a proposal
	maxProposals = 1000      // proposals that wait in a repository
	maxWithdrawn = 5000      // proposals that were withdrawn and could not be deleted
	maxPending   = 64 << 20  // bytes of the files of all proposals
	maxError     = 8 << 10   // bytes of an error of a registry
)

// Round are the limits of a registry for one round of reading proposals, publishing and withdrawing them. A publisher
// that runs for long makes a Store with a new repository for each round.
var Round = registry.Limits{Requests: 10000, Bytes: 256 << 20}

// fileName matches the names of metadata: ROLE.json or VERSION.ROLE.json.
var fileName = regexp.MustCompile(`^([1-9][0-9]{0,8}\.)?[a-z0-9][a-z0-9_-]*\.json$`)

// checkName fails unless a file of metadata may have the name.
func checkName(name string) error {
	if len(name) > maxName || !fileName.MatchString(name) {
		return fmt.Errorf("%.150q is not the name of a file of metadata", name)
	}
	return nil
}

// Store reads and writes the metadata of one repository. It may be used by several goroutines.
type Store struct {
	repository *remote.Repository
	name       string                   // of the repository, for messages
	known      map[digest.Digest][]byte // files of proposals that were read before
}

// New returns the store of a repository.
func New(repository *remote.Repository) *Store {
	return &Store{repository: repository,
		name: repository.Reference.Registry + "/" + repository.Reference.Repository}
}

// Reuse has the files of proposals that were read before not read again. It is called before the store is used.
func (s *Store) Reuse(proposals []*Proposal) {
	s.known = map[digest.Digest][]byte{}
	for _, p := range proposals {
		for _, data := range p.Files {
			s.known[sum(data)] = data
		}
	}
}

// fail returns the failure of an operation because of an error of the registry, or of what it sent.
func fail(cause error, format string, args ...any) *failure.Error {
	kind := registry.Kind(cause)
	err := failure.New(kind, format, args...)
	switch kind {
	case failure.Denied:
		return err.WithHint("use credentials that may do this in the repository: 'notation login', or those in a broker's " +
			"config")
	case failure.Unavailable, failure.Timeout, failure.Throttled:
		return err.WithHint("check the registry and the network, and try again")
	case failure.Invalid:
		return err.WithHint("find out who can push to the repository, and restore the newest manifest under its tag")
	}
	return err
}

// sum returns the digest of a file.
func sum(data []byte) digest.Digest { return digest.SHA256.FromBytes(data) }
