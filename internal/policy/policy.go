// Package policy reads the policy of a broker and decides by it: which rules allow a caller to use, block or unblock a
// key, or to modify the policy, and what they demand, such as approvals and a time lock.
//
// A policy is a YAML file, see docs/policy.md. Its conditions are CEL expressions, which are type-checked when the
// policy is read, and whose cost is bounded.
package policy

import (
	"crypto/sha256"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/payload"
)

// Action is what a caller wants to do.
type Action string

// The actions.
const (
	Use     Action = "use"     // sign or decrypt with a key
	Block   Action = "block"   // have a key refuse use until it is unblocked
	Unblock Action = "unblock" // end that
	Modify  Action = "modify"  // change the rules of a key, or with no key, what belongs to no single key
)

// Actions lists all actions.
var Actions = []Action{Use, Block, Unblock, Modify}

// Kind is how an approver signs.
type Kind string

// The kinds of approvals.
const (
	ModuleKey Kind = "key"     // a key in a module
	SSH       Kind = "ssh"     // an SSH key
	Passkey   Kind = "passkey" // WebAuthn
)

// Kinds lists all kinds.
var Kinds = []Kind{ModuleKey, SSH, Passkey}

// After is the moment from which a time lock counts.
type After string

// The moments.
const (
	AfterRequest   After = "request"   // when the request was made
	AfterApprovals After = "approvals" // when the last approval that is needed was given
)

// Policy is a policy that was read. It does not change, and is safe for concurrent use.
type Policy struct {
	source   []byte
	digest   [sha256.Size]byte
	groups   []Group
	people   []Person
	person   map[Identity]string // name by identity
	keys     []*Key
	byName   map[string]*Key
	modify   []*Rule // of the top level
	own      bool    // the policy has a modify list at the top level
	warnings []Problem
}

// Key is a key of the policy.
type Key struct {
	Name    string
	URIs    []string // of the key in each module that has it: pkcs11: or nethsm:, with its attributes in a fixed order
	Formats []payload.Format

	rules map[Action][]*Rule
	line  int
}

// Group is a list of people.
type Group struct {
	Name    string
	Members []Person
}

// Person is someone who can approve.
type Person struct {
	Name       string
	Identities []Identity
}

// Identity is who a caller is, as it was authenticated.
type Identity struct{ Issuer, Subject string }

// Rule is one alternative of an action: any one that applies is enough.
type Rule struct {
	Key       string // name of the key; "" for the modify list of the top level
	Action    Action
	Name      string
	When      string // condition, a CEL expression; "" if the rule always applies
	Limit     *Limit // nil without a limit
	Approvals []Approval
	Same      []string      // claims that whoever uses a grant must share with the requester
	TimeLock  time.Duration // 0 without one
	After     After         // from when TimeLock counts; "" without one
	Timeout   time.Duration // counted from the request; 0 without one

	Uses       int  // how often each artifact of a request may be signed; 0 means 1
	BreakGlass bool // it is for emergencies: it applies only to a request that names it

	condition *condition // nil if the rule always applies
	resolved  []byte
	digest    [sha256.Size]byte
	line      int
}

// Limit is how often a rule may be used.
type Limit struct {
	Count int
	Per   time.Duration
}

// Approval is how many people of a group must agree.
type Approval struct {
	Group   string
	Members []Person
	Quorum  int
	Kinds   []Kind // that count; never empty

	Attested    bool // passkeys count only if a manufacturer has attested their authenticator
	DeviceBound bool // passkeys count only if they cannot leave their authenticator
}

// Source returns the bytes that the policy was read from.
func (p *Policy) Source() []byte { return slices.Clone(p.source) }

// Digest returns the SHA-256 of the bytes that the policy was read from.
func (p *Policy) Digest() [sha256.Size]byte { return p.digest }

// Keys returns the keys in the order of the file.
func (p *Policy) Keys() []*Key { return slices.Clone(p.keys) }

// Key returns the key with a name, and nil if there is none.
func (p *Policy) Key(name string) *Key { return p.byName[name] }

// Groups returns the groups in the order of the file.
func (p *Policy) Groups() []Group { return slices.Clone(p.groups) }

// Person returns the name of the person with an identity, and "" if the policy has none.
func (p *Policy) Person(i Identity) string { return p.person[i] }

// Rules returns the alternatives of an action on a key. Modify with an empty name returns those of what belongs to no
// single key: groups, people, which keys there are, and the config of the broker.
func (p *Policy) Rules(action Action, key string) []*Rule {
	if action == Modify && key == "" {
		if !p.own && len(p.keys) > 0 {
			return slices.Clone(p.keys[0].rules[Modify]) // all keys agree
		}
		return slices.Clone(p.modify)
	}
	if k := p.byName[key]; k != nil {
		return slices.Clone(k.rules[action])
	}
	return nil
}

// Warnings returns what is allowed but probably not meant, in the order of lines.
func (p *Policy) Warnings() []Problem { return slices.Clone(p.warnings) }

// Resolved returns what the rule demands as canonical JSON (RFC 8785): its condition, its groups with their members,
// quorums, kinds and demands on passkeys, limit, locks, uses, and the claims of same. The name of the rule is not part
// of it.
func (r *Rule) Resolved() []byte { return slices.Clone(r.resolved) }

// Digest returns the SHA-256 of Resolved.
func (r *Rule) Digest() [sha256.Size]byte { return r.digest }
