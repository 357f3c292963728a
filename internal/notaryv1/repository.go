// Package notaryv1 reads the trust data of one image repository in Notary v1 (Docker Content Trust), from its server or
// from a trust folder of its client, and verifies it from a root that a person pinned. It writes nothing.
//
// All of it comes from outside: a server, which may be hostile, or a folder that such a server's answers are in.
// Signatures, thresholds, hashes and the paths of delegations always hold. Expiry does not: a service that was switched
// off signs no new timestamp. What is expired says so in Role.Expired, and the caller shows it to people.
//
// Rules of Notary v1 that differ from the TUF specification of today: a snapshot and a timestamp name hashes and
// lengths, not versions; a delegation's paths are prefixes; a root key is a certificate whose common name is the GUN.
package notaryv1

import (
	"context"
	"regexp"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// The names of the roles that every repository has, and of the delegation that Docker signs tags with.
const (
	roleRoot      = "root"
	roleTargets   = "targets"
	roleSnapshot  = "snapshot"
	roleTimestamp = "timestamp"
	roleReleases  = "targets/releases"
)

// Repository is the verified trust data of one image repository.
type Repository struct {
	GUN     string // its name in Notary: REGISTRY/PATH
	Roles   []Role // root, targets, snapshot, timestamp, and each delegation after its parent
	Targets []Target
}

// Role is one of the roles of a repository.
type Role struct {
	Name      string
	Keys      []Key
	Threshold int      // number of keys that have to sign
	Paths     []string // of a delegation: prefixes of the tags that it may sign, those outside of its parent's left out
	Version   int64    // of its metadata; 0 for a delegation that has signed nothing
	Expires   time.Time
	Expired   bool
	SignedBy  []string  // IDs of the keys whose signatures verified
	Ignored   []Ignored // targets in its metadata that Targets leaves out
	// Refused says why the metadata of a delegation does not count. Its targets, and the roles below it, are left out,
	// as Notary's client does. All other roles are verified, or reading the repository fails.
	Refused error
}

// Ignored is a target that is no signed tag.
type Ignored struct {
	Name   string // unchecked: quote it before it is shown
	Reason string
}

// Target is one tag as one role signed it.
type Target struct {
	Tag    string
	Digest digest.Digest // SHA-256 of the manifest
	Length int64         // size of the manifest in bytes
	Role   string
	// Pulled says that docker pull takes this one: the target of targets/releases if there is one, else that of
	// targets. Docker takes no other role's, and none if a role below targets/releases has the tag and
	// targets/releases has not.
	Pulled bool
}

// Limits of a repository. Notary's own limit of a file is 100 MiB.
const (
	maxRoot        = 1 << 20 // bytes of one file
	maxTimestamp   = 64 << 10
	maxSnapshot    = 1 << 20
	maxTargets     = 16 << 20
	maxTotal       = 64 << 20 // bytes of all files
	maxRoles       = 256
	maxDepth       = 8       // of a delegation below targets
	maxRoots       = 64      // root files that are read to find the pinned one
	maxKeys        = 256     // in one file
	maxSignatures  = 256     // in one file
	maxTargetCount = 100000  // in all roles
	maxElements    = 1 << 20 // JSON values of one file; a tag has ten
)

var (
	gunComponent = regexp.MustCompile(`^[A-Za-z0-9_-][A-Za-z0-9._:-]*$`)
	tagPattern   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	keyIDPattern = regexp.MustCompile(`^[0-9a-f]{64}$`)
	delegation   = regexp.MustCompile(`^targets(/[-a-z0-9_]+)+$`)
)

// CheckGUN fails unless gun can be a repository's name in Notary, which is part of paths and of URLs.
func CheckGUN(gun string) error {
	valid := len(gun) <= 255
	for component := range strings.SplitSeq(gun, "/") {
		valid = valid && gunComponent.MatchString(component)
	}
	if !valid {
		return failure.New(failure.Invalid, "cannot read repository %.100q: its name is not of the form REGISTRY/PATH",
			gun).
			WithHint("name the repository as 'docker trust inspect' does, such as docker.io/example/app")
	}
	return nil
}

// source is where the metadata is.
type source interface {
	// read returns the content of a file, and fails with failure.NotFound if there is none.
	read(ctx context.Context, f file, limit int) ([]byte, error)
}

// file is a metadata file of a repository.
type file struct {
	role    string
	version int64  // of a root; 0 for the current file
	sum     string // SHA-256 in lower-case hex that a server has the file under; empty for the current file
}

// isDelegation reports whether name is a delegation's. Notary allows no other names, and none longer.
func isDelegation(name string) bool {
	return len(name) < 256 && delegation.MatchString(name)
}
