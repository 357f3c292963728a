// Package report tells auditors what the keys of a broker signed in a period, who agreed, and what was an exception. A
// report is made of the broker's log alone, once all of it has verified. Each line has the entries that it was made of,
// so that anyone can make it again and see that it says what the log says.
package report

import (
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/notation-hsm/notation-hsm/internal/broker/entry"
	"github.com/notation-hsm/notation-hsm/internal/translog"
)

// What a line is about.
const (
	Signature = "signature" // a key has signed
	Lost      = "lost"      // nobody knows whether it has
	Opened    = "open"      // the log began, with a policy and a config
	Policy    = "policy"    // a policy came into force
	Config    = "config"    // a config came into force
	Block     = "block"     // a key was blocked
	Unblock   = "unblock"   // a key signs again
	Enrol     = "enrol"     // a credential counts
	Remove    = "remove"    // a credential counts no more
	Invite    = "invite"    // a person may enrol a passkey with a link
	Epoch     = "epoch"     // the log began anew after entries were lost
	Void      = "void"      // entries before it permit nothing, from an index on
)

// Exceptions of a signature. What other lines are about is their exception.
const (
	BreakGlass  = "break-glass"  // by a rule for emergencies
	NoApprovals = "no-approvals" // nobody was asked
	Missing     = "missing"      // people were asked, and no approval stood: a broker makes no such signature
)

// whats says what a line is about whose last entry has a type.
var whats = map[string]string{entry.Signed: Signature, entry.Lost: Lost, entry.Opened: Opened, entry.PolicySet: Policy,
	entry.ConfigSet: Config, entry.Blocked: Block, entry.Unblocked: Unblock, entry.Enrolled: Enrol, entry.Removed: Remove,
	entry.Invited: Invite, entry.EpochBegun: Epoch, entry.Voided: Void}

// Line is a line of a report. All but Told is what its entries say. It has pseudonyms of people and requesters.
type Line struct {
	Approvals   []Approval `json:"approvals,omitempty"`   // that stood, in the order of the log
	Certificate string     `json:"certificate,omitempty"` // sha256:HEX of the signing certificate in DER
	Config      string     `json:"config,omitempty"`      // sha256:HEX
	Credential  string     `json:"credential,omitempty"`  // sha256:HEX of the one that is enrolled or removed
	Digest      string     `json:"digest,omitempty"`      // of the artifact
	Epoch       int64      `json:"epoch,omitempty"`       // that begins
	Exception   string     `json:"exception,omitempty"`   // why the line is one; "" for a signature that people agreed to
	Format      string     `json:"format,omitempty"`      // of what was signed, such as notation
	From        int64      `json:"from,omitempty"`        // of void: index of the first entry that permits nothing
	Index       int64      `json:"index"`                 // of the entry that the line is about
	Key         string     `json:"key,omitempty"`         // its name in the policy
	Kind        string     `json:"kind,omitempty"`        // of a credential
	Payload     string     `json:"payload,omitempty"`     // sha256:HEX of the bytes that were signed
	Person      string     `json:"person,omitempty"`      // id of the person whose credential it is, or who is invited
	Policy      string     `json:"policy,omitempty"`      // sha256:HEX of the policy that allowed it, or that is in force
	Proof       []Entry    `json:"proof"`                 // entries that the line is made of, by index; Index is the last
	Reason      string     `json:"reason,omitempty"`      // the requester's, of break-glass; of lost, the kind of failure
	Repository  string     `json:"repository,omitempty"`  // in which the broker found the artifact
	Request     string     `json:"request,omitempty"`     // ID
	Requester   string     `json:"requester,omitempty"`   // pseudonym
	Retry       bool       `json:"retry,omitempty"`       // another signature of the same use
	Rule        string     `json:"rule,omitempty"`        // name of the rule that allowed it
	RuleDigest  string     `json:"rule_digest,omitempty"` // sha256:HEX of the rule
	Signature   string     `json:"signature,omitempty"`   // sha256:HEX of the signature
	Time        string     `json:"time"`                  // of the entry: RFC 3339, in UTC, with milliseconds
	Told        *Told      `json:"told,omitempty"`        // by the broker; the log does not have it
	What        string     `json:"what"`
}

// Approval is an approval that stood when a line came about.
type Approval struct {
	Approver   string `json:"approver"`   // id of the person
	Credential string `json:"credential"` // sha256:HEX of its document
	Index      int64  `json:"index"`
	Time       string `json:"time"` // of the entry
}

// Entry is an entry of the log with its inclusion proof under the checkpoint of the report.
type Entry struct {
	Entry  []byte   `json:"entry,omitempty"` // base64
	Hash   []byte   `json:"hash"`            // base64 of its leaf hash (RFC 6962 section 2.1)
	Hashes [][]byte `json:"hashes"`          // from the leaf to the root, in base64
	Index  int64    `json:"index"`
}

// Told is what the broker says of the request of a line.
type Told struct {
	Issuer    string `json:"issuer,omitempty"`
	MediaType string `json:"media_type,omitempty"`
	Subject   string `json:"subject,omitempty"` // of the requester
}

// evidence is an entry of which a line is made.
type evidence struct {
	index int64
	raw   []byte
	event *entry.Event
}

func (e *evidence) entry() Entry {
	hash := tlog.RecordHash(e.raw)
	return Entry{Entry: e.raw, Hash: hash[:], Index: e.index}
}

// lineOf returns the line that entries make: the enrolment of the credential that is removed, the request, the
// approvals that stood, the intent to sign, and last the entry that the line is about; each if there is one. It fails
// for entries that do not belong together.
func lineOf(all []evidence) (*Line, error) {
	if len(all) == 0 {
		return nil, fmt.Errorf("it has no entries")
	}
	last := all[len(all)-1]
	line := &Line{Index: last.index, Time: last.event.Time, What: whats[last.event.Type]}
	if line.What == "" {
		return nil, fmt.Errorf("no line is about an entry of the type %.40q", last.event.Type)
	}
	var request *entry.Event
	stage, before := 0, int64(-1)
	for i, e := range all {
		if e.index <= before {
			return nil, fmt.Errorf("its entries are not in order")
		}
		before = e.index
		line.Proof = append(line.Proof, e.entry())
		if i == len(all)-1 {
			break
		}
		now, err := line.add(e, last.event, request)
		if err != nil || now < stage || now == stage && e.event.Type != entry.Approved {
			return nil, fmt.Errorf("entry %d does not belong to entry %d", e.index, last.index)
		}
		if stage = now; e.event.Type == entry.Requested {
			request = e.event
		}
	}
	if used := line.What == Signature || line.What == Lost; used != (stage == stageIntent) {
		return nil, fmt.Errorf("entry %d has no intent", last.index)
	}
	line.finish(last.event)
	return line, nil
}

// Stages of the entries of a line.
const (
	stageEnrolled = iota + 1
	stageRequest
	stageApproval
	stageIntent
)

// add adds what an entry before the last one says. It returns its stage.
func (l *Line) add(e evidence, last, request *entry.Event) (stage int, err error) {
	other := fmt.Errorf("it is of something else")
	if e.event.Type == entry.Enrolled {
		if last.Type != entry.Removed || e.event.Credential != last.Credential {
			return 0, other
		}
		l.Person, l.Kind = e.event.Approver, e.event.Kind
		return stageEnrolled, nil
	}
	if e.event.Request == "" || e.event.Request != last.Request {
		return 0, other
	}
	switch e.event.Type {
	case entry.Requested:
		l.Reason, l.Requester = e.event.Why, e.event.Requester
		if l.Reason != "" {
			l.Exception = BreakGlass
		}
		return stageRequest, nil
	case entry.Approved:
		if request == nil || e.event.Statement != request.Statement {
			return 0, other
		}
		l.Approvals = append(l.Approvals, Approval{Approver: e.event.Approver, Credential: e.event.Credential,
			Index: e.index, Time: e.event.Time})
		return stageApproval, nil
	case entry.Intended:
		if e.event.Payload != last.Payload || e.event.Key != last.Key || request != nil && e.event.Key != request.Key {
			return 0, other
		}
		l.Certificate, l.Digest, l.Format, l.Policy = e.event.Leaf, e.event.Digest, e.event.Format, e.event.Policy
		l.Repository, l.Requester, l.Retry = e.event.Repository, e.event.Requester, e.event.Retry
		l.Rule, l.RuleDigest = e.event.Rule, e.event.RuleDigest
		if e.event.Statement != "" && len(l.Approvals) == 0 {
			l.Exception = Missing
		}
		return stageIntent, nil
	}
	return 0, other
}

// finish adds what the last entry says.
func (l *Line) finish(last *entry.Event) {
	l.Key, l.Request = last.Key, last.Request
	switch l.What {
	case Signature:
		l.Payload, l.Signature = last.Payload, last.Signature
		if len(l.Approvals) == 0 && l.Exception == "" {
			l.Exception = NoApprovals
		}
		return
	case Lost:
		l.Payload, l.Reason = last.Payload, last.Reason
	case Void:
		l.From = last.Index
	default:
		l.Config, l.Policy, l.Epoch, l.Credential = last.Config, last.Policy, last.Epoch, last.Credential
		l.Rule, l.RuleDigest = last.Rule, last.RuleDigest
		if last.Requester != "" {
			l.Requester = last.Requester
		}
		if l.What == Enrol || l.What == Invite {
			l.Person, l.Kind = last.Approver, last.Kind
		}
	}
	l.Exception = l.What
}

// canonical returns a line in its encoding without what the log does not have, to compare lines.
func (l *Line) canonical() ([]byte, error) {
	own := *l
	own.Told = nil
	own.Proof = nil
	for _, e := range l.Proof {
		e.Hashes = nil
		own.Proof = append(own.Proof, e)
	}
	return translog.Canonical(own)
}
