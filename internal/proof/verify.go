package proof

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/notation-hsm/notation-hsm/internal/approval"
	"github.com/notation-hsm/notation-hsm/internal/failure"
)

// Verify returns what a bundle shows of a signature, once it shows all that a demand asks for. It believes nothing of
// the bundle but signatures: of people by the credentials of the demand, and of the log by the demand's keys. It fails
// with Invalid for a bundle that cannot be read, with Denied for one that does not show what is demanded, and says why.
//
// It cannot see what a broker left out of its log, or did not put into the bundle: an approval that was withdrawn
// without an entry, and that a requester is a person. Whoever follows the log can.
func Verify(bundle []byte, s Signature, d *Demand, now time.Time) (*Shown, error) {
	if err := check(s, d); err != nil {
		return nil, err
	}
	b, err := Decode(bundle)
	if err != nil {
		return nil, err
	}
	v := &verification{bundle: b, wanted: s, demand: d, digest: approval.Hash(b.Statement),
		decisions: map[int64]decision{}}
	for _, step := range []func() error{v.readStatement, v.readRules, v.openCheckpoint, v.readEntries,
		v.readApprovals, v.replay, func() error { return v.checkAge(now) }, v.checkQuorums} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return v.shown(), nil
}

// verification is one run of Verify.
type verification struct {
	bundle *Bundle
	wanted Signature
	demand *Demand

	statement *approval.Statement
	digest    string // of the statement, as sha256:HEX
	log       log
	events    []event
	decisions map[int64]decision // whose approvals the bundle has, by the indexes of their entries
	found     found
}

// check fails for a signature and a demand that would have anything verify.
func check(s Signature, d *Demand) error {
	invalid := func(what string) error {
		return failure.New(failure.Invalid, "cannot verify approvals: %s", what)
	}
	for _, hash := range []string{s.Leaf, s.Payload, s.Signature} {
		if !approval.IsHash(hash) {
			return invalid(fmt.Sprintf("%.80q is not the SHA-256 of a part of the signature", hash))
		}
	}
	switch {
	case s.Digest == "":
		return invalid("the signature is of no artifact")
	case d == nil || len(d.Groups) == 0:
		return invalid("no group of approvers is demanded")
	case len(d.Log) == 0:
		return invalid("no key of a log is trusted")
	case d.Cosigned > len(d.Witnesses):
		return invalid(fmt.Sprintf("%d witnesses are demanded, and %d are trusted", d.Cosigned, len(d.Witnesses)))
	}
	for _, g := range d.Groups {
		if g.Quorum < 1 {
			return invalid(fmt.Sprintf("the quorum of group %.80q is %d", g.Name, g.Quorum))
		}
	}
	return nil
}

// readStatement reads the statement, and verifies that it is about the signature.
func (v *verification) readStatement() error {
	s, err := approval.DecodeStatement(v.bundle.Statement)
	if err != nil {
		return err
	}
	p := &s.Predicate
	switch {
	case p.Action != "use" || p.Key == nil || p.Change != nil:
		return v.otherImage("people agreed to a change of the broker, not to a signature")
	case p.Key.Leaf != v.wanted.Leaf:
		return v.otherImage("people agreed to a signature with another certificate")
	}
	v.statement = s
	return v.readTargets()
}

// notation is the format of the signatures that are proven: a statement can be about the same artifact in another one.
const notation = "notation"

// readTargets verifies that the artifact is a target of the statement, as it was signed, and that it is a subject for
// those too who read subjects alone.
func (v *verification) readTargets() error {
	p, w := &v.statement.Predicate, &v.wanted
	why := fmt.Sprintf("other artifacts than %.100q", w.Digest)
	for i, t := range p.Targets {
		algorithm, digits, _ := strings.Cut(t.Digest, ":")
		switch {
		case t.Digest != w.Digest || i >= len(v.statement.Subjects) ||
			!maps.Equal(v.statement.Subjects[i].Digest, map[string]string{algorithm: digits}):
		case t.Format != notation:
			why = "a signature in another format"
		case !maps.Equal(t.Annotations, w.Annotations):
			why = "other annotations"
		case p.Expiry != w.Expiry:
			why = "another expiry"
		case w.MediaType != "" && t.MediaType != w.MediaType, w.Size != 0 && t.Size != w.Size:
			why = "another media type or size"
		default:
			return nil
		}
	}
	return v.otherImage("people agreed to %s", why)
}

// readRules verifies that each rule document is one that the statement names.
func (v *verification) readRules() error {
	named := map[string]bool{}
	for _, n := range v.statement.Predicate.Needs {
		for _, r := range n.Rules {
			named[r.Digest] = true
		}
	}
	for _, data := range v.bundle.Rules {
		digest := approval.Hash(data)
		if !named[digest] {
			return v.refuse("a rule of it is none of the statement, or is there twice")
		}
		delete(named, digest)
	}
	return nil
}

// maxAhead is how far the log's clock can be ahead of the verifier's.
const maxAhead = 5 * time.Minute

// checkAge fails for a signature that was logged too long ago. One of the future would never be too old.
func (v *verification) checkAge(now time.Time) error {
	if v.demand.MaxAge == 0 {
		return nil
	}
	signed := v.found.signed.At()
	switch age := now.Sub(signed); {
	case age > v.demand.MaxAge:
		return v.denied("the signature was logged at %s, more than %s ago", signed.Format(time.RFC3339), v.demand.MaxAge).
			WithHint("have the image approved and signed again")
	case age < -maxAhead:
		return v.denied("the signature was logged at %s, in the future", signed.Format(time.RFC3339)).
			WithHint("set the clock right")
	}
	return nil
}

// checkQuorums fails unless enough people of each group agreed.
func (v *verification) checkQuorums() error {
	var votes []approval.Vote
	for _, a := range v.found.agreed {
		if v.counts(a) {
			votes = append(votes, a.vote)
		}
	}
	groups := v.demand.Groups
	lacking := approval.Lacking(groups, votes)
	i := slices.IndexFunc(lacking, func(n int) bool { return n > 0 })
	if i < 0 {
		return nil
	}
	text := fmt.Sprintf("%d of %d people of group %.80q agreed", groups[i].Quorum-lacking[i], groups[i].Quorum,
		groups[i].Name)
	for _, a := range v.found.agreed {
		if why := v.discounted(a); why != "" {
			text += "; " + why
		}
	}
	return v.denied("%s", text).WithHint("have those approve the image who must, as the trust manifest says")
}

// denied returns the failure of a bundle that does not show what is demanded.
func (v *verification) denied(format string, args ...any) *failure.Error {
	return failure.New(failure.Denied, "the approvals do not count: "+format, args...)
}

// refuse returns the failure of a bundle whose parts do not belong together.
func (v *verification) refuse(format string, args ...any) error {
	return v.denied("the bundle does not hold together: "+format, args...).
		WithHint("attach it again: hsm-image approvals attach IMAGE")
}

// otherImage returns the failure of a bundle that is about something else.
func (v *verification) otherImage(format string, args ...any) error {
	return v.denied(format, args...).WithHint("attach the bundle of this very signature")
}
