// Package tuf answers what a tag of an image repository is now, and who may say so: metadata of The Update Framework
// (TUF, version 1.0.31 of its specification) in which a target is a tag.
//
// A Client resolves tags under a pinned root, and remembers the versions that it saw. A View is one verified state. A
// Draft changes it: it signs new versions of roles with keys in modules. Where metadata are stored is not known here:
// they are Files, by name.
//
// targets.json lists no tags. It is the ordered list of who may sign which: the role "tags" with the targets keys, then
// one delegation per signer. Each of these roles lists its tags in its own file, or, from splitSize on, in bins.
package tuf

import (
	"context"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// The roles of TUF, and that of the tags that the targets keys sign.
const (
	Root      = metadata.ROOT
	Targets   = metadata.TARGETS
	Snapshot  = metadata.SNAPSHOT
	Timestamp = metadata.TIMESTAMP
	Tags      = "tags"
)

// Lifetimes of new metadata.
const (
	day               = 24 * time.Hour
	rootLifetime      = 365 * day
	targetsLifetime   = 90 * day // of targets.json and of every role that lists tags
	snapshotLifetime  = 7 * day
	timestampLifetime = day
)

// Limits of what is read, in bytes. A role that lists tags is split before its file is as long as maxTargets.
const (
	maxRoot      = 256 << 10
	maxTimestamp = 16 << 10
	maxSnapshot  = 1 << 20
	maxTargets   = 1 << 20
	splitSize    = 64 << 10
	bits         = 5 // a split role has 32 bins
	// versions that a proposal may be ahead of what is published. Each proposal is one ahead of another, so honest ones
	// are not more than there may be proposals. Without a limit, whoever has a key of a role once could use up the
	// versions of the role for ever.
	maxAhead = 2000
)

// Limits of one repository.
const (
	maxDelegations = 64
	maxPaths       = 32 // patterns of one delegation
	maxKeys        = 32 // of one role
)

// Files is one consistent set of metadata files.
type Files interface {
	// Read returns the file of a name, such as 3.snapshot.json or timestamp.json. It fails with NotFound if the set does
	// not have it, and with Denied if it has more than limit bytes.
	Read(ctx context.Context, name string, limit int64) ([]byte, error)
}

// fileName returns the name of a file in a set: with its version, except that of the timestamp.
func fileName(role string, version int64) string {
	if role == Timestamp {
		return role + ".json"
	}
	return fmt.Sprintf("%d.%s.json", version, role)
}

var (
	delegationName = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9_-]{0,62}$`) })
	binSuffix      = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`-bin-[0-9a-f]+$`) })
	tagName        = sync.OnceValue(func() *regexp.Regexp {
		return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
	})
)

// reservedTags is the prefix of the tags that metadata are stored under.
const reservedTags = "tuf-"

// CheckTag verifies that a tag can be signed: it is one of the OCI distribution specification, and not reserved.
func CheckTag(tag string) error {
	if !tagName().MatchString(tag) {
		return invalid("%.130q is not a tag", tag)
	}
	if strings.HasPrefix(tag, reservedTags) {
		return invalid("the tag %q is reserved for metadata", tag)
	}
	return nil
}

// CheckName verifies that a delegation can have a name.
func CheckName(name string) error {
	switch name {
	case Root, Targets, Snapshot, Timestamp, Tags:
		return invalid("the name %q is a role's of its own", name)
	}
	if !delegationName().MatchString(name) || binSuffix().MatchString(name) {
		return invalid("%.70q is not the name of a delegation", name).
			WithHint("use lower-case letters, digits, '_' and '-', as in release-team")
	}
	return nil
}

// binsOf returns the prefix of the bins of a role.
func binsOf(role string) string { return role + "-bin" }

// parentOf returns the role that says which keys sign a role.
func parentOf(role string) string {
	switch role {
	case Root, Targets, Snapshot, Timestamp:
		return Root
	}
	if bin := binSuffix().FindString(role); bin != "" {
		return strings.TrimSuffix(role, bin)
	}
	return Targets
}
