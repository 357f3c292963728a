package trust

import (
	"fmt"
	"slices"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/failure"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// Approvals are what a signature needs in a scope besides a signer: a bundle of approvals, which shows that people
// agreed. Notation does not know them; hsm-image verify and containerd's gate do.
type Approvals struct {
	// one repository, or "*": those that have no approvals of their own
	Scope  string          `yaml:"scope" json:"scope"`
	Groups []ApprovalGroup `yaml:"groups" json:"groups"` // all are needed
	// verifier keys (C2SP signed-note) of the log's signers and of witnesses
	Log       []string `yaml:"log" json:"log"`
	Witnesses []string `yaml:"witnesses,omitempty" json:"witnesses,omitempty"`
	// number of witnesses that must have cosigned the log
	Cosigned int `yaml:"cosigned,omitempty" json:"cosigned,omitempty"`
	// how long a signature counts since the log has it; 0: without an end
	MaxAge Span `yaml:"max-age,omitempty" json:"maxAge,omitzero"`

	Approvers []Approver `yaml:"-" json:"-"` // members of the groups
}

// ApprovalGroup is how many people must agree, and with what.
type ApprovalGroup struct {
	Name    string   `yaml:"name" json:"name"`
	Members []string `yaml:"members" json:"members"` // names of approvers
	Quorum  int      `yaml:"quorum" json:"quorum"`
	Kinds   []string `yaml:"kinds" json:"kinds"` // of credentials that count
	// "required": passkeys count only if a manufacturer has attested their authenticator
	Attestation string `yaml:"attestation,omitempty" json:"attestation,omitempty"`
	// passkeys count only if they cannot leave their authenticator
	DeviceBound bool `yaml:"device-bound,omitempty" json:"deviceBound,omitempty"`
}

// Span is a duration in whole seconds. Its text is as in 72h.
type Span time.Duration

// MarshalText returns the text.
func (s Span) MarshalText() ([]byte, error) { return []byte(FormatStale(time.Duration(s))), nil }

// UnmarshalText reads the text.
func (s *Span) UnmarshalText(text []byte) error {
	d, err := time.ParseDuration(string(text))
	if err != nil || d%time.Second != 0 {
		return fmt.Errorf("%.40q is not a duration in whole seconds, as in 72h", text)
	}
	*s = Span(d)
	return nil
}

// Bounds of approvals.
const (
	maxApprovals      = 1000 // scopes
	maxApprovalGroups = 8
	maxLogKeys        = 16
	maxWitnesses      = 64
	maxMaxAge         = Span(100 * 365 * 24 * time.Hour)
)

const attestationRequired = "required"

// read validates approvals, and finds their approvers among those of the manifest.
func (a *Approvals) read(approvers []Approver) error {
	if err := checkScope(a.Scope); err != nil {
		return err
	}
	a.Scope = spelled(a.Scope)
	if err := a.readGroups(approvers); err != nil {
		return failure.New(failure.Invalid, "the approvals of %q: %w", a.Scope, err).WithHint(failure.From(err).Hint)
	}
	if err := a.readLog(); err != nil {
		return failure.New(failure.Invalid, "the approvals of %q: %w", a.Scope, err).WithHint(failure.From(err).Hint)
	}
	if a.MaxAge < 0 || a.MaxAge > maxMaxAge || a.MaxAge%Span(time.Second) != 0 {
		return failure.New(failure.Invalid, "the approvals of %q have the max-age %s", a.Scope,
			time.Duration(a.MaxAge)).WithHint("write whole seconds, as in 2160h, or leave it out for no limit")
	}
	return nil
}

func (a *Approvals) readGroups(approvers []Approver) error {
	if len(a.Groups) == 0 || len(a.Groups) > maxApprovalGroups {
		return failure.New(failure.Invalid, "there are %d groups instead of 1 to %d", len(a.Groups), maxApprovalGroups).
			WithHint("name those who must agree, as in: --group release-managers=alice,bob:2")
	}
	a.Approvers = nil
	for i := range a.Groups {
		g := &a.Groups[i]
		if err := g.read(); err != nil {
			return err
		}
		if slices.ContainsFunc(a.Groups[:i], func(other ApprovalGroup) bool { return other.Name == g.Name }) {
			return failure.New(failure.Invalid, "two groups are named %q", g.Name).WithHint("rename one of the two")
		}
		for _, name := range g.Members {
			if slices.ContainsFunc(a.Approvers, func(p Approver) bool { return p.Name == name }) {
				continue
			}
			found := slices.IndexFunc(approvers, func(p Approver) bool { return p.Name == name })
			if found < 0 {
				return failure.New(failure.Invalid, "the member %q of the group %q is not among the approvers", name, g.Name).
					WithHint("add the approver with: notation-hsm trust approver add --from FILE " + name)
			}
			a.Approvers = append(a.Approvers, approvers[found])
		}
		if err := g.checkReachable(a.Approvers); err != nil {
			return err
		}
	}
	return nil
}

func (g *ApprovalGroup) read() error {
	switch {
	case !isName(g.Name):
		return failure.New(failure.Invalid, "%.128q is not the name of a group", g.Name).
			WithHint("use letters, digits, '.', '_', '@', '+' and '-', as in release-managers")
	case len(g.Members) > maxApprovers:
		return failure.New(failure.Invalid, "the group %q has %d members, more than %d", g.Name, len(g.Members),
			maxApprovers).WithHint("use several groups")
	case g.Quorum < 1 || g.Quorum > len(g.Members):
		return failure.New(failure.Invalid, "the quorum of the group %q is %d of %d members", g.Name, g.Quorum,
			len(g.Members)).WithHint("use a quorum from 1 to the number of members")
	case len(g.Kinds) == 0:
		return failure.New(failure.Invalid, "the group %q does not say which kinds of approvals count", g.Name).
			WithHint("name them, as in key,ssh; a broker that was taken over can mislead the user of a passkey")
	case g.Attestation != "" && g.Attestation != attestationRequired:
		return failure.New(failure.Invalid, "the attestation of the group %q is %.40q", g.Name, g.Attestation).
			WithHint("write required, or leave it out")
	case (g.Attestation != "" || g.DeviceBound) && !slices.Contains(g.Kinds, kindPasskey):
		return failure.New(failure.Invalid, "the group %q says how passkeys must be, and they do not count for it", g.Name).
			WithHint("remove attestation and device-bound, or add the kind passkey")
	}
	for i, kind := range g.Kinds {
		if !slices.Contains(approvalKinds, kind) || slices.Contains(g.Kinds[:i], kind) {
			return failure.New(failure.Invalid, "the group %q has the unknown or repeated kind %.40q", g.Name, kind).
				WithHint("use key, ssh and passkey, each once")
		}
	}
	for i, name := range g.Members {
		if slices.Contains(g.Members[:i], name) {
			return failure.New(failure.Invalid, "the group %q has the member %q twice", g.Name, name).
				WithHint("remove one of the two")
		}
	}
	return nil
}

// checkReachable fails for a group whose members have too few credentials that count: no image would ever pass.
func (g *ApprovalGroup) checkReachable(approvers []Approver) error {
	able := 0
	for _, p := range approvers {
		if slices.Contains(g.Members, p.Name) && slices.ContainsFunc(p.Credentials, g.accepts) {
			able++
		}
	}
	if able < g.Quorum {
		return failure.New(failure.Invalid,
			"only %d members of the group %q have a credential that counts, and its quorum is %d", able, g.Name, g.Quorum).
			WithHint("add credentials of its kinds, or lower the quorum")
	}
	return nil
}

// accepts reports whether approvals with a credential count for the group.
func (g *ApprovalGroup) accepts(c Credential) bool {
	if !slices.Contains(g.Kinds, c.Kind) {
		return false
	}
	return c.Passkey == nil ||
		(c.Passkey.Attested || g.Attestation == "") && (!c.Passkey.BackupEligible || !g.DeviceBound)
}

func (a *Approvals) readLog() error {
	const again = "remove one of the two"
	if len(a.Log) == 0 || len(a.Log) > maxLogKeys {
		return failure.New(failure.Invalid, "there are %d keys of the log instead of 1 to %d", len(a.Log), maxLogKeys).
			WithHint("give the verifier key of the broker's log: NAME+ID+KEY")
	}
	for i, vkey := range a.Log {
		v, err := translog.ParseVerifier(vkey)
		if err != nil {
			return failure.From(err).WithHint("give the line that 'hsm-broker log key' prints: ORIGIN+ID+KEY")
		}
		a.Log[i] = v.String()
		if slices.Contains(a.Log[:i], v.String()) {
			return failure.New(failure.Invalid, "the key %q of the log is there twice", vkey).WithHint(again)
		}
	}
	if len(a.Witnesses) > maxWitnesses {
		return failure.New(failure.Invalid, "there are %d witnesses, more than %d", len(a.Witnesses), maxWitnesses).
			WithHint("name those that you trust")
	}
	for i, vkey := range a.Witnesses {
		w, err := translog.ParseWitness(vkey)
		if err != nil {
			return err
		}
		a.Witnesses[i] = w.String()
		if slices.Contains(a.Witnesses[:i], w.String()) {
			return failure.New(failure.Invalid, "the witness %q is there twice", w.Name()).WithHint(again)
		}
	}
	if a.Cosigned < 0 || a.Cosigned > len(a.Witnesses) {
		return failure.New(failure.Invalid, "cosigned is %d, and there are %d witnesses", a.Cosigned, len(a.Witnesses)).
			WithHint("use a number up to that of the witnesses")
	}
	if a.Cosigned == 0 && len(a.Witnesses) > 0 {
		return failure.New(failure.Invalid, "there are witnesses, and cosigned is 0: none of them would be needed").
			WithHint("set cosigned to the number of witnesses that must have cosigned")
	}
	return nil
}

// readApprovals validates approvals of different scopes.
func readApprovals(list []Approvals, approvers []Approver) error {
	if len(list) > maxApprovals {
		return failure.New(failure.Invalid, "there are approvals of %d scopes, more than %d", len(list), maxApprovals).
			WithHint(`use the scope "*" for repositories with the same approvals`)
	}
	scopes := map[string]bool{}
	for i := range list {
		a := &list[i]
		if err := a.read(approvers); err != nil {
			return err
		}
		name, err := repository(a.Scope)
		if err != nil {
			return err
		}
		if scopes[name] {
			return failure.New(failure.Invalid, "the scope %q has approvals twice", a.Scope).
				WithHint("remove one of the two entries; one entry can have several groups")
		}
		scopes[name] = true
	}
	return nil
}

// approvalsOf returns the approvals of a repository in canonical form: those of its own scope, else those of "*", or
// nil. A signer's scope makes no difference: "*" is for every repository without approvals of its own.
func approvalsOf(byScope map[string]*Approvals, repository string) *Approvals {
	if a, ok := byScope[repository]; ok {
		return a
	}
	return byScope[anyone]
}

// checkApprovals fails for approvals in a scope in which everyone may sign.
func (m *Manifest) checkApprovals() error {
	byScope := map[string]*Approvals{}
	for i := range m.Approvals {
		name, err := repository(m.Approvals[i].Scope)
		if err != nil {
			return err
		}
		byScope[name] = &m.Approvals[i]
	}
	for _, s := range m.Signers {
		for _, scope := range s.Scopes {
			name, err := repository(scope)
			if err != nil {
				return err
			}
			if a := approvalsOf(byScope, name); a != nil && s.audited() {
				return failure.New(failure.Invalid,
					"signer %q of the scope %q has the level %s, at which everyone may sign, and the scope needs approvals",
					s.Name, scope, s.Level).WithHint("set the level to strict or permissive; or remove the approvals")
			}
		}
	}
	return nil
}
