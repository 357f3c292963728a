package tuf

import (
	"regexp"
	"slices"
	"strconv"
	"sync"

	"github.com/theupdateframework/go-tuf/v2/metadata"
)

// rootFile are the metadata of the root role.
type rootFile = metadata.Metadata[metadata.RootType]

// Proposal is a set of new files of some roles, which their signers want to have published. Anyone who can write to the
// repository can make one: nothing of it counts before it has verified.
type Proposal struct {
	ID    string // where it is stored
	root  *rootFile
	roles map[string]*targetsFile         // targets, roles that list tags, and bins
	raw   map[string][]byte               // the file of each role
	given map[string][]metadata.Signature // those in the file of each role, of which complete leaves the valid ones
}

var proposedFile = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([1-9][0-9]{0,8})\.([a-z0-9][a-z0-9_-]*)\.json$`)
})

// ReadProposal reads the files of a proposal. It fails when one of them is not metadata of its role and version.
func ReadProposal(id string, files map[string][]byte) (*Proposal, error) {
	p := &Proposal{ID: id, roles: map[string]*targetsFile{}, raw: map[string][]byte{},
		given: map[string][]metadata.Signature{}}
	for name, data := range files {
		match := proposedFile().FindStringSubmatch(name)
		if match == nil || match[2] == Snapshot || match[2] == Timestamp {
			return nil, invalid("a proposal cannot have the file %.80q", name)
		}
		version, _ := strconv.ParseInt(match[1], 10, 64) // at most nine digits
		role := match[2]
		if p.raw[role] != nil {
			return nil, invalid("a proposal has two versions of %s", role)
		}
		var found int64
		if role == Root {
			m, err := parse[metadata.RootType](name, data, maxRoot)
			if err != nil {
				return nil, err
			}
			p.root, found = m, m.Signed.Version
		} else {
			m, err := parse[metadata.TargetsType](name, data, maxTargets)
			if err != nil {
				return nil, err
			}
			p.roles[role], found = m, m.Signed.Version
		}
		if found != version {
			return nil, invalid("the file %s of a proposal has version %d", name, found)
		}
		p.raw[role], p.given[role] = data, slices.Clone(*p.signatures(role))
	}
	return p, nil
}

// Roles returns the names of the roles that the proposal has files of, bins as their role.
func (p *Proposal) Roles() []string {
	var names []string
	for role := range p.raw {
		names = append(names, owner(role))
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (p *Proposal) payload(role string) ([]byte, error) {
	if role == Root {
		return payload(p.root)
	}
	return payload(p.roles[role])
}

func (p *Proposal) signatures(role string) *[]metadata.Signature {
	if role == Root {
		return &p.root.Signatures
	}
	return &p.roles[role].Signatures
}
