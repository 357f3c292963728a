package trust

import (
	"regexp"
	"slices"
	"sync"

	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Approver is a person who may approve signatures, with all credentials whose approvals count. The broker's log knows
// people and credentials by the id and by salted hashes alone; this entry opens them.
type Approver struct {
	Name        string       `yaml:"name" json:"name"`
	ID          string       `yaml:"id" json:"id"` // pseudonym in the log
	Credentials []Credential `yaml:"credentials" json:"credentials"`
}

// Bounds of approvers.
const (
	maxApprovers   = 1000
	maxCredentials = 16  // of one approver
	maxName        = 128 // bytes of the name of an approver or a group
)

var approverNames = sync.OnceValue(func() *regexp.Regexp { // not at the start, which every signature pays for
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._@+-]*$`) // a bound of 128 would take half a millisecond
})

// isName reports whether a text is the name of an approver or a group.
func isName(text string) bool { return len(text) <= maxName && approverNames().MatchString(text) }

var approverIDs = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9a-f]{32,64}$`)
})

// read validates an approver, without regard to others.
func (a *Approver) read() error {
	switch {
	case !isName(a.Name):
		return failure.New(failure.Invalid, "%.128q is not the name of an approver", a.Name).
			WithHint("use letters, digits, '.', '_', '@', '+' and '-', as in alice")
	case !approverIDs().MatchString(a.ID):
		return failure.New(failure.Invalid, "the id of approver %q is %.80q, and not 32 to 64 hexadecimal digits", a.Name,
			a.ID).
			WithHint("copy it from: hsm-broker approver export")
	case len(a.Credentials) == 0 || len(a.Credentials) > maxCredentials:
		return failure.New(failure.Invalid, "approver %q has %d credentials instead of 1 to %d", a.Name, len(a.Credentials),
			maxCredentials).WithHint("list those whose approvals count; or remove the approver")
	}
	for i := range a.Credentials {
		c := &a.Credentials[i]
		c.approver = a.ID
		if err := c.read(); err != nil {
			return failure.New(failure.Invalid, "the credential %d of approver %q: %w", i+1, a.Name, err).
				WithHint("copy it from: hsm-broker approver export")
		}
		if slices.ContainsFunc(a.Credentials[:i], func(other Credential) bool { return other.Hash() == c.Hash() }) {
			return failure.New(failure.Invalid, "the credential %d of approver %q is there twice", i+1, a.Name).
				WithHint("remove one of the two")
		}
	}
	return nil
}

// readApprovers validates approvers. Nobody may be two people: names, ids and public keys are of one approver each.
func readApprovers(list []Approver) error {
	if len(list) > maxApprovers {
		return failure.New(failure.Invalid, "there are %d approvers, more than %d", len(list), maxApprovers).
			WithHint("remove those whom no group needs")
	}
	names, ids, keys := map[string]bool{}, map[string]string{}, map[string]string{}
	for i := range list {
		a := &list[i]
		if err := a.read(); err != nil {
			return err
		}
		if names[a.Name] {
			return failure.New(failure.Invalid, "two approvers are named %q", a.Name).
				WithHint("rename or remove one of the two")
		}
		if other, ok := ids[a.ID]; ok {
			return failure.New(failure.Invalid, "the approvers %q and %q have the same id", other, a.Name).
				WithHint("remove one of the two: they are one person")
		}
		names[a.Name], ids[a.ID] = true, a.Name
		for _, c := range a.Credentials {
			if other, ok := keys[c.key]; ok && other != a.Name {
				return failure.New(failure.Invalid, "the approvers %q and %q have the same public key %s", other, a.Name,
					c.Fingerprint()).WithHint("remove the key from one of the two: one person would count as two")
			}
			keys[c.key] = a.Name
		}
	}
	return nil
}
